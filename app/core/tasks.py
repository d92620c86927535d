"""Tasks of the event loop: ending them for certain, letting a crowd of them in one by one, and one in place of many
that would do the same."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

Question = TypeVar("Question")
Answer = TypeVar("Answer")

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


class Together(Generic[Question, Answer]):
    """``await together(question)`` is ``look(question)`` of a thread. Who asks the same while a look is being taken
    shares the next one, which begins after all of them have asked: it is as fresh as one of their own.

    A crowd that arrives at once costs two looks in place of a hundred threads that keep the event loop waiting.
    """

    def __init__(self, look: Callable[[Question], Answer]):
        self._look = look
        # by event loop too: tests have several
        self._next: dict[tuple[asyncio.AbstractEventLoop, Question], asyncio.Task[Answer]] = {}
        self._running: dict[tuple[asyncio.AbstractEventLoop, Question], asyncio.Task[Answer]] = {}

    async def __call__(self, question: Question) -> Answer:
        key = (asyncio.get_running_loop(), question)
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.ensure_future(self._answer(key, self._running.get(key)))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # also where all have left
        return await asyncio.shield(task)

    async def _answer(self, key: tuple[asyncio.AbstractEventLoop, Question],
                      before: asyncio.Task[Answer] | None) -> Answer:
        if before is not None:
            await asyncio.wait({before})
        self._running[key] = self._next.pop(key)
        try:
            return await run_in_threadpool(self._look, key[1])
        finally:
            del self._running[key]


class Turnstile:
    """``await turnstile()`` lets one task through in each turn of the event loop, in the order in which they come.

    What a hundred new requests have to do first would else be one turn of a tenth of a second, and whoever is being
    answered waits some turns for each piece of his answer.
    """

    def __init__(self) -> None:
        # by event loop: tests have several
        self._waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]]
        self._waiting = weakref.WeakKeyDictionary()

    async def __call__(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        if waiting is None:  # nobody was let through in this turn
            self._waiting[loop] = deque()
            loop.call_soon(self._turn, loop)
            return
        turn = loop.create_future()
        waiting.append(turn)
        await turn

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._waiting[loop]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():  # he may have left
                turn.set_result(None)
                loop.call_soon(self._turn, loop)
                return
        del self._waiting[loop]
