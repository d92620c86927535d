"""Conversations with tools: what is on offer, the call, what the tool gave back, and the answer made of it.

Numbers of two digits are beyond a tiny model, and telephone numbers, weather and time are new in every conversation:
whoever answers right has read the result. A quarter of the conversations offer tools that nobody needs. All are short,
since the definitions alone cost a small vocabulary more tokens than a whole dialogue has.

Some numbers, names and cities are kept back: ``tool_questions`` ask about them alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from minimind.data.starter import dialogues
from minimind.data.starter.lexicon import GENDERS, Lexicon
from minimind.data.starter.world import World

#: what each tool is asked with; everything is text
ARGUMENT = {"calc": "term", "phone": "name", "weather": "city", "clock": "city"}
#: the same people and cities in all languages: places in the lists of every lexicon
NAMES_KEPT_BACK = frozenset(range(3, len(GENDERS), 4))
CITIES_KEPT_BACK = frozenset({1, 8})

#: shares of the kinds of conversation
SHARES = {"one_call": 52, "two_calls": 11, "two_turns": 12, "no_call": 25}
THOUGHT_SHARE = 0.3
SYSTEM_SHARE = 0.1


@dataclass(frozen=True)
class Use:
    """One use of a tool: asked, called, given back, answered."""

    question: str
    name: str
    arguments: dict[str, str]
    result: str
    answer: str
    thought: str


@dataclass(frozen=True)
class ToolQuestion:
    """A question for which a tool must be called, and what is right. ``messages`` are the prompt, with the tools'
    definitions in the system message; a right answer made of ``result`` contains ``expected``."""

    messages: tuple[dict, ...]
    name: str
    arguments: dict[str, str]
    result: str
    expected: str
    language: str

    def is_right_call(self, calls: list[dict]) -> bool:
        """Whether exactly this one call was made (``[{"name", "arguments"}]``, arguments as object or JSON text)."""
        if len(calls) != 1:
            return False
        called = calls[0].get("function") or calls[0]
        arguments = called.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return False
        return called.get("name") == self.name and arguments == self.arguments

    def is_right(self, answer: str) -> bool:
        """Whether the final answer contains the expected value (and not as a part of a longer number)."""
        return re.search(rf"(?<![\d:]){re.escape(self.expected)}(?![\d:])", answer) is not None


def definition(name: str) -> dict:
    """A tool as its user declares it: OpenAI's shape, as short as it can be."""
    return {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {ARGUMENT[name]: {}}}}}


def conversations(world: World) -> Iterator[list[dict]]:
    """``plan.tool_rows`` conversations, languages in turn."""
    rng = world.random("tools")
    lexicons = world.lexicons
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=world.plan.tool_rows)
    for number, kind in enumerate(kinds):
        yield _WRITERS[kind](rng, lexicons[number % len(lexicons)], world)


