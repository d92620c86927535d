"""The starter corpus: a small consistent world, written anew from a seed in English, Chinese and Portuguese.

Some people live in it, each with a home town, a job, a pet and more. ``generate`` and ``write`` give its parts:

=============== ===================================================== =======================================
part            for                                                   measured with
=============== ===================================================== =======================================
``text``        pretraining: tells about the people in many ways      ``questions``
``dialogues``   fine-tuning: talks about them                         ``questions``
``preferences`` DPO: two answers, the first one kind and true         ``held_out_pairs``
``tools``       fine-tuning: calls of functions, answers from results ``tool_questions``
``identity``    LoRA: the same knowledge under another name           ``identity_questions``
``questions``   black-box distillation: for a teacher to answer
=============== ===================================================== =======================================

``questions()`` are about facts that the text tells but that nobody asks about in any part; the other measures too
ask for what their part keeps back. Everything depends on ``minutes`` (the time budget of training, which sets the
size of the world), ``languages`` and ``seed`` alone; the same three give the same bytes everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from minimind.data.starter import identity, preferences, tools
from minimind.data.starter.dialogues import dialogues
from minimind.data.starter.plan import LANGUAGES, Plan, plan
from minimind.data.starter.questions import Question, held_out_questions, is_right
from minimind.data.starter.teacher_questions import teacher_questions
from minimind.data.starter.text import documents
from minimind.data.starter.tools import ToolQuestion
from minimind.data.starter.world import World, make_world
from minimind.errors import DataError

__all__ = ["LANGUAGES", "LAYOUT_OF_PART", "PARTS", "Plan", "Question", "SAMPLE_PROMPTS", "ToolQuestion", "World",
           "generate", "held_out_pairs", "identity_questions", "is_right", "make_world", "plan", "questions",
           "tool_questions", "write"]

LAYOUT_OF_PART = {"text": "text", "dialogues": "conversations", "preferences": "dpo", "tools": "conversations",
                  "identity": "conversations", "questions": "questions"}
PARTS = tuple(LAYOUT_OF_PART)

_ROWS: dict[str, Callable[[World], Iterator[dict]]] = {
    "text": lambda world: ({"text": text} for text in documents(world)),
    "dialogues": lambda world: ({"conversations": messages} for messages in dialogues(world)),
    "preferences": preferences.pairs,
    "tools": lambda world: ({"conversations": messages} for messages in tools.conversations(world)),
    "identity": lambda world: ({"conversations": messages} for messages in identity.conversations(world)),
    "questions": lambda world: ({"question": text} for text in teacher_questions(world)),
}

#: what a model is asked again and again while it trains
SAMPLE_PROMPTS = {
    "en": ("Who are you?", "Where does Anna live?", "Tell me a story."),
    "zh": ("你是谁？", "安娜住在哪里？", "讲个故事吧。"),
    "pt": ("Quem é você?", "Onde Ana mora?", "Conte uma história."),
}


def generate(part: str, *, minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None,
             seed: int = 42) -> Iterator[dict]:
    """Rows of one part in the layout that ``LAYOUT_OF_PART`` names. Raises ``DataError`` for an unknown part."""
    if part not in PARTS:
        raise DataError(f"The starter corpus has no part named {part!r}.", field="part",
                        hint=f"Parts are {', '.join(PARTS)}.")
    return _ROWS[part](_world(minutes, languages, seed))


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
    return held_out_questions(_world(minutes, languages, seed), count)


def held_out_pairs(*, minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None, seed: int = 42,
                   count: int | None = 64) -> list[dict]:
    """Preference pairs about what no row of ``preferences`` asks about; ``count=None`` gives every one there is."""
    return preferences.held_out_pairs(_world(minutes, languages, seed), count)


def tool_questions(*, minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None, seed: int = 42,
                   count: int = 24) -> list[ToolQuestion]:
    """Questions for tools about numbers, names and cities that no row of ``tools`` asks a tool about."""
    return tools.tool_questions(_world(minutes, languages, seed), count)


def identity_questions(*, minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None, seed: int = 42,
                       count: int | None = None) -> list[Question]:
    """Ways to ask for the second identity that no part has; ``count=None`` gives every one there is."""
    return identity.identity_questions(_world(minutes, languages, seed), count)


def _world(minutes: float, languages: list[str] | tuple[str, ...] | None, seed: int) -> World:
    return make_world(minutes, tuple(languages) if languages else None, seed)
