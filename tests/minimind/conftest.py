from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.teacher_rig import Server, echo


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """``serve(reply)``: a running teacher, see ``teacher_rig.Server``; without a reply it repeats the question."""
    with ExitStack() as running:
        yield lambda reply=echo: running.enter_context(Server(reply))


@pytest.fixture
def no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are read in this process, which takes no second; test_pth.py tries the other process."""
    from minimind.formats import pth, pth_reader

    monkeypatch.setattr(pth, "_read_apart", lambda path, out: pth_reader.answer(str(path), str(out)))
