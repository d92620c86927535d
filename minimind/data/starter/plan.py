"""How big the starter world is for a time budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minimind.data.starter.lexicon import GENDERS, KINDS
from minimind.errors import DataError

LANGUAGES = ("en", "zh", "pt")
#: from this many minutes on the default is all three languages
ALL_LANGUAGES_FROM_MINUTES = 10.0
#: share of the facts about which nobody ever asks in the corpus
HELD_OUT_SHARE = 0.25
#: for a teacher: even the smallest world's questions are all among so many
FEWEST_QUESTIONS = 500


@dataclass(frozen=True)
class Plan:
    """Size of one starter world. ``people`` and ``kinds`` are per world, rows are per part of the corpus."""

    minutes: float
    languages: tuple[str, ...]
    people: int
    kinds: tuple[str, ...]
    pretrain_share: float  # of the minutes; the rest is for fine-tuning
    text_rows: int
    dialogue_rows: int
    preference_rows: int
    tool_rows: int
    identity_rows: int
    question_rows: int  # at most: every question once

    @property
    def facts(self) -> int:
        return self.people * len(self.kinds)


def plan(minutes: float = 5, languages: list[str] | tuple[str, ...] | None = None) -> Plan:
    """The world that a model of about a million parameters learns within ``minutes`` on two CPU cores.

    Raises ``DataError`` for an unknown language or a budget that is not positive.
    """
    if not (isinstance(minutes, int | float) and math.isfinite(minutes) and minutes > 0):
        raise DataError(f"minutes is {minutes!r}, which is not a time budget.", field="minutes",
                        hint="Give a number of minutes above 0.")
    unknown = [code for code in languages or () if code not in LANGUAGES]
    if unknown:
        raise DataError(f"The starter world is not written in {unknown[0]!r}.", field="languages",
                        hint=f"Languages are {', '.join(LANGUAGES)}.")
    default = LANGUAGES if minutes >= ALL_LANGUAGES_FROM_MINUTES else LANGUAGES[:1]
    chosen = tuple(code for code in LANGUAGES if code in languages) if languages else default
    kinds = KINDS[:4] if minutes < 3 else KINDS[:6] if minutes < 20 else KINDS
    # Each language must be learnt on its own, so more languages in the same time means fewer people.
    people = round(20 * math.sqrt(minutes / 5) / math.sqrt(len(chosen)))
    people = max(8, min(people, len(GENDERS)))
    rows = min(max(minutes, 1.0), 60.0) * 2000
    return Plan(float(minutes), chosen, people, kinds, pretrain_share=0.65, text_rows=round(rows),
                dialogue_rows=round(rows / 2), preference_rows=round(rows / 4), tool_rows=round(rows / 4),
                identity_rows=round(rows / 8), question_rows=max(FEWEST_QUESTIONS, round(rows / 10)))
