"""What a container holds before anybody knows what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Record:
    """One row as it stands in a file.

    ``line`` counts from 1 and is where it begins; ``element`` is its number in an array, or None where a line is a
    row; ``done``: bytes of the member read so far; ``problem``: why it cannot be used, known already by its form.
    """

    line: int
    element: int | None
    value: Any
    done: int
    problem: str | None = None

    @property
    def place(self) -> str:
        return f"line {self.line}" + (f" (element {self.element})" if self.element else "")
