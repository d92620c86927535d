"""The shape of a language's word lists: what the generator needs to talk about the starter world in it.

Notation in the lists: ``"doctor|a doctor"`` is a value (the word an answer must contain) and the phrase that stands
in a sentence; ``"médico/médica"`` are the forms for a man and for a woman. Templates have the fields of
``Lexicon.fields``: ``{name} {he} {He} {his} {His} {him} {o}`` of a person, ``{value}`` for the phrase, ``{word}``
for the bare word. All languages list people and values in the same order: place 3 is the same person everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

#: what is known about each person, the most speaking first: a small world has the first few
KINDS = ("city", "job", "pet", "colour", "food", "instrument", "sport", "drink")


@dataclass(frozen=True)
class Kind:
    """One kind of fact in one language."""

    values: tuple[str, ...]
    statements: tuple[str, ...]  # about {name}; the first is how a question is answered
    more: tuple[str, ...]  # about a person already named: {He}, {his}
    questions: tuple[str, ...]
    follow_ups: tuple[str, ...]  # questions about a person already named

    def word(self, place: int, gender: str) -> str:
        return _gendered(self.values[place].split("|")[0], gender)

    def phrase(self, place: int, gender: str) -> str:
        return _gendered(self.values[place].split("|")[-1], gender)


@dataclass(frozen=True)
class Story:
    """A short story about {a} and {b}; {city_a} or {food_b} stands for a fact, which ``needs`` lists."""

    text: str
    needs: tuple[tuple[str, str], ...] = ()  # ("a", "city"), ...


@dataclass(frozen=True)
class Manners:
    """How an answer can end. What preference pairs teach: kindly rather than gruffly."""

    kind: tuple[str, ...]
    gruff: tuple[str, ...]


@dataclass(frozen=True)
class ToolWords:
    """How people ask for what a tool knows. Fields: {name} of ``phone``, {city} and {place} ("in Paris") of
    ``weather`` and ``clock``, {sum} of ``calc``, and {result} in the answer."""

    questions: tuple[str, ...]
    answer: str
    thought: str
    results: tuple[str, ...] = ()  # none: numbers


@dataclass(frozen=True)
class SelfQuestion:
    """One thing to ask somebody about themselves, in many words. ``held_out`` ones stand in no part of the corpus."""

    kind: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    expected: str = ""  # what each answer contains


@dataclass(frozen=True)
class Character:
    """Somebody else for the model to be than MiniMind."""

    name: str
    maker: str
    about: tuple[SelfQuestion, ...]
    greetings: tuple[tuple[str, str], ...]
    thanks: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Lexicon:
    code: str
    names: tuple[str, ...]
    pronouns: dict[str, dict[str, str]]  # "f", "m" -> field -> word
    both: dict[str, dict[str, str]]  # two women "f", otherwise "m" -> field -> word
    kinds: dict[str, Kind]
    stories: tuple[Story, ...]
    picks: dict[str, tuple[str, ...]]  # random words of stories; "act|acted" pairs under "act"
    join: str  # between sentences
    introductions: tuple[str, ...]  # of a person, before facts
    identity: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # (questions, answers)
    about_itself: tuple[str, ...]
    greetings: tuple[tuple[str, str], ...]
    thanks: tuple[tuple[str, str], ...]
    general: tuple[tuple[str, str], ...]  # (question, answer) about the world at large
    sums: tuple[str, ...]  # questions with {sum}; the answer is "{sum} = n"
    sum_answer: str
    tell: tuple[str, ...]  # "Tell me about {name}."
    tell_story: tuple[str, ...]
    recall: tuple[str, ...]  # "Tell me something you know.", naming nobody
    systems: tuple[str, ...]
    # for the stages after fine-tuning
    manners: Manners
    tools: dict[str, ToolWords]
    character: Character
    wishes: tuple[str, ...]  # other ways to put a {question}

    def fields(self, name: int, gender: str) -> dict[str, str]:
        return {"name": self.names[name], **self.pronouns[gender]}


def _gendered(text: str, gender: str) -> str:
    male, _, female = text.partition("/")
    return female if female and gender == "f" else male


#: gender of each of the people, the same order in every language
GENDERS = tuple("fm" * 24)
