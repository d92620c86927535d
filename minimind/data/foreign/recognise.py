"""The layout of a file by its first rows, as a complete mapping: which column means what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimind.data.foreign.convert import missing_columns
from minimind.data.foreign.mapping import CANONICAL, checked, columns_of, needed_of
from minimind.data.foreign.messages import CONTENT_KEYS, ROLE_KEYS
from minimind.errors import ConfigError

QUESTIONS = ("prompt", "question", "instruction", "query", "ask", "input", "user", "problem", "context", "title",
             "source")
ANSWERS = ("completion", "answer", "response", "output", "reply", "golden", "target", "continuation", "assistant",
           "solution", "chosen", "label_text")
#: what stands before a question in columns of their own
CONTEXTS = ("context", "passage", "body", "input")
TEXTS = ("text", "content", "body", "article", "story", "document", "passage", "paragraph", "markdown", "paragraphs")
TALKS = ("conversations", "conversation", "messages", "dialog", "dialogue", "dialogues", "utterances", "turns", "chat")
SYSTEMS = ("system", "system_prompt")
LABELS = ("label", "kto_tag", "is_good", "rating")
CHOSEN = ("chosen", "chosen_response", "response_chosen", "response_j")
REJECTED = ("rejected", "rejected_response", "response_rejected", "response_k")
#: names that make a first row of a table a header without doubt
KNOWN_NAMES = frozenset((*QUESTIONS, *ANSWERS, *TEXTS, *SYSTEMS, "rejected", "id", "label", "department", "category"))


class Seen:
    """The columns of the first rows; names are found whatever their case is."""

    def __init__(self, rows: Sequence[dict]):
        self.rows = rows
        self.names = {key.lower(): key for row in reversed(rows) for key in reversed(list(row)) if isinstance(key, str)}
        self.keys = set(self.names.values())

    @property
    def columns(self) -> list[str]:
        """In the order of the first row."""
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def value(self, key: str | None) -> Any:
        """The first value of a column that is not empty."""
        return next((row[key] for row in self.rows if key in row and not _is_empty(row[key])), None)

    def find(self, names: Sequence[str], kinds: type | tuple[type, ...]) -> str | None:
        """The first of ``names`` that is there with a value of these types."""
        for name in names:
            key = self.names.get(name)
            if key is not None and isinstance(self.value(key), kinds):
                return key
        return None

    def find_any(self, names: Sequence[str], kinds: type | tuple[type, ...]) -> str | None:
        """As ``find``, also where the first rows hold nothing in the column: those behind them may."""
        for name in names:
            key = self.names.get(name)
            if key is not None and ((value := self.value(key)) is None or isinstance(value, kinds)):
                return key
        return None

    def texts(self) -> list[str]:
        """Columns that hold text in most rows."""
        def filled(key: str) -> int:
            return sum(isinstance(row.get(key), str) and bool(row[key].strip()) for row in self.rows)

        return [key for key in self.columns if 2 * filled(key) > len(self.rows)]


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", []) or value != value  # NaN, which is what tables have for nothing


def recognise(rows: Sequence[Any]) -> tuple[dict, bool]:
    """``(mapping, is it certain)`` of a file whose first rows are ``rows``. An uncertain one is a proposal for a form;
    it may be without a layout."""
    if rows and all(isinstance(row, str) for row in rows):
        return {"layout": "text"}, True
    seen = Seen([row for row in rows if isinstance(row, dict)])
    if not seen.rows:
        return {}, False
    for known in (_canonical, _preference, _kto, _instructions, _talk, _text_list, _pairs, _text):
        if mapping := known(seen):
            return mapping, True
    texts = seen.texts()
    if len(texts) >= 2:
        return {"layout": "pairs", "question": texts[0], "answer": texts[1]}, False
    return ({"layout": "text", "text": texts[0]}, False) if texts else ({}, False)


def is_canonical(row: dict) -> str | None:
    """The layout of a row that training reads as it is; None for any other."""
    if isinstance(row.get("text"), str) and not {"instruction", "output"} <= row.keys():
        return "text"
    if any(isinstance(row.get(name, 0), str | None) for name in SYSTEMS):
        return None  # training reads system messages, and no column beside them
    if _has_roles(row.get("conversations")) and not {"chosen", "rejected"} & row.keys():
        return None if isinstance(row.get("label"), bool) else "conversations"
    if _has_roles(row.get("chosen")) and _has_roles(row.get("rejected")) and not (
            {"prompt", "question", "instruction", "conversations", "messages"} & row.keys()):
        return "dpo"
    others = (value for key, value in row.items() if key not in ("question", "id"))
    if isinstance(row.get("question"), str) and not any(isinstance(value, str | list | dict) for value in others):
        return "questions"  # with nothing beside that could be their answer
    return None


def _has_roles(value: Any) -> bool:
    """Our messages: a role and a plain text each, no parts and no names of others for roles and texts."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(m, dict) and m.get("role") in ("system", "user", "assistant", "tool")
        and isinstance(m.get("content"), str | None) and "function_call" not in m
        and ("content" in m or not m.keys() & set(CONTENT_KEYS)) for m in value)


