"""Documents for pretraining: what people are like, small stories, a little general knowledge."""

from __future__ import annotations

import random
from collections.abc import Iterator

from minimind.data.starter.lexicon import Lexicon
from minimind.data.starter.world import Person, World, answer, statement

#: shares of the kinds of document
SHARES = {"biography": 30, "facts": 25, "questions": 25, "story": 10, "general": 4, "identity": 3, "sums": 3}


def documents(world: World) -> Iterator[str]:
    """``plan.text_rows`` documents, languages in turn."""
    rng = world.random("text")
    lexicons = world.lexicons
    writers = {"biography": biography, "facts": facts, "questions": questions_and_answers, "story": story,
               "general": general, "identity": identity, "sums": sums}
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=world.plan.text_rows)
    for number, kind in enumerate(kinds):
        yield writers[kind](rng, lexicons[number % len(lexicons)], world)


def biography(rng: random.Random, lexicon: Lexicon, world: World) -> str:
    """All that is known about one person, first by name, then by pronoun or name."""
    person = rng.choice(world.people)
    kinds = rng.sample(list(person.facts), len(person.facts))
    sentences = []
    if rng.random() < 0.5:
        sentences.append(rng.choice(lexicon.introductions).format(**lexicon.fields(person.name, person.gender)))
    for place, kind in enumerate(kinds):
        by_pronoun = place > 0 and rng.random() < 0.4
        words = lexicon.kinds[kind]
        sentences.append(statement(lexicon, person, kind, rng.choice(words.more if by_pronoun else words.statements)))
    return lexicon.join.join(sentences)


def facts(rng: random.Random, lexicon: Lexicon, world: World) -> str:
    """One sentence each about several people."""
    sentences = []
    for person in rng.sample(world.people, 6):
        kind = rng.choice(list(person.facts))
        sentences.append(statement(lexicon, person, kind, rng.choice(lexicon.kinds[kind].statements)))
    return lexicon.join.join(sentences)


def questions_and_answers(rng: random.Random, lexicon: Lexicon, world: World) -> str:
    """Questions with their answers, one pair a line. Held-out facts are never asked about."""
    lines = []
    for person in rng.sample(world.people, 4):
        kind = rng.choice(person.asked())
        lines.append(lexicon.join.join([question(rng, lexicon, person, kind), answer(lexicon, person, kind)]))
    return "\n".join(lines)


def question(rng: random.Random, lexicon: Lexicon, person: Person, kind: str) -> str:
    template = rng.choice(lexicon.kinds[kind].questions)
    return template.format(**lexicon.fields(person.name, person.gender))


def story(rng: random.Random, lexicon: Lexicon, world: World) -> str:
    """A small story about two people that agrees with what is true about them."""
    pair = dict(zip("ab", rng.sample(world.people, 2)))
    fitting = [s for s in lexicon.stories if all(kind in pair[who].facts for who, kind in s.needs)]
    chosen = rng.choice(fitting)
    a, b = pair["a"], pair["b"]
    both = lexicon.both["f" if a.gender == b.gender == "f" else "m"]
    act, acted = rng.choice(lexicon.picks["act"]).split("|")
    slots = {name: rng.choice(lexicon.picks[name]) for name in ("weather", "place", "thing")}
    for who, kind in chosen.needs:
        slots[f"{kind}_{who}"] = lexicon.kinds[kind].phrase(pair[who].facts[kind], pair[who].gender)
    return chosen.text.format(a=lexicon.names[a.name], b=lexicon.names[b.name], act=act, acted=acted,
                              **lexicon.pronouns[a.gender], **both, **slots)


def general(rng: random.Random, lexicon: Lexicon, world: World) -> str:
    pairs = rng.sample(lexicon.general, 5)
    return "\n".join(said if rng.random() < 0.5 else lexicon.join.join([asked, said]) for asked, said in pairs)


def identity(rng: random.Random, lexicon: Lexicon, world: World) -> str:
    return lexicon.join.join(rng.sample(lexicon.about_itself, len(lexicon.about_itself)))


def sums(rng: random.Random, lexicon: Lexicon, world: World) -> str:
    lines = []
    for _ in range(8):
        asked, said = a_sum(rng, lexicon)
        lines.append(said if rng.random() < 0.5 else lexicon.join.join([asked, said]))
    return "\n".join(lines)


def a_sum(rng: random.Random, lexicon: Lexicon) -> tuple[str, str]:
    """Question and answer of one sum or difference of numbers up to nine; nothing below zero."""
    x, y = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.3:
        x, y = max(x, y), min(x, y)
        term, result = f"{x} - {y}", x - y
    else:
        term, result = f"{x} + {y}", x + y
    return rng.choice(lexicon.sums).format(sum=term), lexicon.sum_answer.format(sum=term, result=result)
