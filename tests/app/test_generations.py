"""Several sources as one stream, and what becomes of pieces that nobody has read yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from app.core.inference import Reply
from app.openai.generations import Generations, Unread
from tests.app.openai_rig import token


def delta(text: str, *tokens: str) -> Reply:
    return Reply(type="delta", text=text, tokens=[token(one) for one in tokens] or None)


def read_all(unread: Unread, count: int) -> list[tuple[int, object]]:
    async def read() -> list[tuple[int, object]]:
        return [await asyncio.wait_for(unread.get(), 5) for _ in range(count)]

    return asyncio.run(read())


def test_unread_pieces_of_one_answer_become_one_piece_with_all_their_tokens() -> None:
    unread, done = Unread(), Reply(type="done", finish_reason="stop")
    for at, piece in enumerate([delta("a", "a"), delta("b", "b", "c"), delta("d")]):
        unread.put(0, piece)
        unread.put(1, delta(str(at)))
    unread.put(0, done)
    unread.put(1, None)
    (_, first), second, *rest = read_all(unread, 4)
    assert first.text == "abd" and [one.text for one in first.tokens] == ["a", "b", "c"]
    assert second == (1, delta("012")) and second[1].tokens is None
    assert rest == [(0, done), (1, None)]


def test_what_was_read_is_not_changed_and_nothing_is_joined_across_an_end() -> None:
    unread = Unread()
    unread.put(0, delta("a"))
    (_, first), = read_all(unread, 1)
    unread.put(0, delta("b"))
    failed = ValueError("no")
    unread.put(0, failed)
    assert first.text == "a" and read_all(unread, 2) == [(0, delta("b")), (0, failed)]


def test_a_reader_who_is_behind_catches_up_in_one_event() -> None:
    """And one who is not gets each piece by itself."""
    is_read, go_on = [], asyncio.Event()

    async def source() -> AsyncGenerator[Reply, None]:
        yield Reply(type="started", prompt_tokens=1)
        for piece in "abc":
            yield delta(piece)
            await asyncio.sleep(0.05)
        await go_on.wait()
        for piece in "defg":
            yield delta(piece)
        yield Reply(type="done", finish_reason="stop")

    async def read() -> None:
        generations = Generations([source()])
        await generations.start()
        try:
            async for _, reply in generations.replies():
                is_read.append(reply.text or reply.type)
                if reply.text == "c":
                    go_on.set()
        finally:
            await generations.close()

    asyncio.run(read())
    assert is_read == ["started", "a", "b", "c", "defg", "done"]


def test_a_failure_comes_behind_what_was_said_before_it() -> None:
    async def source() -> AsyncGenerator[Reply, None]:
        yield Reply(type="started", prompt_tokens=1)
        yield delta("a")
        raise ValueError("no")

    async def read() -> list[str]:
        generations, heard = Generations([source()]), []
        await generations.start()
        with pytest.raises(ValueError, match="no"):
            async for _, reply in generations.replies():
                heard.append(reply.text or reply.type)
        await generations.close()
        return heard

    assert asyncio.run(read()) == ["started", "a"]
