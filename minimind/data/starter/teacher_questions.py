"""Questions for a teacher to answer (black-box distillation): all that may be asked, each once, without answers."""

from __future__ import annotations

from collections.abc import Iterator

from minimind.data.starter.lexicon import Lexicon
from minimind.data.starter.world import World

#: sums among the questions, for each language; all 155 would outnumber what a small world knows
SUMS = 24


def teacher_questions(world: World) -> Iterator[str]:
    """At most ``plan.question_rows`` different questions, languages mixed.

    Questions as the dialogues ask them come first in the choice, then the same ones in other words.
    """
    rng = world.random("teacher questions")
    plain, worded = [], []
    for lexicon in world.lexicons:
        asked = _questions(lexicon, world)
        plain += asked
        worded += [wish.format(question=text) for text in asked if text.endswith(("?", "？"))
                   for wish in lexicon.wishes]
    rng.shuffle(plain)
    rng.shuffle(worded)
    chosen = list(dict.fromkeys(plain + worded))[:world.plan.question_rows]
    rng.shuffle(chosen)
    yield from chosen


def _questions(lexicon: Lexicon, world: World) -> list[str]:
    found = []
    for person in world.people:
        fields = lexicon.fields(person.name, person.gender)
        found += [template.format(**fields) for kind in person.asked() for template in lexicon.kinds[kind].questions]
        found += [template.format(**fields) for template in lexicon.tell]
    found += [question for questions, _ in lexicon.identity for question in questions]
    found += [question for question, _ in lexicon.general]
    found += [*lexicon.tell_story, *lexicon.recall]
    rng = world.random(f"teacher sums {lexicon.code}")
    for place in range(SUMS):
        x, y = rng.randint(0, 9), rng.randint(0, 9)
        term = f"{x} + {y}" if place % 3 else f"{max(x, y)} - {min(x, y)}"
        found.append(lexicon.sums[place % len(lexicon.sums)].format(sum=term))
    return found
