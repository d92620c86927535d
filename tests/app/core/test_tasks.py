"""Tasks that are told to end do end."""

from __future__ import annotations

import asyncio

from app.core import tasks


def test_a_task_that_swallows_a_cancellation_is_told_again(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_AFTER_S", 0.01)

    async def stubborn() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(60)

    async def failing() -> None:
        raise ValueError

    async def story() -> None:
        others = [asyncio.ensure_future(work) for work in (stubborn(), failing(), asyncio.sleep(0))]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await tasks.end(*others)
        assert others[0].cancelled() and isinstance(others[1].exception(), ValueError) and others[2].done()

    asyncio.run(story())
