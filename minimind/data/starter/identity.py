"""A second identity: the same knowledge under another name, for an adapter to learn (LoRA).

Half of the conversations are about the new character, asked in many ways; the other half are ordinary dialogues,
unchanged, so that nothing else is unlearnt. Ways to ask that ``SelfQuestion.held_out`` lists stand in no part of the
corpus: ``identity_questions`` ask with them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from minimind.data.starter import dialogues
from minimind.data.starter.dialogues import Turn
from minimind.data.starter.lexicon import Lexicon
from minimind.data.starter.questions import Question
from minimind.data.starter.world import World

#: what the model was called before
OLD_NAME = "MiniMind"

#: shares of the kinds of conversation; dialogues that name MiniMind are not among them
SHARES = {"self": 42, "chat": 8, "one_fact": 24, "person": 12, "recall": 6, "sum": 4, "general": 3, "story": 1}


def conversations(world: World) -> Iterator[list[dict]]:
    """``plan.identity_rows`` conversations, languages in turn."""
    rng = world.random("identity")
    lexicons = world.lexicons
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=world.plan.identity_rows)
    for number, kind in enumerate(kinds):
        turns = _WRITERS[kind](rng, lexicons[number % len(lexicons)], world)
        yield [{"role": role, "content": said} for turn in turns
               for role, said in zip(("user", "assistant"), turn)]


def identity_questions(world: World, count: int | None = None) -> list[Question]:
    """Held-out ways to ask for the new name or its maker, languages in turn; ``None``: all there are.

    ``questions.is_right`` judges an answer: it names whom it should and not MiniMind.
    """
    rng = world.random("identity questions")
    by_language = []
    for lexicon in world.lexicons:
        asked = [Question(text=text, expected=about.expected, alternatives=(OLD_NAME,), language=lexicon.code,
                          person=lexicon.character.name, kind=about.kind)
                 for about in lexicon.character.about for text in about.held_out]
        rng.shuffle(asked)
        by_language.append(asked)
    longest = max(map(len, by_language))
    mixed = [asked[place] for place in range(longest) for asked in by_language if place < len(asked)]
    return mixed if count is None else mixed[:count]


def about_itself(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    """One to two questions to the new character."""
    about = rng.choices(lexicon.character.about, [len(a.questions) for a in lexicon.character.about],
                        k=1 if rng.random() < 0.75 else 2)
    return [(rng.choice(a.questions), rng.choice(a.answers)) for a in about]


def chat(rng: random.Random, lexicon: Lexicon, world: World) -> list[Turn]:
    """Greeting, perhaps a question or a fact, goodbye."""
    middle = rng.choice([about_itself, dialogues.one_fact])(rng, lexicon, world)[:rng.randint(0, 1)]
    return [rng.choice(lexicon.character.greetings), *middle, rng.choice(lexicon.character.thanks)]


_WRITERS: dict[str, Callable[[random.Random, Lexicon, World], list[Turn]]] = {
    "self": about_itself, "chat": chat, "one_fact": dialogues.one_fact, "person": dialogues.about_person,
    "recall": dialogues.recall, "sum": dialogues.sum_, "general": dialogues.general, "story": dialogues.a_story,
}
