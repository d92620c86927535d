"""Preference pairs: two answers to one question, of which the first is the better.

Fine-tuning decides *what* is answered; what these pairs teach is how. In most of them both answers state the same true
fact, and one ends kindly where the other ends gruffly. The dialogues hold neither ending, and both kinds are made of
words that the text holds and are about as long, so that a model that knows text and dialogues alone has no rule: it
prefers the kind one in 24 to 46 % of such pairs. Every fifth pair is about truth instead: right against wrong, both
kind, so that manners do not cost knowledge. (Pairs in which the rejected answer lacked an ending, and was right
otherwise, taught a model of a million parameters not to end its answers at all.)

Some of what the dialogues ask about is kept back: ``held_out_pairs`` measure with it whether the rule was learnt or
the rows. Facts that are held out from questions altogether (``Person.held_out``) stand in neither.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from minimind.data.starter.lexicon import Lexicon
from minimind.data.starter.world import Person, World, answer, statement_fields

#: shares of what the question is about
TOPICS = {"fact": 64, "sum": 14, "general": 11, "identity": 11}
#: of the pairs where an answer can be wrong; it makes a fifth of all
WRONG_SHARE = 0.25
#: of what may be asked about, kept back for ``held_out_pairs``
KEPT_BACK_SHARE = 0.2
SUMS_KEPT_BACK = 24  # of 155 held-out pairs about sums would outnumber all others in a small world


@dataclass(frozen=True)
class Case:
    """One question with its answer and with answers to it that are wrong (none: only manners can differ)."""

    topic: str
    question: str
    answer: str
    wrong: tuple[str, ...] = ()


def pairs(world: World) -> Iterator[dict]:
    """``plan.preference_rows`` rows ``{"chosen", "rejected"}``, languages in turn."""
    rng = world.random("preferences")
    lexicons = world.lexicons
    by_topic = [_by_topic(cases(world, lexicon, held_out=False)) for lexicon in lexicons]
    topics = rng.choices(list(TOPICS), list(TOPICS.values()), k=world.plan.preference_rows)
    for number, topic in enumerate(topics):
        place = number % len(lexicons)
        yield pair(rng, lexicons[place], rng.choice(by_topic[place][topic]))


def held_out_pairs(world: World, count: int | None = 64) -> list[dict]:
    """``count`` pairs about what no row of ``pairs`` asks about, languages in turn; ``None``: all there are."""
    rng = world.random("held-out preferences")
    by_language = []
    for lexicon in world.lexicons:
        found = [pair(rng, lexicon, case) for case in cases(world, lexicon, held_out=True)]
        rng.shuffle(found)
        by_language.append(found)
    longest = max(map(len, by_language))
    mixed = [found[place] for place in range(longest) for found in by_language if place < len(found)]
    return mixed if count is None else mixed[:count]


def pair(rng: random.Random, lexicon: Lexicon, case: Case) -> dict:
    """The kind and right answer, and another one that is gruff or wrong."""
    kind, gruff = rng.choice(lexicon.manners.kind), rng.choice(lexicon.manners.gruff)
    if case.wrong and rng.random() < WRONG_SHARE:
        rejected = [rng.choice(case.wrong), kind]
    else:
        rejected = [case.answer, gruff]
    asked = {"role": "user", "content": case.question}
    return {name: [asked, {"role": "assistant", "content": lexicon.join.join(said)}]
            for name, said in (("chosen", [case.answer, kind]), ("rejected", rejected))}


def cases(world: World, lexicon: Lexicon, *, held_out: bool) -> list[Case]:
    """Everything that can be asked in this language, either what is kept back or what is not."""
    found = [_about(lexicon, person, kind, template) for person, kind in _facts(world, held_out)
             for template in lexicon.kinds[kind].questions]
    found += _sums(world, lexicon, held_out)
    kept_general = set(world.random("kept back general").sample(
        range(len(lexicon.general)), round(len(lexicon.general) * KEPT_BACK_SHARE)))
    found += [Case("general", asked, said) for place, (asked, said) in enumerate(lexicon.general)
              if (place in kept_general) == held_out]
    for questions, answers in lexicon.identity:
        # the last way to ask is kept back
        found += [Case("identity", asked, answers[0])
                  for asked in (questions[-1:] if held_out else questions[:-1])]
    return found


def _by_topic(found: list[Case]) -> dict[str, list[Case]]:
    return {topic: [case for case in found if case.topic == topic] for topic in TOPICS}


def _facts(world: World, held_out: bool) -> list[tuple[Person, str]]:
    """Facts that may be asked about; a share of them is kept back, the same in all languages."""
    asked = [(person, kind) for person in world.people for kind in person.asked()]
    kept = set(world.random("kept back facts").sample(range(len(asked)), round(len(asked) * KEPT_BACK_SHARE)))
    return [fact for place, fact in enumerate(asked) if (place in kept) == held_out]


def _about(lexicon: Lexicon, person: Person, kind: str, template: str) -> Case:
    words = lexicon.kinds[kind]
    fields = statement_fields(lexicon, person, kind)
    wrong = [words.statements[0].format(**{**fields, "value": words.phrase(other, person.gender),
                                           "word": words.word(other, person.gender)})
             for other in range(len(words.values)) if other != person.facts[kind]]
    return Case("fact", template.format(**fields), answer(lexicon, person, kind), tuple(wrong))


def _sums(world: World, lexicon: Lexicon, held_out: bool) -> list[Case]:
    """Sums and differences of numbers up to nine, as the dialogues have them."""
    terms = [(f"{x} + {y}", x + y) for x in range(10) for y in range(10)]
    terms += [(f"{x} - {y}", x - y) for x in range(10) for y in range(x + 1)]
    kept = set(world.random("kept back sums").sample(range(len(terms)), SUMS_KEPT_BACK))
    found = []
    for place, (term, result) in enumerate(terms):
        if (place in kept) == held_out:
            wrong = [lexicon.sum_answer.format(sum=term, result=other) for other in range(19)
                     if other != result and abs(other - result) < 5]
            found.append(Case("sum", lexicon.sums[place % len(lexicon.sums)].format(sum=term),
                              lexicon.sum_answer.format(sum=term, result=result), tuple(wrong)))
    return found
