"""What every teacher gives: an answer, or the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from minimind.errors import MiniMindError

#: why a question may stay without an answer, and how that is said
LEFT_OUT = {
    "cut": "cut off by max_tokens",
    "empty": "empty",
    "refused": "refused by the teacher",
    "failed": "failed again and again",
    "too_long": "too long for the teacher's context",
}
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*(.*)", re.DOTALL)


class TeacherError(MiniMindError):
    """The teacher cannot go on: a wrong address, key or model, or a server that stays away."""

    code = "TEACHER"


@dataclass(frozen=True)
class Answer:
    """``left_out``: None, or a key of ``LEFT_OUT``; ``note`` is then what the teacher said about it."""

    content: str = ""
    reasoning: str = ""
    left_out: str | None = None
    note: str = ""

    @classmethod
    def of(cls, text: str, reasoning: str = "", *, is_cut: bool = False) -> Answer:
        """What a teacher wrote; a ``<think>`` block at its beginning is its reasoning."""
        found = _THOUGHT.match(text) if not reasoning and "</think>" in text else None
        if found:
            reasoning, text = found.groups()
        if is_cut:
            return cls(left_out="cut")
        if not text.strip():
            return cls(left_out="empty")
        return cls(text.strip(), reasoning.strip())

    def message(self) -> dict[str, str]:
        """The assistant's message of a row."""
        thought = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.content, **thought}


class Teacher(Protocol):
    """``ask`` is called from several threads at once, up to ``max_concurrency``."""

    max_concurrency: int

    def identity(self) -> dict[str, Any]:
        """What makes its answers what they are: a journal is continued only by the same teacher."""

    def ask(self, messages: list[dict], number: int, should_stop: Callable[[], bool]) -> Answer | None:
        """The answer to question ``number``; None where it was stopped on the way. Raises ``TeacherError`` where
        asking on is no use."""

    def close(self) -> None:
        """End what is being asked, soon."""
