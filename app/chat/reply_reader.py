"""Reads the replies to all requests of a web process through one connection.

One ``XREAD`` waits on the stream of every request at once: a hundred answers that grow by a token each cost one or two
commands, where a reader per request would send a hundred. A stream of its own wakes it when a request is added.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from app.core import inference as protocol
from app.core.inference import Keys, Reply
from app.core.logging import get_logger
from app.core.tasks import end

log = get_logger(__name__)

#: how often each request is kept wanted, and how often a silent one asks whether it can still be answered
RENEW_EVERY_S = protocol.WANTED_TTL_S / 4
LOOK_EVERY_S = 1.0
#: replies of one stream that are fetched at a time
_AT_ONCE = 200


@dataclass
class Waiting:
    """One request that waits for replies. ``events``: replies, and what the broker failed with."""

    request_id: str
    events: asyncio.Queue[Reply | Signs | RedisError] = field(default_factory=asyncio.Queue)
    last_id: bytes = b"0"
    process: str | None = None  # that accepted it
    heard: float = field(default_factory=time.monotonic)  # the last reply
    renewed: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Signs:
    """Of a request that was silent for a while: whether the broker still knows that it is ``wanted``, and whether the
    process that has it (before it was accepted: any) is ``alive``."""

    wanted: bool
    alive: bool


class ReplyReader:
    """Belongs to the event loop that first used it. While nobody waits, nothing runs."""

    def __init__(self, broker: redis.asyncio.Redis, keys: Keys):
        self._broker = broker
        self._keys = keys
        self._waiting: dict[str, Waiting] = {}
        self._task: asyncio.Task[None] | None = None
        #: whoever adds a request writes here, which ends the reader's wait
        self.wake_stream = keys.reply(f"reader-{secrets.token_urlsafe(12)}")
        self._woken = b"0"

    def add(self, request_id: str) -> Waiting:
        """Begin to read the replies to a request, which the caller then sends, together with ``wake``."""
        waiting = self._waiting[request_id] = Waiting(request_id)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return waiting

    def wake(self, pipe: Any) -> None:
        pipe.xadd(self.wake_stream, {"wake": 1}, maxlen=1, approximate=False)
        pipe.expire(self.wake_stream, protocol.REPLY_TTL_S)

    def remove(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    async def close(self) -> None:
        self._waiting.clear()
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        looked = time.monotonic()
        try:
            # a cancellation that arrives while the client library tidies up is not always passed on by it
            while self._waiting and not asyncio.current_task().cancelling():
                await self._read()
                now = time.monotonic()
                if now - looked >= LOOK_EVERY_S:
                    looked = now
                    await self._look(now)
        except RedisError as error:
            for waiting in self._waiting.values():
                waiting.events.put_nowait(error)
            self._waiting.clear()
        finally:
            self._task = None

    async def _read(self) -> None:
        by_stream = {self._keys.reply(w.request_id): w for w in self._waiting.values()}
        streams = {self.wake_stream: self._woken} | {name: w.last_id for name, w in by_stream.items()}
        answer = await self._broker.xread(streams, count=_AT_ONCE, block=int(LOOK_EVERY_S * 1000))
        entries = answer.items() if isinstance(answer, dict) else answer or []
        for name, found in entries:
            if name.decode() == self.wake_stream:
                self._woken = found[-1][0]
            else:
                self._tell(by_stream[name.decode()], found)

    def _tell(self, waiting: Waiting, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        waiting.heard = time.monotonic()
        for entry_id, fields in entries:
            waiting.last_id = entry_id
            try:
                reply = Reply.from_fields(fields)
            except (ValueError, KeyError):
                log.exception("reply_not_understood", request=waiting.request_id)
                reply = Reply(type="error", kind="internal", message="The model server sent an answer that cannot be "
                                                                     "read; the web process's log has the details.")
            if reply.type == "accepted":
                waiting.process = reply.process
            waiting.events.put_nowait(reply)

    async def _look(self, now: float) -> None:
        """Keep requests and their streams, and tell the silent ones what can be known of their process."""
        asked = [w for w in self._waiting.values()
                 if now - w.heard >= LOOK_EVERY_S or now - w.renewed >= RENEW_EVERY_S]
        if not asked:
            return
        keys = [self._keys.process(w.process) if w.process else self._keys.heartbeat for w in asked]
        async with self._broker.pipeline(transaction=False) as pipe:
            for waiting in asked:
                pipe.expire(self._keys.wanted(waiting.request_id), protocol.WANTED_TTL_S)
            for waiting in asked:
                pipe.expire(self._keys.reply(waiting.request_id), protocol.REPLY_TTL_S)
            alive_keys = list(dict.fromkeys(keys))
            for key in alive_keys:
                pipe.exists(key)
            answers = await pipe.execute()
        alive = dict(zip(alive_keys, answers[2 * len(asked):], strict=True))
        for waiting, key, wanted in zip(asked, keys, answers, strict=False):
            waiting.renewed = now
            if now - waiting.heard >= LOOK_EVERY_S:
                waiting.events.put_nowait(Signs(bool(wanted), bool(alive[key])))
