"""Tasks that are told to end do end; equal ones are one."""

from __future__ import annotations

import asyncio
import threading

from app.core import tasks
from app.core.tasks import Together, Turnstile


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


def test_equal_questions_at_the_same_time_share_one_look() -> None:
    """One is looking, the others share the next look, which sees what was true when the last of them asked."""
    looks: list[tuple[str, int]] = []
    truth = 1
    may_end = threading.Event()

    def look(question: str) -> int:
        looks.append((question, truth))
        seen = truth
        may_end.wait(5)
        return seen

    async def crowd() -> tuple[list[int], int]:
        nonlocal truth
        ask = Together(look)
        first = asyncio.ensure_future(ask("a"))
        while not looks:
            await asyncio.sleep(0.005)
        later = [asyncio.ensure_future(ask("a")) for _ in range(50)]
        other = asyncio.ensure_future(ask("b"))
        await asyncio.sleep(0.05)
        later[7].cancel()  # who leaves takes nothing from the others
        truth = 2
        may_end.set()
        answers = [await first, await other, *(await asyncio.gather(*later[:7], *later[8:]))]
        return answers, await ask("a")

    answers, afterwards = asyncio.run(crowd())
    assert answers == [1, 1, *[2] * 49] and afterwards == 2
    assert sorted(looks) == [("a", 1), ("a", 2), ("a", 2), ("b", 1)]


def test_what_a_shared_look_fails_with_is_everybody_s() -> None:
    def look(question: str) -> int:
        raise ValueError(question)

    async def crowd() -> list[object]:
        ask = Together(look)
        return await asyncio.gather(*(ask("away") for _ in range(3)), return_exceptions=True)

    assert [repr(error) for error in asyncio.run(crowd())] == ["ValueError('away')"] * 3


def test_a_crowd_is_let_in_one_by_one_and_in_order() -> None:
    """Whoever has something small to do has a turn between any two of them; one who leaves holds nobody up."""
    story: list[str] = []

    async def enter(turnstile: Turnstile, name: str) -> None:
        await turnstile()
        story.append(name)

    async def crowd() -> None:
        turnstile = Turnstile()
        for _ in range(2):  # it is as new once all are through
            tasks_ = [asyncio.ensure_future(enter(turnstile, str(n))) for n in range(5)]
            await asyncio.sleep(0)
            tasks_[2].cancel()
            while not all(task.done() for task in tasks_):
                story.append("-")
                await asyncio.sleep(0)
            story.append("-")

    asyncio.run(crowd())
    entered = [name for name in story if name != "-"]
    assert entered == ["0", "1", "3", "4"] * 2
    assert all("-" in (a, b) for a, b in zip(story, story[1:])), story
