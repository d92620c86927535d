"""Who lives in the starter world, what is true about them, and which of it nobody asks about."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from minimind.data.starter.chinese import CHINESE
from minimind.data.starter.english import ENGLISH
from minimind.data.starter.lexicon import GENDERS, Kind, Lexicon
from minimind.data.starter.plan import HELD_OUT_SHARE, Plan, plan
from minimind.data.starter.portuguese import PORTUGUESE

LEXICONS: dict[str, Lexicon] = {lexicon.code: lexicon for lexicon in (ENGLISH, CHINESE, PORTUGUESE)}
FEWEST_HELD_OUT = 8


@dataclass(frozen=True)
class Person:
    """``name`` and the values of ``facts`` are places in the lists of every lexicon."""

    name: int
    gender: str
    facts: dict[str, int]
    held_out: frozenset[str]  # kinds that no question in the corpus asks about

    def asked(self) -> list[str]:
        return [kind for kind in self.facts if kind not in self.held_out]


@dataclass(frozen=True)
class World:
    plan: Plan
    seed: int
    people: tuple[Person, ...]

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that no part of the corpus depends on another."""
        return random.Random(f"minimind starter {self.seed} {purpose}")

    @property
    def lexicons(self) -> list[Lexicon]:
        return [LEXICONS[code] for code in self.plan.languages]


def make_world(minutes: float, languages: tuple[str, ...] | None, seed: int) -> World:
    """The one world of these three numbers: text, dialogues and questions all speak of it."""
    return _make_world(plan(minutes, languages), seed)


@lru_cache(maxsize=8)
def _make_world(size: Plan, seed: int) -> World:
    rng = World(size, seed, ()).random("world")
    values: dict[str, list[int]] = {}
    for kind in size.kinds:
        # every value about equally often: guessing the commonest does not help
        count = len(ENGLISH.kinds[kind].values)
        deck = [place for _ in range(-(-size.people // count)) for place in rng.sample(range(count), count)]
        values[kind] = deck[:size.people]
    held_out = _held_out(size, rng)
    people = tuple(
        Person(i, GENDERS[i], {kind: values[kind][i] for kind in size.kinds}, frozenset(held_out[i]))
        for i in range(size.people))
    return World(size, seed, people)


def _held_out(size: Plan, rng: random.Random) -> list[set[str]]:
    """For each person the held-out kinds: spread over people and kinds, at most half of a person's facts."""
    held: list[set[str]] = [set() for _ in range(size.people)]
    wanted = max(FEWEST_HELD_OUT, round(size.facts * HELD_OUT_SHARE))
    people = rng.sample(range(size.people), size.people)
    for number in range(wanted):
        lap, place = divmod(number, size.people)
        # shifting by one kind a person and a lap visits all kinds evenly
        held[people[place]].add(size.kinds[(place + lap) % len(size.kinds)])
    return held


def statement_fields(lexicon: Lexicon, person: Person, kind: str) -> dict[str, str]:
    """Everything a template about this fact may name."""
    words: Kind = lexicon.kinds[kind]
    place = person.facts[kind]
    return {**lexicon.fields(person.name, person.gender), "value": words.phrase(place, person.gender),
            "word": words.word(place, person.gender)}


def statement(lexicon: Lexicon, person: Person, kind: str, template: str) -> str:
    return template.format(**statement_fields(lexicon, person, kind))


def answer(lexicon: Lexicon, person: Person, kind: str) -> str:
    """The sentence that answers a question about this fact."""
    return statement(lexicon, person, kind, lexicon.kinds[kind].statements[0])
