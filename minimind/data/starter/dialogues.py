"""Dialogues for fine-tuning: questions about the world, small talk, sums, stories.

A fifth of them lets the assistant say at length what it knows, unasked. Without that, fine-tuning that goes on too
long overwrites what nobody asks about: of 30 held-out facts, all known before, 25 were left after 60 steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from minimind.data.starter.lexicon import Lexicon
from minimind.data.starter.text import a_sum, facts, question, story
from minimind.data.starter.world import World, answer, statement

Turn = tuple[str, str]  # what the user says, what the assistant answers

#: shares of the kinds of dialogue
SHARES = {"one_fact": 30, "person": 17, "mixed": 10, "recall": 20, "identity": 8, "sum": 6, "general": 4,
          "small_talk": 2, "story": 3}
SYSTEM_SHARE = 0.1


def dialogues(world: World) -> Iterator[list[dict]]:
    """``plan.dialogue_rows`` conversations, languages in turn. Nobody asks about a held-out fact."""
    rng = world.random("dialogues")
    lexicons = world.lexicons
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=world.plan.dialogue_rows)
    for number, kind in enumerate(kinds):
        lexicon = lexicons[number % len(lexicons)]
        messages = []
        if rng.random() < SYSTEM_SHARE:
            messages.append({"role": "system", "content": rng.choice(lexicon.systems)})
        for asked, said in WRITERS[kind](rng, lexicon, world):
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        yield messages


def one_fact(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    person = rng.choice(world.people)
    kind = rng.choice(person.asked())
    return [(question(rng, lexicon, person, kind), answer(lexicon, person, kind))]


def about_person(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    """Questions about one person, the later ones by pronoun."""
    person = rng.choice(world.people)
    kinds = rng.sample(person.asked(), min(len(person.asked()), rng.randint(2, 3)))
    fields = lexicon.fields(person.name, person.gender)
    if rng.random() < 0.3:
        told = [statement(lexicon, person, kind, lexicon.kinds[kind].statements[0] if place == 0
                          else lexicon.kinds[kind].more[0]) for place, kind in enumerate(kinds[:2])]
        turns = [(rng.choice(lexicon.tell).format(**fields), lexicon.join.join(told))]
        kinds = kinds[2:]
    else:
        turns = [(question(rng, lexicon, person, kinds[0]), answer(lexicon, person, kinds[0]))]
        kinds = kinds[1:]
    for kind in kinds:
        asked = rng.choice(lexicon.kinds[kind].follow_ups).format(**fields)
        turns.append((asked[0].upper() + asked[1:], answer(lexicon, person, kind)))
    return turns


def mixed(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    """A whole chat: greeting, some questions of all sorts, goodbye."""
    turns = [rng.choice(lexicon.greetings)] if rng.random() < 0.6 else []
    for _ in range(rng.randint(2, 3)):
        turns += rng.choices([one_fact, identity, sum_, general], [70, 12, 10, 8])[0](rng, lexicon, world)
    if rng.random() < 0.5:
        turns.append(rng.choice(lexicon.thanks))
    return turns


def identity(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    questions, answers = rng.choice(lexicon.identity)
    return [(rng.choice(questions), rng.choice(answers))]


def sum_(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    return [a_sum(rng, lexicon)]


def general(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    return [rng.choice(lexicon.general)]


def small_talk(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    return [rng.choice(lexicon.greetings), rng.choice(lexicon.thanks)]


def a_story(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    return [(rng.choice(lexicon.tell_story), story(rng, lexicon, world))]


def recall(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    """Something about several people, whatever comes to mind: the request names nobody."""
    return [(rng.choice(lexicon.recall), facts(rng, lexicon, world))]


WRITERS: dict[str, Callable[[random.Random, Lexicon, World], list[Turn]]] = {
    "one_fact": one_fact, "person": about_person, "mixed": mixed, "identity": identity, "sum": sum_,
    "general": general, "small_talk": small_talk, "story": a_story,
    "recall": recall,
}
