"""The inference process: keeps checkpoints in memory and answers over Redis streams.

    python -m worker.inference

One per host, started by ``./studio up`` or ``./studio inference``. Three threads: the main one takes requests,
one generates (torch is imported there, at the first request), one gives signs of life. No request, checkpoint or
broker restart ends it; SIGTERM does, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.core import inference as protocol
from app.core.inference import GenerationRequest, Keys, Reply
from app.core.logging import get_logger, setup
from app.core.settings import Settings, get_settings
from minimind.errors import MiniMindError
from minimind.lifeline import die_as_told
from worker.engines import EngineCache, memory_for_engines

log = get_logger(__name__)

BrokerError = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)


class ReplyChannel:
    """The reply stream of one request, and whether anybody still reads it."""

    def __init__(self, broker: redis.Redis, keys: Keys, request_id: str):
        self._broker = broker
        self._stream = keys.reply(request_id)
        self._wanted = keys.wanted(request_id)

    def send(self, reply: Reply) -> None:
        with self._broker.pipeline(transaction=False) as pipe:
            pipe.xadd(self._stream, reply.fields(), maxlen=protocol.REPLY_MAX_EVENTS, approximate=True)
            pipe.expire(self._stream, protocol.REPLY_TTL_S)
            pipe.execute()

    def abandoned(self) -> bool:
        """True once the asker left, died, or the broker lost the request."""
        return not self._broker.exists(self._wanted)


class InferenceProcess:
    """Takes requests from the configured broker and answers them one after the other."""

    def __init__(self, settings: Settings, engines: EngineCache):
        # No silent retry: a reply that was sent twice would show a word twice. A pooled connection that the
        # broker closed is noticed and replaced before use.
        self.broker = redis.Redis.from_url(settings.broker_url, socket_timeout=10, socket_connect_timeout=5,
                                           retry=Retry(NoBackoff(), 0))
        self.keys = Keys(settings.redis_prefix)
        self.host_id = settings.host_id
        self.engines = engines
        self.name = f"{settings.host_id}-{os.getpid()}-{secrets.token_hex(4)}"
        self.state = "ready"
        self._waiting: queue.Queue[GenerationRequest] = queue.Queue(protocol.MAX_WAITING)

    def run(self) -> None:
        """Serve until the process ends."""
        self._announce()
        threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._generate_forever, name="generate", daemon=True).start()
        log.info("inference_ready", name=self.name)
        self._take_forever()

    # -- taking requests -------------------------------------------------------------------------------------

    def _take_forever(self) -> None:
        pause_s = 0.1
        while True:
            try:
                self._make_group()
                self._beat()  # an asker trusts only a process that shows signs of life
                while True:
                    self._take()
                    pause_s = 0.1
            except BrokerError as error:
                log.warning("broker_away", error=str(error))
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):  # a broker that restarted empty: make the group again
                    log.warning("broker_refused", error=str(error))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)

    def _make_group(self) -> None:
        try:
            self.broker.xgroup_create(self.keys.requests, protocol.GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _take(self) -> None:
        answer = self.broker.xreadgroup(protocol.GROUP, self.name, {self.keys.requests: ">"}, count=16,
                                        block=1000, noack=True)
        for _, entries in answer or []:
            for entry_id, fields in entries:
                self.broker.xdel(self.keys.requests, entry_id)
                self._accept(fields)

    def _accept(self, fields: dict[bytes, bytes]) -> None:
        try:
            request = GenerationRequest.from_fields(fields)
        except ValueError as error:
            log.warning("request_rejected", error=str(error))
            return
        channel = ReplyChannel(self.broker, self.keys, request.id)
        if channel.abandoned():
            log.info("request_too_late", request=request.id)
            return
        if self._waiting.full():  # nobody but this thread puts anything in
            channel.send(Reply(type="error", kind="busy", message=f"{protocol.MAX_WAITING} requests already wait for "
                                                                  "this model server. Try again in a few seconds."))
            return
        channel.send(Reply(type="accepted", process=self.name))  # before the generating thread can say anything
        self._waiting.put_nowait(request)

    # -- generating ------------------------------------------------------------------------------------------

    def _generate_forever(self) -> None:
        while True:
            request = self._waiting.get()
            try:
                self._answer(request)
            except BrokerError as error:
                log.warning("broker_away", request=request.id, error=str(error))
            except Exception:  # whatever it was, the next request deserves an answer
                log.exception("request_failed", request=request.id)
            finally:
                self.state = "ready"

    def _answer(self, request: GenerationRequest) -> None:
        channel = ReplyChannel(self.broker, self.keys, request.id)
        if channel.abandoned():
            return
        try:
            self._generate(request, channel)
        except MiniMindError as error:
            kind = {"CHECKPOINT": "checkpoint", "CONTEXT_LENGTH": "context_length"}.get(error.code, "request")
            channel.send(Reply(type="error", kind=kind, message=str(error), param=error.field))
        except BrokerError:
            raise
        except Exception as error:
            log.exception("request_failed", request=request.id)
            channel.send(Reply(type="error", kind="internal", message="The model server failed on this request "
                               f"({type(error).__name__}); its log has the details."))

    def _generate(self, request: GenerationRequest, channel: ReplyChannel) -> None:
        path, adapter = Path(request.checkpoint), request.adapter and Path(request.adapter)
        if not self.engines.has(path, adapter):
            self.state = "loading"
            channel.send(Reply(type="loading"))
        engine = self.engines.get(path, adapter)
        self.state = "generating"

        from minimind.engine import SamplingParams

        if request.messages is not None:
            prompt = engine.encode_chat(request.messages, open_thinking=request.open_thinking)
        else:
            prompt = engine.tokenizer.encode(request.prompt)
        params = SamplingParams(**request.sampling.model_dump())
        completion_tokens, started = 0, False
        for delta in engine.stream(prompt, params, channel.abandoned):
            if not started:
                channel.send(Reply(type="started", prompt_tokens=len(prompt)))
                started = True
            completion_tokens += delta.token_id is not None
            if delta.text:
                channel.send(Reply(type="delta", text=delta.text))
            if delta.finish_reason:
                channel.send(Reply(type="done", finish_reason=delta.finish_reason, prompt_tokens=len(prompt),
                                   completion_tokens=completion_tokens))

    # -- signs of life ---------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Say that the process which served this host before is gone, so that its askers need not wait."""
        with contextlib.suppress(*BrokerError):
            before = self.broker.set(self.keys.host(self.host_id), self.name, get=True)
            if before:
                self.broker.delete(self.keys.process(before.decode()))
            self._beat()

    def _beat(self) -> None:
        status: dict[str, Any] = {"process": self.name, "host": self.host_id, "pid": os.getpid(),
                                  "state": self.state, "waiting": self._waiting.qsize()}
        with self.broker.pipeline(transaction=False) as pipe:
            for key in (self.keys.heartbeat, self.keys.process(self.name)):
                pipe.set(key, json.dumps(status), ex=protocol.HEARTBEAT_TTL_S)
            pipe.execute()

    def _beat_forever(self) -> None:
        while True:
            try:
                self._beat()
            except redis.RedisError as error:
                log.warning("heartbeat_not_sent", error=str(error))
            time.sleep(protocol.HEARTBEAT_INTERVAL_S)


def main() -> None:
    die_as_told()
    # Nothing here needs saving, and Python's default would leave pid 1 of a container deaf to SIGTERM.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    setup("inference")
    with contextlib.suppress(OSError):
        os.nice(5)  # a training on the same cores goes first
    engines = EngineCache(os.environ.get("STUDIO_INFERENCE_DEVICE", "cpu"),
                          max_engines=int(os.environ.get("STUDIO_INFERENCE_MODELS", "4")),
                          max_bytes=memory_for_engines())
    InferenceProcess(get_settings(), engines).run()


if __name__ == "__main__":
    main()