def _canonical(seen: Seen) -> dict | None:
    found = {is_canonical(row) for row in seen.rows}
    return {"layout": found.pop()} if len(found) == 1 and None not in found else None


def _extras(seen: Seen) -> dict:
    """Columns that many layouts have beside."""
    found = {"system": seen.find_any(SYSTEMS, str), "tools": seen.find_any(("tools", "functions"), (str, list))}
    return {key: column for key, column in found.items() if column}


def _preference(seen: Seen) -> dict | None:
    chosen, rejected = (seen.find(names, (str, list, dict)) for names in (CHOSEN, REJECTED))
    if not chosen or not rejected:
        return None
    mapping = {"layout": "preference", "chosen": chosen, "rejected": rejected, **_prompt_of(seen), **_extras(seen)}
    return mapping


def _prompt_of(seen: Seen) -> dict:
    if talk := _talk_column(seen):
        return talk
    question = seen.find([q for q in QUESTIONS if q != "title"], (str, list, dict))
    more = seen.find_any(("input",), str)
    if question and more and question != more and seen.names.get("instruction") == question:
        return {"question": [question, more]}
    return {"question": question} if question else {}


def _kto(seen: Seen) -> dict | None:
    label = seen.find(LABELS, bool) or next(
        (key for name in LABELS if (key := seen.names.get(name)) and _rates(seen, key)), None)
    if not label:
        return None
    if talk := _talk_column(seen):
        return {"layout": "kto", "label": label, **talk, **_extras(seen)}
    question, answer = seen.find(QUESTIONS, (str, list)), seen.find(ANSWERS, (str, list))
    return {"layout": "kto", "label": label, "question": question, "answer": answer,
            **_extras(seen)} if question and answer else None


def _rates(seen: Seen, key: str) -> bool:
    """Whether a column says good or bad in words or numbers. Numbers must be of both kinds: a lone 1 may be a class."""
    said = _labels(seen, key)
    return bool(said) and said <= {"true", "false"} or said == {"0", "1"}


def _labels(seen: Seen, key: str) -> set[str]:
    return {str(row[key]).lower().removesuffix(".0") for row in seen.rows if key in row and not _is_empty(row[key])}


def may_rate(rows: Sequence[dict]) -> str | None:
    """A column that has one of the numbers 1 and 0 in all of the first rows: rows behind them may have the other."""
    seen = Seen(rows)
    keys = (seen.names.get(name) for name in LABELS)
    return next((key for key in keys if key and _labels(seen, key) in ({"0"}, {"1"})), None)


def _instructions(seen: Seen) -> dict | None:
    instruction = seen.find(("instruction",), str)
    if not instruction:
        return None
    instances, output = seen.find(("instances",), list), seen.find(("output",), str)
    if instances:
        return {"layout": "self_instruct", "instruction": instruction, "instances": instances}
    if not output:
        return None
    others = {"input": seen.names.get("input"), "system": seen.find_any(SYSTEMS, str),
              "history": seen.find_any(("history",), list)}
    return {"layout": "alpaca", "instruction": instruction, "output": output, **{k: v for k, v in others.items() if v}}


def _talk_column(seen: Seen) -> dict | None:
    """The column of a conversation and what its elements call the speaker and the words."""
    column = seen.find(TALKS, list)
    elements = seen.value(column) or []
    first = elements[0] if elements else None
    if not column or not isinstance(first, dict | str):
        return None
    if isinstance(first, str):
        return {"messages": column}
    role = next((key for key in ROLE_KEYS if key in first), None)
    content = next((key for key in CONTENT_KEYS if key in first), None)
    if not content and "tool_calls" not in first:
        return None
    return {"messages": column, **({"role": role} if role else {}), **({"content": content} if content else {})}


