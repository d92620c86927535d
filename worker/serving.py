"""Requests on their way through the inference process: waiting, prepared, answered together, token by token."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from app.core import inference as protocol
from app.core.inference import Alternative, GenerationRequest, Keys, Reply, Timings, TokenLogprob
from app.core.logging import get_logger
from minimind.errors import MiniMindError
from worker.engines import EngineCache

if TYPE_CHECKING:
    from minimind.batching import Answering, Delta
    from minimind.batching import TokenLogprob as CoreLogprob
    from minimind.constrain import Matcher
    from minimind.engine import Engine

log = get_logger(__name__)

BrokerError = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)
#: how often is asked whether everybody is still there: an abandoned request makes no tokens for longer
LOOK_EVERY_S = 0.02
#: how long those who were interrupted are tried to be told; without a broker they find out by themselves
TELL_WITHIN_S = 30.0
#: what the code of a core's error is called in a reply
KINDS = {"CHECKPOINT": "checkpoint", "CONTEXT_LENGTH": "context_length"}


class ReplyChannel:
    """The reply stream of one request, and whether anybody still reads it. The first reply makes the stream, the asker
    renews it; once he has deleted it nothing brings it back."""

    def __init__(self, broker: redis.Redis, keys: Keys, request_id: str):
        self._broker = broker
        self.stream = keys.reply(request_id)
        self.wanted = keys.wanted(request_id)

    def open(self, pipe: Any, first: Reply) -> None:
        """Make the stream with what else is in a pipeline."""
        pipe.xadd(self.stream, first.fields())
        pipe.expire(self.stream, protocol.REPLY_TTL_S)

    def put(self, pipe: Any, reply: Reply) -> None:
        """Send ``reply`` with what else is in a pipeline."""
        pipe.xadd(self.stream, reply.fields(), maxlen=protocol.REPLY_MAX_EVENTS, approximate=True, nomkstream=True)

    def send(self, reply: Reply) -> None:
        self.put(self._broker, reply)

    def abandoned(self) -> bool:
        """True once the asker left, died, or the broker lost the request."""
        return not self._broker.exists(self.wanted)


@dataclass(eq=False)
class Talk:
    """One request, from being accepted to its last token."""

    request: GenerationRequest
    channel: ReplyChannel
    since: float = field(default_factory=time.monotonic)
    engine: Engine | None = None
    prompt_ids: list[int] = field(default_factory=list)
    matcher: Matcher | None = None
    answering: Answering | None = None
    has_started: bool = False


class Server:
    """Answers requests. ``take`` and ``status`` may be called from any thread."""

    def __init__(self, broker: redis.Redis, engines: EngineCache, changed: Callable[[], None]):
        self._broker, self._engines, self._changed = broker, engines, changed
        self._talks: dict[str, Talk] = {}  # all that were taken and are not over
        self._ready: queue.Queue[Talk] = queue.Queue()  # for the serving thread
        self._serving: dict[int, tuple[Engine, dict[int, Talk]]] = {}  # by identity of engine and of what it answers
        self._lock = threading.Lock()
        self._prepare_pool = ThreadPoolExecutor(1, "prepare")
        self._load_pool = ThreadPoolExecutor(1, "load")
        self._loading = 0
        self._looked = 0.0

    def start(self) -> None:
        threading.Thread(target=self._serve_forever, name="serve", daemon=True).start()

    @property
    def room(self) -> int:
        """Requests that may still be taken."""
        return max(protocol.MAX_WAITING - len(self._talks), 0)

    def take(self, request: GenerationRequest, channel: ReplyChannel) -> None:
        talk = Talk(request, channel)
        with self._lock:
            self._talks[request.id] = talk
        self._changed()
        self._prepare_pool.submit(self._prepare, talk)

    def status(self) -> dict[str, Any]:
        with self._lock:
            talks = list(self._talks.values())
        active = sum(talk.answering is not None for talk in talks)
        state = "loading" if self._loading else "generating" if talks else "ready"
        return {"state": state, "active": active, "waiting": len(talks) - active, "models": self._engines.in_memory()}

    # -- prepare and load ------------------------------------------------------------------------------------

    def _prepare(self, talk: Talk, is_loading: bool = False) -> None:
        """From a request to ids of a model in memory; a model that is not there is loaded by another thread, so that
        the next request need not wait for it."""
        try:
            path, adapter = self._places(talk)
            needs_own = needs_own_engine(talk.request)
            if not is_loading and not self._engines.has(path, adapter, needs_own=needs_own):
                talk.channel.send(Reply(type="loading"))
                self._loading += 1
                self._changed()
                self._load_pool.submit(self._load, talk)
                return
            talk.engine = self._engines.get(path, adapter, needs_own=needs_own)
            self._encode(talk, talk.engine)
        except Exception as error:
            self._fail(talk, error)
            return
        self._ready.put(talk)

    def _load(self, talk: Talk) -> None:
        try:
            if not self._is_gone(talk):
                self._prepare(talk, is_loading=True)
        finally:
            self._loading -= 1
            self._changed()

    def _is_gone(self, talk: Talk) -> bool:
        """Whether nobody wants it any more; it is over then."""
        try:
            gone = talk.channel.abandoned()
        except BrokerError:
            gone = True
        if gone:
            self._end(talk)
        return gone

    @staticmethod
    def _places(talk: Talk) -> tuple[Path, Path | None]:
        adapter = talk.request.adapter
        return Path(talk.request.checkpoint), Path(adapter) if adapter else None

    @staticmethod
    def _encode(talk: Talk, engine: Engine) -> None:
        request = talk.request
        if request.messages is not None:
            talk.prompt_ids = engine.encode_chat(request.messages, tools=request.tools,
                                                 open_thinking=request.open_thinking,
                                                 continue_final=request.continue_final)
        elif request.prompt is not None:
            talk.prompt_ids = engine.tokenizer.encode(request.prompt)
        else:
            talk.prompt_ids = list(request.prompt_ids or [])
        if request.constraint is not None:
            talk.matcher = engine.grammar(request.constraint.model_dump(by_alias=True)).matcher()

    # -- serve -----------------------------------------------------------------------------------------------

    def _serve_forever(self) -> None:
        while True:
            try:
                self._round()
            except BrokerError as error:
                log.warning("broker_away", error=str(error))
                self._forget_all()
            except Exception:  # whatever it was, the next request deserves an answer
                log.exception("serving_failed")
                self._forget_all()

    def _round(self) -> None:
        """Let in who is ready, let go who left, and make one step with every model that has something to do."""
        self._admit()
        self._let_go()
        for key, (engine, talks) in list(self._serving.items()):
            if not engine.batch.is_busy:
                del self._serving[key]
                continue
            try:
                told = engine.batch.step()
            except Exception as error:  # of the arithmetic: memory, or a bug
                self._give_up(key, error)
                continue
            self._tell([(talks[id(one)], delta) for one, delta in told if id(one) in talks], talks)

    def _admit(self) -> None:
        is_idle = not self._serving
        while True:
            try:
                talk = self._ready.get(timeout=3600) if is_idle else self._ready.get_nowait()
            except queue.Empty:
                return
            is_idle = False  # who left meanwhile is let go before the first step: no question to the broker for each
            try:
                from minimind.engine import SamplingParams

                params = SamplingParams(**talk.request.sampling.model_dump())
                talk.answering = talk.engine.batch.add(
                    talk.prompt_ids, params, logprobs=talk.request.logprobs, echo=talk.request.echo,
                    matcher=talk.matcher)
            except MiniMindError as error:
                self._fail(talk, error)
                continue
            talks = self._serving.setdefault(id(talk.engine), (talk.engine, {}))[1]
            talks[id(talk.answering)] = talk
            self._changed()

    def _let_go(self) -> None:
        """Those whose asker left: their places are free from now on."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        served = [(engine, talks, talk) for engine, talks in self._serving.values() for talk in talks.values()]
        if not served:
            return
        with self._broker.pipeline(transaction=False) as pipe:
            for _, _, talk in served:
                pipe.exists(talk.channel.wanted)
            wanted = pipe.execute()
        gone = [entry for entry, is_wanted in zip(served, wanted) if not is_wanted]
        if not gone:
            return
        with self._broker.pipeline(transaction=False) as pipe:
            for engine, talks, talk in gone:
                engine.batch.cancel(talk.answering)
                talks.pop(id(talk.answering))
                talk.channel.put(pipe, self._done(talk, "cancelled"))
                self._end(talk)
            pipe.execute()

    def _tell(self, told: list[tuple[Talk, Delta]], talks: dict[int, Talk]) -> None:
        """Send what one step came to, in one go."""
        if not told:
            return
        with self._broker.pipeline(transaction=False) as pipe:
            for talk, delta in told:
                for reply in self._replies(talk, delta):
                    talk.channel.put(pipe, reply)
                if delta.finish_reason is not None:
                    talks.pop(id(talk.answering), None)
                    self._end(talk)
            pipe.execute()

    def _replies(self, talk: Talk, delta: Delta) -> list[Reply]:
        answering, replies = talk.answering, []
        if answering.error is not None:
            return [self._failure(talk, answering.error)]
        if not talk.has_started:
            talk.has_started = True
            prompt = [_told(talk.engine, found) for found in answering.prompt_logprobs] if talk.request.echo else None
            replies.append(Reply(type="started", prompt_tokens=answering.prompt_tokens, prompt=prompt,
                                 cached_tokens=answering.cached_tokens))
        tokens = [_told(talk.engine, delta.logprob)] if delta.logprob is not None else None
        if delta.text or tokens:
            replies.append(Reply(type="delta", text=delta.text, tokens=tokens))
        if delta.finish_reason is not None:
            replies.append(self._done(talk, delta.finish_reason))
        return replies

    @staticmethod
    def _done(talk: Talk, finish_reason: str) -> Reply:
        answering = talk.answering
        at = answering.timings
        timings = Timings(queue_s=round(max(at.begun - talk.since, 0), 6) if at.begun else 0,
                          prefill_s=round(max(at.first_token - at.begun, 0), 6) if at.first_token else 0,
                          decode_s=round(max(at.ended - at.first_token, 0), 6) if at.ended else 0)
        return Reply(type="done", finish_reason=finish_reason, prompt_tokens=answering.prompt_tokens,
                     cached_tokens=answering.cached_tokens, completion_tokens=answering.completion_tokens,
                     timings=timings)

    # -- ends ------------------------------------------------------------------------------------------------

    def _end(self, talk: Talk) -> None:
        with self._lock:
            self._talks.pop(talk.request.id, None)
        self._changed()

    def _fail(self, talk: Talk, error: Exception) -> None:
        """Tell the asker what is wrong. Never raises."""
        reply = self._failure(talk, error)
        self._end(talk)
        try:
            talk.channel.send(reply)
        except BrokerError as away:
            log.warning("broker_away", request=talk.request.id, error=str(away))

    @staticmethod
    def _failure(talk: Talk, error: Exception) -> Reply:
        if isinstance(error, MiniMindError):
            return Reply(type="error", kind=KINDS.get(error.code, "request"), message=str(error), param=error.field)
        log.error("request_failed", request=talk.request.id, exc_info=error)
        return Reply(type="error", kind="internal", message="The model server failed on this request "
                     f"({type(error).__name__}); its log has the details.")

    def _give_up(self, key: int, error: Exception) -> None:
        """A model whose step failed: all that it answers fail with it, and it is loaded anew for the next request."""
        engine, talks = self._serving.pop(key)
        log.error("step_failed", talks=len(talks), exc_info=error)
        for talk in talks.values():  # llama.cpp's server does not end while it answers, and would hold everything up
            try:
                engine.batch.cancel(talk.answering)
            except Exception as again:  # it failed already
                log.warning("not_cancelled", request=talk.request.id, error=str(again))
        self._engines.drop(engine)
        kind = "MemoryError" if "memory" in str(error).lower() else type(error).__name__
        message = ("The model server ran out of memory; the model is loaded anew for the next request. Ask for shorter "
                   "answers, or for fewer at once." if kind == "MemoryError" else
                   f"The model server failed ({kind}); its log has the details.")
        for talk in talks.values():
            self._end(talk)
            try:
                talk.channel.send(Reply(type="error", kind="internal", message=message))
            except BrokerError as away:
                log.warning("broker_away", request=talk.request.id, error=str(away))

    def _forget_all(self) -> None:
        """End everybody, and say so as soon as the broker listens: else they would wait for ever, because the process
        that has their requests is alive."""
        talks = [talk for _, served in self._serving.values() for talk in served.values()]
        for engine, served in self._serving.values():
            for talk in served.values():
                engine.batch.cancel(talk.answering)
        self._serving.clear()
        for talk in talks:
            self._end(talk)
        deadline = time.monotonic() + TELL_WITHIN_S
        while talks and time.monotonic() < deadline:
            try:
                talks[-1].channel.send(Reply(type="error", kind="unavailable",
                                             message="The answer was interrupted. Try again."))
                talks.pop()
            except BrokerError:
                time.sleep(0.2)


def needs_own_engine(request: GenerationRequest) -> bool:
    """What llama.cpp does not do, or not in the same way: its penalties count the prompt too."""
    sampling = request.sampling
    return bool(request.adapter or request.constraint or request.echo or request.logprobs is not None
                or sampling.presence_penalty or sampling.frequency_penalty)


def _told(engine: Engine, found: CoreLogprob) -> TokenLogprob:
    def alternative(token_id: int, logprob: float | None) -> dict[str, Any]:
        raw = engine.tokenizer.token_bytes(token_id, False)
        return {"id": token_id, "text": raw.decode("utf-8", "replace"), "bytes": list(raw), "logprob": logprob}

    return TokenLogprob(**alternative(found.token_id, found.logprob),
                        top=[Alternative(**alternative(*one)) for one in found.top])
