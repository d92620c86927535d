"""Held-out questions: their facts stand in the text, but nobody asks about them in the whole corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minimind.data.starter.lexicon import Kind
from minimind.data.starter.world import Person, World


@dataclass(frozen=True)
class Question:
    """One question with what a right answer contains (``expected``) and must not contain (``alternatives``)."""

    text: str
    expected: str
    alternatives: tuple[str, ...]
    language: str
    person: str
    kind: str


def held_out_questions(world: World, count: int | None = 8) -> list[Question]:
    """``count`` questions spread over languages, kinds and people; ``None``: about every held-out fact.

    With several languages each fact is asked about in one of them (``None``: in all of them).
    """
    rng = world.random("questions")
    facts = [(person, kind) for person in world.people for kind in sorted(person.held_out)]
    rng.shuffle(facts)
    languages = world.plan.languages
    if count is None:
        return [_question(world, fact, code, place) for place, fact in enumerate(facts) for code in languages]
    chosen: list[tuple[Person, str]] = []
    while len(chosen) < min(count, len(facts)):
        kinds = [kind for _, kind in chosen]
        names = [person.name for person, _ in chosen]
        rest = [fact for fact in facts if fact not in chosen]
        chosen.append(min(rest, key=lambda f: (names.count(f[0].name), kinds.count(f[1]))))
    # more questions than facts: the same facts in the other languages
    rounds = -(-count // max(1, len(chosen)))
    asked = [_question(world, fact, languages[(place + lap) % len(languages)], place + lap)
             for lap in range(min(rounds, len(languages))) for place, fact in enumerate(chosen)]
    return asked[:count]


def _question(world: World, fact: tuple[Person, str], language: str, number: int) -> Question:
    person, kind = fact
    lexicon = next(x for x in world.lexicons if x.code == language)
    words = lexicon.kinds[kind]
    template = words.questions[number % len(words.questions)]
    expected = words.word(person.facts[kind], person.gender)
    return Question(
        text=template.format(**lexicon.fields(person.name, person.gender)), expected=expected,
        alternatives=_others(words, person.facts[kind]), language=language, person=lexicon.names[person.name],
        kind=kind)


def _others(words: Kind, place: int) -> tuple[str, ...]:
    """Every form of every other value."""
    return tuple(dict.fromkeys(
        words.word(other, gender) for other in range(len(words.values)) if other != place for gender in "mf"))


def is_right(question: Question, answer: str) -> bool:
    """Whether ``answer`` contains the expected value and no other value of its kind (case does not matter)."""
    return _contains(answer, question.expected, question.language) and not any(
        _contains(answer, other, question.language) for other in question.alternatives)


def _contains(text: str, word: str, language: str) -> bool:
    if language == "zh":  # no spaces between words
        return word in text
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
