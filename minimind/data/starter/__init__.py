"""The starter corpus: a small consistent world, written anew from a seed in English, Chinese and Portuguese.

Some people live in it, each with a home town, a job, a pet and more. ``text`` tells about them in many ways,
``dialogues`` talk about them, and ``questions`` ask about facts that the text tells but that nobody asks about in
text or dialogues. Everything depends on ``minutes`` (the time budget of training, which sets the size of the world),
``languages`` and ``seed`` alone; the same three give the same bytes everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from minimind.data.starter.dialogues import dialogues
from minimind.data.starter.plan import LANGUAGES, Plan, plan
from minimind.data.starter.questions import Question, held_out_questions, is_right
from minimind.data.starter.text import documents
from minimind.data.starter.world import World, make_world
from minimind.errors import DataError

__all__ = ["LANGUAGES", "LAYOUT_OF_PART", "PARTS", "Plan", "Question", "SAMPLE_PROMPTS", "World", "generate",
           "is_right", "make_world", "plan", "questions", "write"]

PARTS = ("text", "dialogues")
LAYOUT_OF_PART = {"text": "text", "dialogues": "conversations"}

#: what a model is asked again and again while it trains
SAMPLE_PROMPTS = {
    "en": ("Who are you?", "Where does Anna live?", "Tell me a story."),
    "zh": ("你是谁？", "安娜住在哪里？", "讲个故事吧。"),
    "pt": ("Quem é você?", "Onde Ana mora?", "Conte uma história."),
}


def generate(part: str, *, minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None,
             seed: int = 42) -> Iterator[dict]:
    """Rows of one part: ``{"text"}`` or ``{"conversations"}``. Raises ``DataError`` for an unknown part."""
    if part not in PARTS:
        raise DataError(f"The starter corpus has no part named {part!r}.", field="part",
                        hint=f"Parts are {', '.join(PARTS)}.")
    world = make_world(minutes, tuple(languages) if languages else None, seed)
    if part == "text":
        return ({"text": text} for text in documents(world))
    return ({"conversations": messages} for messages in dialogues(world))


def write(part: str, path: Path | str, *, minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None,
          seed: int = 42) -> Path:
    """Write one part as jsonl; the file appears whole or not at all."""
    path = Path(path)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            for row in generate(part, minutes=minutes, languages=languages, seed=seed):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def questions(*, minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None, seed: int = 42,
              count: int | None = 8) -> list[Question]:
    """Held-out questions about the world of these three numbers; ``count=None`` gives every one there is."""
    return held_out_questions(make_world(minutes, tuple(languages) if languages else None, seed), count)
