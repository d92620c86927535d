"""``/v1`` before a scripted inference process: what it is asked is written down, what it answers is told by the test.

The broker and the web process's side are real; only who computes is not.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from app.core.db import transaction
from app.core.inference import GenerationRequest, Keys, Reply, Timings, TokenLogprob
from app.core.models import LOCAL_ADMIN_ID, Checkpoint, Run
from tests.app.conftest import Api
from tests.inference_rig import Broker

MODEL = "ckptone"
HELLO = [{"role": "user", "content": "Where is the lamp?"}]
KEYS = Keys()


def token(text: str | bytes, id: int = 0, logprob: float | None = -0.5, **top: float) -> TokenLogprob:
    raw = text.encode() if isinstance(text, str) else text
    alternatives = [{"id": at, "text": name, "bytes": list(name.encode()), "logprob": value}
                    for at, (name, value) in enumerate(top.items())]
    return TokenLogprob(id=id, text=raw.decode("utf-8", "replace"), bytes=list(raw), logprob=logprob, top=alternatives)


def said(*pieces: str | Reply, prompt_tokens: int = 7, finish: str = "stop", cached: int = 2,
         tokens: int | None = None, **started: Any) -> list[Reply]:
    """Replies to one request: texts as deltas."""
    deltas = [p if isinstance(p, Reply) else Reply(type="delta", text=p) for p in pieces]
    timings = Timings(queue_s=0.25, prefill_s=0.5, decode_s=2.0)
    return [Reply(type="started", prompt_tokens=prompt_tokens, cached_tokens=cached, **started), *deltas,
            Reply(type="done", finish_reason=finish, prompt_tokens=prompt_tokens, timings=timings,
                  completion_tokens=len(deltas) if tokens is None else tokens)]


def failed(kind: str, message: str = "No.", param: str | None = None) -> Reply:
    return Reply(type="error", kind=kind, message=message, param=param)


Script = Callable[[GenerationRequest], list[Reply]]


@dataclass
class Process:
    """Answers every request by ``script``; with ``pace_s`` a reply at a time, until nobody wants it any more."""

    broker: redis.Redis
    script: Script = lambda request: said("Here.")
    pace_s: float = 0.0
    asked: list[GenerationRequest] = field(default_factory=list)
    #: when each request that was left was noticed, by its id
    left: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _active: list[tuple[GenerationRequest, list[Reply]]] = field(default_factory=list)

    @property
    def last(self) -> GenerationRequest:
        return self.asked[-1]

    def run(self) -> None:
        try:
            self._serve()
        except redis.ConnectionError:  # a test that takes the broker away stops this first
            assert self._stop.is_set()

    def _serve(self) -> None:
        for key in (KEYS.heartbeat, KEYS.process("scripted")):
            self.broker.set(key, "{}", ex=600)
        seen = "0"
        while not self._stop.is_set():
            found = self.broker.xread({KEYS.requests: seen}, count=100, block=5)
            entries = (found.get(KEYS.requests.encode()) if isinstance(found, dict) else found[0][1]) if found else []
            for seen, fields in entries:
                self.broker.xdel(KEYS.requests, seen)
                request = GenerationRequest.from_fields(fields)
                self.asked.append(request)
                self._active.append((request, [Reply(type="accepted", process="scripted"), *self.script(request)]))
            self._step()

    def _step(self) -> None:
        """As the real one: all wishes in one look, then a reply of each in one message."""
        with self.broker.pipeline(transaction=False) as pipe:
            for request, _ in self._active:
                pipe.exists(KEYS.wanted(request.id))
            wanted = pipe.execute()
            for (request, replies), is_wanted in zip(self._active, wanted, strict=True):
                if not is_wanted:
                    self.left[request.id] = time.monotonic()
                    replies.clear()
                for reply in replies[:1] if self.pace_s else replies:
                    pipe.xadd(KEYS.reply(request.id), reply.fields())
                    pipe.expire(KEYS.reply(request.id), 60)
                del replies[:1 if self.pace_s else None]
            pipe.execute()
        self._active = [(request, replies) for request, replies in self._active if replies]
        if self._active:
            time.sleep(self.pace_s)

    def stop(self) -> None:
        self._stop.set()


@dataclass
class V1:
    """A client of ``/v1``, and the scripted process behind it."""

    api: Api
    process: Process

    def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        """By the one client whose requests share an event loop, as those of a web process do."""
        return self.api.http.post(f"/v1{path}", json={"model": MODEL, **body}, headers=headers)

    def chat(self, **body: Any) -> dict[str, Any]:
        """The answer to a chat; it must succeed."""
        answer = self.post("/chat/completions", {"messages": HELLO, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def text(self, **body: Any) -> dict[str, Any]:
        answer = self.post("/completions", {"prompt": "The lamp", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stream(self, path: str = "/chat/completions", **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream that ends as it should."""
        first = {"messages": HELLO} if path.startswith("/chat") else {"prompt": "The lamp"}
        answer = self.post(path, {**first, "stream": True, **body})
        assert answer.status_code == 200, answer.text
        events = answer.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(e.removeprefix("data: ")) for e in events[:-2]]


def add_checkpoint(id: str = MODEL, path: str = "/nowhere/one") -> None:
    with transaction() as session:
        if session.get(Run, "runone") is None:
            session.add(Run(id="runone", name="one", user_id=LOCAL_ADMIN_ID, stage="sft", config={}, devices="auto",
                            state="completed", created_at=1e9, updated_at=1e9, ended_at=1e9))
            session.flush()
        session.add(Checkpoint(id=id, run_id="runone", attempt=1, stage="sft", step=1, tokens=1, bytes=1, path=path,
                               state="ready", created_at=1e9))


def scripted_v1(api: Api, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[V1]:
    add_checkpoint()
    with redis.Redis.from_url(broker.url) as connection:
        connection.flushdb()
        process = Process(connection)
        thread = threading.Thread(target=process.run)
        thread.start()
        try:
            yield V1(api, process)
        finally:
            process.stop()
            thread.join(10)