def tool_questions(world: World, count: int = 24) -> list[ToolQuestion]:
    """``count`` different questions about numbers, names and cities of which no conversation speaks; tools and
    languages in turn."""
    rng = world.random("tool questions")
    asked: dict[str, ToolQuestion] = {}
    for number in range(50 * count):
        if len(asked) == count:
            break
        lexicon = world.lexicons[number % len(world.lexicons)]
        name = list(ARGUMENT)[(number // len(world.lexicons)) % len(ARGUMENT)]
        used = use(rng, lexicon, world, name, held_out=True)
        asked.setdefault(used.question, ToolQuestion(
            (offer(rng, lexicon, name), {"role": "user", "content": used.question}), name, used.arguments,
            used.result, used.result, lexicon.code))
    return list(asked.values())


def use(rng: random.Random, lexicon: Lexicon, world: World, name: str, *, held_out: bool = False) -> Use:
    """A question for the tool ``name`` with all that follows from it."""
    words = lexicon.tools[name]
    fields: dict[str, str] = {}
    if name == "calc":
        fields["sum"], result = _sum(rng, held_out)
        argument = fields["sum"]
    elif name == "phone":
        argument = fields["name"] = lexicon.names[rng.choice(
            [person.name for person in world.people if (person.name in NAMES_KEPT_BACK) == held_out])]
        result = str(rng.randint(100, 999))
    else:
        cities = lexicon.kinds["city"]
        place = rng.choice([i for i in range(len(cities.values)) if (i in CITIES_KEPT_BACK) == held_out])
        argument, fields["place"] = cities.word(place, "m"), cities.phrase(place, "m")
        result = rng.choice(words.results) if words.results else f"{rng.randint(1, 23)}:{rng.randint(10, 59)}"
    return Use(rng.choice(words.questions).format(**fields), name, {ARGUMENT[name]: argument}, result,
               words.answer.format(**fields, result=result), words.thought.format(**fields))


def _sum(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A sum or difference of two numbers of two digits, and its result; every fifth pair of numbers is held out."""
    while True:
        x, y = rng.randint(10, 99), rng.randint(10, 99)
        x, y, sign = (max(x, y), min(x, y), "-") if rng.random() < 0.4 else (x, y, "+")
        if ((3 * x + y) % 5 == 0) == held_out:
            return f"{x} {sign} {y}", str(x + y if sign == "+" else x - y)


def offer(rng: random.Random, lexicon: Lexicon, needed: str, another: float = 0.5) -> dict:
    """A system message that defines the needed tool and, with the chance ``another``, one more, in any order.

    It says something besides only where the conversation is short: with one tool where there could be two.
    """
    others = [name for name in ARGUMENT if name != needed]
    names = [needed] + rng.sample(others, int(rng.random() < another))
    rng.shuffle(names)
    speaks = another > 0 and len(names) == 1 and rng.random() < SYSTEM_SHARE
    return {"role": "system", "content": rng.choice(lexicon.systems) if speaks else "",
            "tools": json.dumps([definition(name) for name in names])}


def _turn(lexicon: Lexicon, uses: list[Use], thought: str = "") -> list[dict]:
    """Question, call, result, answer; with two uses two of each at once."""
    called = {"role": "assistant", "content": "", "tool_calls": json.dumps(
        [{"name": used.name, "arguments": used.arguments} for used in uses], ensure_ascii=False)}
    if thought:
        called["reasoning_content"] = thought
    return [{"role": "user", "content": lexicon.join.join(used.question for used in uses)}, called,
            *({"role": "tool", "content": used.result} for used in uses),
            {"role": "assistant", "content": lexicon.join.join(used.answer for used in uses)}]


def one_call(rng: random.Random, lexicon: Lexicon, world: World) -> list[dict]:
    """One question; a third of the calls are thought about first."""
    used = use(rng, lexicon, world, rng.choice(list(ARGUMENT)))
    thought = used.thought if rng.random() < THOUGHT_SHARE else ""
    return [offer(rng, lexicon, used.name, another=0 if thought else 0.5), *_turn(lexicon, [used], thought)]


def two_calls(rng: random.Random, lexicon: Lexicon, world: World) -> list[dict]:
    """Two questions at once, so two calls at once."""
    name = rng.choice(list(ARGUMENT))
    uses = [use(rng, lexicon, world, name)]
    while len(uses) < 2:
        second = use(rng, lexicon, world, name)
        uses += [second] * (second.arguments != uses[0].arguments)
    return [offer(rng, lexicon, name, another=0), *_turn(lexicon, uses)]


def two_turns(rng: random.Random, lexicon: Lexicon, world: World) -> list[dict]:
    """One question that needs the tool and one that does not, in any order."""
    name = rng.choice(list(ARGUMENT))
    turns = [_turn(lexicon, [use(rng, lexicon, world, name)]), _plain(rng, lexicon, world)]
    rng.shuffle(turns)
    return [offer(rng, lexicon, name, another=0), *turns[0], *turns[1]]


def no_call(rng: random.Random, lexicon: Lexicon, world: World) -> list[dict]:
    """Tools are there, and the model knows by itself; a third tells at length, as in the dialogues and for their
    reason."""
    tells = rng.random() < 0.35
    plain = _messages(dialogues.recall(rng, lexicon, world)) if tells else _plain(rng, lexicon, world)
    return [offer(rng, lexicon, rng.choice(list(ARGUMENT)), another=0 if tells else 0.5), *plain]


def _plain(rng: random.Random, lexicon: Lexicon, world: World) -> list[dict]:
    writer = rng.choices([dialogues.one_fact, dialogues.identity, dialogues.general], [70, 15, 15])[0]
    return _messages(writer(rng, lexicon, world))


def _messages(turns: list[dialogues.Turn]) -> list[dict]:
    return [{"role": role, "content": said} for turn in turns for role, said in zip(("user", "assistant"), turn)]


_WRITERS: dict[str, Callable[[random.Random, Lexicon, World], list[dict]]] = {
    "one_call": one_call, "two_calls": two_calls, "two_turns": two_turns, "no_call": no_call,
}
