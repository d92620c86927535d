"""A recipe as a card shows it: what it gives, and its line drawn as tracks of stations, one for each model."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.core.lines import RANDOM_WEIGHTS
from app.i18n import gettext
from app.pipelines.recipes import RECIPES, Recipe
from app.pipelines.view import Gate
from app.rendering import stage_word


@dataclass(frozen=True)
class Stop:
    """One stage in the drawing; ``number`` is its place in the line, counted from 1."""

    number: int
    title: str
    share: float
    gates: list[Gate]
    teacher: int | None


@dataclass(frozen=True)
class Card:
    name: str
    title: str
    gives: str
    minutes: float
    preset: str
    #: a track ends where a stage begins with random weights although there are trained ones already
    tracks: list[list[Stop]] = field(default_factory=list)


def shown_recipes() -> list[Card]:
    return [Card(recipe.name, gettext(recipe.title), gettext(recipe.gives), recipe.minutes, recipe.preset,
                 _tracks(recipe)) for recipe in RECIPES.values()]


def _tracks(recipe: Recipe) -> list[list[Stop]]:
    tracks: list[list[Stop]] = [[]]
    for position, step in enumerate(recipe.steps):
        if step.from_stage == RANDOM_WEIGHTS and tracks[-1]:
            tracks.append([])
        gates = [Gate(key, limit, None, False) for key, limit in (step.gate or {}).items()]
        tracks[-1].append(Stop(position + 1, gettext(step.title) if step.title else stage_word(step.stage), step.share,
                               gates, None if step.teacher_stage is None else step.teacher_stage + 1))
    return tracks
