"""Writes what all requests of a web process have to say to the broker through one connection.

Whoever asks, or leaves, while something is being written goes with the next write: a crowd that arrives at the same
moment costs a few round trips, where each of its requests would cost four, and a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from app.core import inference as protocol
from app.core.inference import Keys
from app.core.logging import get_logger

log = get_logger(__name__)

#: id and fields of a request, and whether it was taken
Asked = tuple[str, dict[str, str], "asyncio.Future[bool]"]


class RequestWriter:
    """Belongs to the event loop that first used it. ``wake`` adds to a pipeline what wakes the reader of replies."""

    def __init__(self, broker: redis.asyncio.Redis, keys: Keys, wake: Callable[[Any], None]):
        self._broker, self._keys, self._wake = broker, keys, wake
        self._asked: list[Asked] = []
        self._left: list[str] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, request_id: str, fields: dict[str, str]) -> bool:
        """Send a request; False where too many wait already. Raises ``RedisError``."""
        taken = asyncio.get_running_loop().create_future()
        self._asked.append((request_id, fields, taken))
        self._begin()
        return await taken

    def leave(self, request_id: str) -> None:
        """Tell the process, soon, that nobody listens any more."""
        self._left.append(request_id)
        self._begin()

    async def close(self) -> None:
        """Write what waits."""
        if self._task is not None:
            await self._task

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._asked or self._left:
                asked, self._asked = self._asked, []
                left, self._left = self._left, []
                await self._write([one for one in asked if not one[2].done()], left)
        finally:
            self._task = None

    async def _write(self, asked: list[Asked], left: list[str]) -> None:
        """``asked`` without those who left before they were sent."""
        try:
            room = max(protocol.MAX_WAITING - await self._broker.xlen(self._keys.requests), 0) if asked else 0
            async with self._broker.pipeline(transaction=True) as pipe:
                for request_id in left:
                    pipe.delete(self._keys.wanted(request_id), self._keys.reply(request_id))
                for request_id, fields, _ in asked[:room]:
                    pipe.set(self._keys.wanted(request_id), 1, ex=protocol.WANTED_TTL_S)
                    pipe.xadd(self._keys.requests, fields)
                if asked[:room]:
                    self._wake(pipe)
                await pipe.execute()
        except Exception as error:  # the broker's, or the event loop's own of a connection that died; nobody may wait
            if not isinstance(error, RedisError):
                log.exception("requests_not_written", requests=len(asked))
            if left:
                log.info("wishes_expire_by_themselves", requests=len(left), error=str(error))
            for *_, taken in asked:
                if not taken.done():
                    taken.set_exception(error)
            return
        for place, (*_, taken) in enumerate(asked):
            if not taken.done():
                taken.set_result(place < room)
