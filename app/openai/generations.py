"""Several generations as one stream: the answers to ``n``, or to several prompts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from app.core.inference import Reply
from app.core.tasks import end


@dataclass(eq=False)
class _Heard:
    """What came from the source at a place: a reply, what it failed with, or its end."""

    at: int
    what: Reply | Exception | None


class Unread:
    """What was heard and is not yet read. Deltas of one source that nobody has read become one: a reader who is behind
    catches up in one event, where each token would cost him (and the event loop that all share) another."""

    def __init__(self) -> None:
        self._heard: deque[_Heard] = deque()
        self._last: dict[int, _Heard] = {}  # unread, by source
        self._is_there = asyncio.Event()

    def put(self, at: int, what: Reply | Exception | None) -> None:
        last = self._last.get(at)
        if last is not None and _is_delta(last.what) and _is_delta(what):
            last.what = joined(last.what, what)
            return
        self._last[at] = _Heard(at, what)
        self._heard.append(self._last[at])
        self._is_there.set()

    async def get(self) -> tuple[int, Reply | Exception | None]:
        """By one reader at a time."""
        while not self._heard:
            self._is_there.clear()
            await self._is_there.wait()
        first = self._heard.popleft()
        if self._last[first.at] is first:
            del self._last[first.at]
        return first.at, first.what


class Generations:
    """Replies of all ``sources`` as they come, each with its source's place. Where one fails, so do all."""

    def __init__(self, sources: Sequence[AsyncGenerator[Reply, None]]):
        self._sources = sources
        self._unread = Unread()
        self._tasks: list[asyncio.Task[None]] = []
        self._first: tuple[int, Reply] | None = None

    async def start(self) -> None:
        """Ask for all, and wait until the model has begun with one of them. Raises what the sources raise."""
        self._tasks = [asyncio.ensure_future(self._listen(at, source)) for at, source in enumerate(self._sources)]
        while self._first is None:
            at, reply = await self._next()
            if reply is not None and reply.type == "started":
                self._first = at, reply

    async def replies(self) -> AsyncIterator[tuple[int, Reply]]:
        """``started``, ``delta``..., ``done`` of each. Raises what the sources raise."""
        running = len(self._sources)
        if self._first is not None:
            yield self._first
        while running:
            at, reply = await self._next()
            if reply is None:
                running -= 1
            elif reply.type in ("started", "delta", "done"):
                yield at, reply

    async def close(self) -> None:
        """End what still runs. Whoever awaits this may be cancelled: the end goes on by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.shield(asyncio.ensure_future(end(*self._tasks)))

    async def _next(self) -> tuple[int, Reply | None]:
        at, what = await self._unread.get()
        if isinstance(what, Exception):
            raise what
        return at, what

    async def _listen(self, at: int, source: AsyncGenerator[Reply, None]) -> None:
        try:
            async for reply in source:
                self._unread.put(at, reply)
            self._unread.put(at, None)
        except Exception as error:  # whoever reads gets it
            self._unread.put(at, error)
        finally:
            await source.aclose()


def joined(first: Reply, second: Reply) -> Reply:
    """Two deltas that follow each other as one."""
    tokens = None if first.tokens is None and second.tokens is None else [*(first.tokens or []), *(second.tokens or [])]
    return Reply(type="delta", text=first.text + second.text, tokens=tokens)


def _is_delta(what: Reply | Exception | None) -> bool:
    return isinstance(what, Reply) and what.type == "delta"