def _talk(seen: Seen) -> dict | None:
    talk = _talk_column(seen)
    if not talk:
        return None
    layout = {"from": "sharegpt", "role": "openai"}.get(talk.get("role", ""), "dialogue")
    extras = _extras(seen)
    talks = [row[talk["messages"]] for row in seen.rows if isinstance(row.get(talk["messages"]), list)]
    words = {str(element.get("role")).lower() for talk in talks for element in talk if isinstance(element, dict)}
    if layout == "dialogue" or words & {"usr", "sys"} and "system" not in words:
        layout = "dialogue"
        extras.pop("tools", None)
    return {"layout": layout, **talk, **extras}


def _text_list(seen: Seen) -> dict | None:
    column = seen.find(("paragraphs",), list)
    return {"layout": "text", "text": column} if column and isinstance(seen.value(column)[0], str) else None


def _pairs(seen: Seen) -> dict | None:
    question = seen.find(QUESTIONS, str)
    answer = next((key for name in ANSWERS if (key := seen.names.get(name)) and key != question
                   and isinstance(seen.value(key), str | int | float) and not isinstance(seen.value(key), bool)), None)
    texts = seen.texts()
    if answer and not question and len(seen.columns) == 2 and len(texts) == 2:
        question = next(key for key in texts if key != answer)  # a column beside answers holds what they answer
    if not question or not answer:
        return None
    context = seen.find_any([name for name in CONTEXTS if seen.names.get(name) != question], str)
    joined = [context, question] if context and context != answer else question
    if isinstance(joined, list) and context.lower() == "input":
        joined.reverse()  # an instruction stands before its input
    found = {"system": seen.find_any(SYSTEMS, str), "history": seen.find_any(("history",), list)}
    return {"layout": "pairs", "question": joined, "answer": answer, **{k: v for k, v in found.items() if v}}


def _text(seen: Seen) -> dict | None:
    column = seen.find(TEXTS, (str, list))
    return {"layout": "text", "text": column} if column else None


def completed(mapping: dict, rows: Sequence[Any], name: str) -> tuple[dict, bool]:
    """What a mapping leaves open, found out from the first rows; ``(mapping, is it certain)``.

    Raises ``ConfigError`` for columns that the file does not have, and for needed ones that cannot be found.
    """
    general = {key: mapping[key] for key in ("encoding", "delimiter", "header", "replace") if key in mapping}
    given = {key: value for key, value in mapping.items() if key not in general}
    found, is_certain = recognise(rows)
    if not given:
        return {**found, **general}, is_certain
    layout = given.get("layout") or found.get("layout")
    if layout is None:
        raise ConfigError([{"field": "mapping.layout", "message": "The mapping names columns and no layout.",
                            "hint": 'Add one, such as {"layout": "pairs", ...}.'}])
    checked({**given, "layout": layout})  # now that it is known, what this layout cannot have is wrong
    family = {"kto": "kto_good", "kto_good": "kto", "sharegpt": "openai", "openai": "dialogue"}
    fits = found.get("layout") == layout or family.get(found.get("layout", "")) == layout
    seen = Seen([row for row in rows if isinstance(row, dict)])
    base = found if fits else _guess(layout, seen)
    unsure = {key: value for key, value in base.items() if key in columns_of(layout)}
    if "messages" in given:
        unsure = {k: v for k, v in unsure.items() if k not in ("role", "content", "question", "answer")}
    if "question" in given:
        unsure.pop("messages", None)
    complete = {**unsure, **given, "layout": layout, **general}
    problems = [{"field": f"mapping.{key}", "message": f"{name} has no column {column!r}.",
                 "hint": f"Its columns are {', '.join(map(str, seen.columns[:20]))}."}
                for key, column in missing_columns(complete, seen.keys)]
    if seen.rows and layout not in CANONICAL:
        problems += [{"field": f"mapping.{key}", "message": f"The layout {layout} needs the column of {key}.",
                      "hint": f"Name one of {', '.join(map(str, seen.columns[:20]))}."}
                     for key in needed_of(layout) if key not in complete]
    if problems:
        raise ConfigError(problems)
    return complete, True


def _guess(layout: str, seen: Seen) -> dict:
    """Columns that a layout which was named can have in this file."""
    ways = {"alpaca": _instructions, "self_instruct": _instructions, "pairs": _pairs, "text": _text,
            "preference": _preference, "kto": _kto, "kto_good": _kto, "sharegpt": _talk, "openai": _talk,
            "dialogue": _talk}
    return (ways[layout](seen) if layout in ways else None) or {}
