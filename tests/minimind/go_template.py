"""The part of Go's text/template that ollama's Modelfiles use, written out: texts, ``if`` and ``else if``, ``range``,
fields, variables, ``eq`` and ``and``. What prints an object prints JSON, as ollama's tools and arguments do."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any


def execute(template: str, data: dict[str, Any]) -> str:
    """Raises ``AssertionError`` for an action that is none of these, or a block that is not closed."""
    pieces = re.split(r"({{.*?}})", template, flags=re.DOTALL)
    text, rest = _block(pieces, data, {}, runs=True)
    assert not rest, f"an end too many: {rest[:3]}"
    return text


def _block(pieces: list[str], dot: Any, names: dict[str, Any], *, runs: bool) -> tuple[str, list[str]]:
    """Up to the ``end`` or ``else`` that belongs to it, which stays in what is left."""
    out = ""
    while pieces:
        piece = pieces[0]
        if not piece.startswith("{{"):
            out, pieces = out + piece, pieces[1:]
            continue
        action = piece[2:-2].strip()
        if action == "end" or action.startswith("else"):
            return out, pieces
        word, _, about = action.partition(" ")
        if word == "if":
            text, pieces = _if(about, pieces[1:], dot, names, runs)
        elif word == "range":
            text, pieces = _range(about, pieces[1:], dot, names, runs)
        elif given := re.fullmatch(r"(\$\w+) :?= (.+)", action):
            text, pieces = "", pieces[1:]
            if runs:
                names[given[1]] = _value(given[2], dot, names)
        else:
            text, pieces = _shown(_value(action, dot, names)) if runs else "", pieces[1:]
        out += text
    return out, []


def _if(about: str, pieces: list[str], dot: Any, names: dict[str, Any], runs: bool) -> tuple[str, list[str]]:
    holds = runs and bool(_value(about, dot, names))
    text, pieces = _block(pieces, dot, names, runs=holds)
    out, is_done = text if holds else "", holds
    while pieces[0] != "{{ end }}":
        otherwise = pieces[0][2:-2].strip().removeprefix("else").strip()
        holds = runs and not is_done and (not otherwise or bool(_value(otherwise.removeprefix("if "), dot, names)))
        text, pieces = _block(pieces[1:], dot, names, runs=holds)
        out, is_done = out + text if holds else out, is_done or holds
    return out, pieces[1:]


def _range(about: str, pieces: list[str], dot: Any, names: dict[str, Any], runs: bool) -> tuple[str, list[str]]:
    index, _, place = re.fullmatch(r"(\$\w+), (\$_) := (\S+)", about).groups()
    out = ""
    for number, item in enumerate(_value(place, dot, names) or [] if runs else []):
        names[index] = number
        out += _block(pieces, item, names, runs=True)[0]
    return out, _block(pieces, dot, names, runs=False)[1][1:]


def _value(expression: str, dot: Any, names: dict[str, Any]) -> Any:
    words = shlex.split(expression) if expression.startswith(("eq ", "and ")) else [expression]
    if words[0] == "eq":
        return _value(words[1], dot, names) == words[2]
    if expression.startswith('"'):
        return expression[1:-1]
    if words[0] == "and":
        return all(_value(word, dot, names) for word in words[1:])
    if expression.startswith("$"):
        return names[expression]
    assert re.fullmatch(r"\.[\w.]*", expression), expression
    for name in expression.split(".")[1:]:
        dot = dot.get(name) if name else dot
    return dot


def _shown(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
