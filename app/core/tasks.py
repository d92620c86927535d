"""Ending tasks of the event loop for certain."""

from __future__ import annotations

import asyncio

AGAIN_AFTER_S = 0.2


async def end(*tasks: asyncio.Future) -> None:
    """Cancel ``tasks`` and wait until they are over, whatever they make of it.

    One ``cancel()`` is not enough: on Python 3.11 ``asyncio.wait_for``, through which redis-py sends every command,
    swallows a cancellation that arrives together with its result, and the task goes on as if nothing had been said.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_AFTER_S)
    await asyncio.gather(*tasks, return_exceptions=True)  # what they failed with is of no interest any more
