"""Several generations as one stream: the answers to ``n``, or to several prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from app.core.inference import Reply
from app.core.tasks import end


class Generations:
    """Replies of all ``sources`` as they come, each with its source's place. Where one fails, so do all."""

    def __init__(self, sources: Sequence[AsyncGenerator[Reply, None]]):
        self._sources = sources
        self._heard: asyncio.Queue[tuple[int, Reply | Exception | None]] = asyncio.Queue()
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
        at, heard = await self._heard.get()
        if isinstance(heard, Exception):
            raise heard
        return at, heard

    async def _listen(self, at: int, source: AsyncGenerator[Reply, None]) -> None:
        try:
            async for reply in source:
                self._heard.put_nowait((at, reply))
            self._heard.put_nowait((at, None))
        except Exception as error:  # whoever reads gets it
            self._heard.put_nowait((at, error))
        finally:
            await source.aclose()
