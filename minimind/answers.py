"""An answer as text taken apart while it comes: reasoning, what is said, calls of tools.

    <think>...</think> what is said <tool_call>{"name": ..., "arguments": {...}}</tool_call>

Reasoning counts only at the beginning, or where the prompt has opened the block already. A call is read whole before
it is told, because a broken one stays visible as text. However a text is cut, the joined parts are the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from minimind.chat_format import missing_in

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Part:
    """``reasoning`` and ``content`` are pieces in order; a ``tool_call`` is a whole one: its ``name``, and its
    arguments as the text of a JSON object in ``text``."""

    kind: Literal["reasoning", "content", "tool_call"]
    text: str
    name: str = ""


def read_call(body: str) -> tuple[str, str] | None:
    """Name and arguments (JSON text) of what stands between the tags; None where it is no call."""
    try:
        call = json.loads(body)
        if not isinstance(call, dict) or missing_in(call) is not None:
            return None
        call = call.get("function") or call
        arguments = call["arguments"]
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(read, dict):
            return None
        text = arguments if isinstance(arguments, str) else json.dumps(read, ensure_ascii=False, allow_nan=False)
        f"{call['name']}{text}".encode()  # half a surrogate pair cannot be sent
        return call["name"], text
    except (ValueError, RecursionError):
        return None


class AnswerParser:
    """``push`` text, get parts; ``finish`` gives what was held back.

    ``is_thinking``: the prompt ends inside a think block. ``continues``: the text goes on with an answer that has
    begun, so that no block opens at its beginning. ``calls``: tools were offered.
    """

    def __init__(self, *, is_thinking: bool = False, continues: bool = False, calls: bool = False):
        self._calls = calls
        self._pending = ""
        self._step = self._begin
        self._is_thinking = is_thinking
        if continues:
            self._step = self._think if is_thinking else self._say
        self._thought = False  # something was told of the reasoning
        self._skips_newlines = False  # those between a think block and what follows
        self._follows_call = False  # nothing but space since the last call
        self._gap = ""  # newlines before the call that is being read
        self._looked = 0  # characters of the call that hold no end

    def push(self, text: str) -> list[Part]:
        self._pending += text
        return self._run(final=False)

    def finish(self) -> list[Part]:
        """The rest. A call without its closing tag is one if it is whole, else text."""
        return self._run(final=True)

    def _run(self, final: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            step = self._step
            step(parts, final)
            if self._step == step:  # it waits for more
                return parts

    def _begin(self, parts: list[Part], final: bool) -> None:
        text = self._pending.lstrip()
        if text.startswith(THINK):
            self._pending = text[len(THINK):]
            self._step = self._think
        elif final or not THINK.startswith(text):
            self._step = self._think if self._is_thinking else self._say

    def _think(self, parts: list[Part], final: bool) -> None:
        if not self._thought:
            self._pending = self._pending.lstrip()
        text, end, rest = self._pending.partition(END_THINK)
        if end or final:
            told, self._pending = text.rstrip(), rest
        else:
            told = text[:len(text) - _held(text, END_THINK)].rstrip()
            self._pending = text[len(told):]
        if told:
            self._thought = True
            parts.append(Part("reasoning", told))
        if end:
            self._skips_newlines = True
            self._step = self._say

    def _say(self, parts: list[Part], final: bool) -> None:
        if self._skips_newlines:
            self._pending = self._pending.lstrip("\n")
            self._skips_newlines = not self._pending
        if not self._calls:
            told, self._pending = self._pending, ""
            self._tell(parts, told)
            return
        text, tag, rest = self._pending.partition(CALL)
        if tag:
            told = "" if self._follows_call and not text.strip() else text.rstrip("\n")
            self._gap, self._pending, self._looked = text[len(told):], rest, 0
            self._step = self._call
        elif final:
            told, self._pending = text, ""
            if self._follows_call and not told.strip():
                told = ""
        else:
            told = text[:len(text) - _held(text, CALL)].rstrip("\n")
            if self._follows_call and not told.strip():  # whether it says anything is not known yet
                told = ""
            self._pending = text[len(told):]
        self._tell(parts, told)

    def _call(self, parts: list[Part], final: bool) -> None:
        at = self._pending.find(END_CALL, self._looked)
        if at < 0 and not final:
            self._looked = max(0, len(self._pending) - len(END_CALL) + 1)
            return
        whole = at >= 0
        body, rest = (self._pending[:at], self._pending[at + len(END_CALL):]) if whole else (self._pending, "")
        read = read_call(body)
        if read is not None:
            parts.append(Part("tool_call", read[1], read[0]))
            self._follows_call = True
        else:
            self._tell(parts, f"{self._gap}{CALL}{body}{END_CALL if whole else ''}")
        self._pending, self._step = rest, self._say

    def _tell(self, parts: list[Part], text: str) -> None:
        if text:
            self._follows_call = False
            parts.append(Part("content", text))


def _held(text: str, tag: str) -> int:
    """How many last characters of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)


@dataclass(slots=True)
class Answer:
    """All parts of an answer put together."""

    reasoning: str
    content: str
    calls: list[Part]

    @classmethod
    def of(cls, parts: list[Part]) -> Answer:
        return cls(*("".join(p.text for p in parts if p.kind == kind) for kind in ("reasoning", "content")),
                   calls=[p for p in parts if p.kind == "tool_call"])


def parse_answer(text: str, **options: Any) -> Answer:
    """A whole answer; ``options`` as for ``AnswerParser``."""
    parser = AnswerParser(**options)
    return Answer.of(parser.push(text) + parser.finish())
