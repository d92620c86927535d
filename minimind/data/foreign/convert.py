"""One record of a foreign layout as rows that training reads. Each layout is one small function."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from minimind.data.foreign.mapping import CANONICAL, LAYOUTS, columns_of
from minimind.data.foreign.messages import LeaveOut, answered, messages_of, tools_of
from minimind.data.rows import check_conversations, check_dpo, check_question, check_text, kind_of
from minimind.errors import DataError

_CHECKS = {"text": check_text, "txt": check_text, "conversations": check_conversations, "dpo": check_dpo,
           "questions": check_question}
#: "\n\nHuman: ...\n\nAssistant: ..." in one text
_HUMAN = re.compile(r"\n\n(Human|Assistant): ?")
#: titles stand above the paragraphs of a poem or chapter
_TITLES = ("title", "rhythmic", "chapter", "section", "author")


class Converter:
    """Rows of one member, driven by its ``mapping`` (complete: its layout and the columns that are there)."""

    def __init__(self, mapping: dict):
        self.mapping, self.layout = mapping, mapping["layout"]
        self.canonical = LAYOUTS[self.layout][0]
        self._replace: dict[str, str] = mapping.get("replace") or {}
        self._convert: Callable[[Any], Iterator[dict]] = getattr(self, f"_{self.layout}", self._unchanged)
        self._check = _CHECKS[self.canonical]
        self._waiting: dict[bytes, tuple[list[list[dict]], list[list[dict]]]] = defaultdict(lambda: ([], []))

    def rows(self, value: Any) -> Iterator[dict]:
        """Rows of one record, checked as every row is. Raises ``LeaveOut`` and ``DataError``."""
        if not isinstance(value, dict) and not (self.canonical in ("text", "txt") and isinstance(value, str)):
            raise DataError(f"the row is a JSON {kind_of(value)}, not an object.", hint="Write one object a row.")
        for row in self._convert(value):
            row = self._replaced(row) if self._replace else row
            self._check(row)
            yield row

    @property
    def alone(self) -> int:
        """Rated answers that found no partner."""
        return sum(len(good) + len(bad) for good, bad in self._waiting.values())

    # -- texts --

    def _text(self, row: Any) -> Iterator[dict]:
        if isinstance(row, str):
            text = row
        elif "text" not in self.mapping:
            yield from self._unchanged(row)
            return
        else:
            text = self._joined(row, "text")
            heading = [str(row[k]) for k in _TITLES if isinstance(row.get(k), str) and row[k]] if isinstance(
                row.get(self.mapping["text"]) if isinstance(self.mapping["text"], str) else None, list) else []
            text = "\n".join([*heading, text])
        if not text.strip():
            raise LeaveOut(str(self.mapping.get("text", "text")), "the text is empty")
        yield {"text": text.strip()}

    def _lines(self, row: Any) -> Iterator[dict]:
        yield {"text": row}

    _txt = _lines

    def _unchanged(self, row: Any) -> Iterator[dict]:
        yield row

    # -- conversations --

    def _pairs(self, row: dict) -> Iterator[dict]:
        yield self._talk(row, self._joined(row, "question"), self._joined(row, "answer"), "question", "answer")

    def _alpaca(self, row: dict) -> Iterator[dict]:
        question = "\n".join(part for part in (self._joined(row, "instruction"), self._joined(row, "input"))
                             if part.strip())
        yield self._talk(row, question, self._joined(row, "output"), "instruction", "output")

    def _self_instruct(self, row: dict) -> Iterator[dict]:
        instances = row.get(self.mapping["instances"])
        if not isinstance(instances, list) or not instances:
            raise LeaveOut("instances", "instances is empty")
        for place, instance in enumerate(instances):
            if not isinstance(instance, dict):
                raise LeaveOut("instances", f"instances[{place}] is {kind_of(instance)}, not an object")
            parts = (self._joined(row, "instruction"), _as_text(instance.get("input"), "instances"))
            yield self._talk(row, "\n".join(part for part in parts if part.strip()),
                             _as_text(instance.get("output"), "instances"), "instruction", "instances")

    def _sharegpt(self, row: dict) -> Iterator[dict]:
        name = self.mapping["messages"]
        messages = answered(self._with_system(row, self._messages(row)), name)
        yield self._with_tools(row, {"conversations": messages})

    _openai = _sharegpt

    def _dialogue(self, row: dict) -> Iterator[dict]:
        for talk in self._sharegpt(row):
            messages = talk["conversations"]
            while messages[-1]["role"] == "user":  # people part without an answer; there is nothing to learn from that
                messages.pop()
            yield talk

    # -- preferences --

    def _preference(self, row: dict) -> Iterator[dict]:
        names = self.mapping["chosen"], self.mapping["rejected"]
        sides = [self._side(row.get(name), name) for name in names]
        prompt = self._prompt(row)
        if prompt and all(side[0]["role"] != "assistant" for side in sides):  # both repeat it, but for the system's
            system = prompt[:1] if prompt[0]["role"] == "system" else []
            prompt, sides = [], [side if side[0]["role"] == "system" else [*system, *side] for side in sides]
        if not prompt and isinstance(row.get(names[0]), str) and not _HUMAN.match(row[names[0]]):
            raise LeaveOut("question", "the row has no question that its answers belong to")
        chosen, rejected = ([*prompt, *answered(side, name)] for side, name in zip(sides, names, strict=True))
        yield self._with_tools(row, {"chosen": chosen, "rejected": rejected})

    def _side(self, value: Any, name: str) -> list[dict]:
        if isinstance(value, str) and _HUMAN.match(value):
            pieces = _HUMAN.split(value)[1:]
            value = [{"from": who, "value": said.strip()} for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
            return messages_of(value, {"user": "Human", "assistant": "Assistant"}, name)
        if isinstance(value, str):
            value = [{"role": "assistant", "content": value}]
        return messages_of([value] if isinstance(value, dict) else value, self._message_keys(value), name)

    def _kto(self, row: dict) -> Iterator[dict]:
        """Answers to one prompt with opposite labels make pairs, in the order in which they come."""
        prompt, answer, is_good = self._rated(row)
        tools = self._with_tools(row, {})
        key = hashlib.sha256(json.dumps([prompt, tools], sort_keys=True).encode("utf-8", "surrogatepass")).digest()
        good, bad = self._waiting[key]
        own, others = (good, bad) if is_good else (bad, good)
        # One answer that some found good and others bad is no pair with itself.
        place = next((place for place, other in enumerate(others) if other != answer), None)
        if place is None:
            own.append(answer)
            return
        other = others.pop(place)
        chosen, rejected = (answer, other) if is_good else (other, answer)
        yield {"chosen": prompt + chosen, "rejected": prompt + rejected, **tools}
        if not good and not bad:
            del self._waiting[key]

    def _kto_good(self, row: dict) -> Iterator[dict]:
        prompt, answer, is_good = self._rated(row)
        if is_good:
            yield self._with_tools(row, {"conversations": prompt + answer})

    def _rated(self, row: dict) -> tuple[list[dict], list[dict], bool]:
        label = row.get(self.mapping["label"])
        known = {"true": True, "false": False, "1": True, "0": False, "good": True, "bad": False}
        is_good = label if isinstance(label, bool) else known.get(str(label).lower().removesuffix(".0"))
        if is_good is None:
            said = "null" if label is None else repr(str(label)[:40])
            raise LeaveOut(self.mapping["label"], f"{self.mapping['label']} is {said}, not true or false")
        if "messages" not in self.mapping:
            answer = self._side(row.get(self.mapping["answer"]), self.mapping["answer"])
            return self._prompt(row), answered(answer, self.mapping["answer"]), is_good
        messages = answered(self._with_system(row, self._messages(row)), self.mapping["messages"])
        if messages[-1]["role"] != "assistant":
            raise LeaveOut(self.mapping["messages"], "the conversation does not end with the assistant")
        return messages[:-1], messages[-1:], is_good

    # -- pieces --

    def _talk(self, row: dict, question: str, answer: str, asked: str, said: str) -> dict:
        for name, text in ((asked, question), (said, answer)):
            if not text.strip():
                column = self.mapping.get(name, name)
                raise LeaveOut(str(column if isinstance(column, str) else column[-1]), f"{name} is empty")
        messages = []
        history = row.get(self.mapping.get("history") or "") or []
        for turn in history if isinstance(history, list) else []:
            if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(t, str) and t.strip() for t in turn):
                raise LeaveOut("history", "history is not a list of questions with their answers")
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"conversations": self._with_system(row, messages)}

    def _messages(self, row: dict) -> list[dict]:
        name = self.mapping["messages"]
        return messages_of(row.get(name), self.mapping, name, merges=self.layout == "dialogue")

    def _prompt(self, row: dict) -> list[dict]:
        if "messages" in self.mapping:
            return self._with_system(row, self._messages(row))
        asked = self.mapping.get("question")
        if not asked:
            return self._with_system(row, [])
        if isinstance(asked, str) and isinstance(row.get(asked), list | dict):
            value = row[asked]
            return self._with_system(row, messages_of([value] if isinstance(value, dict) else value,
                                                      self._message_keys(value), asked))
        question = self._joined(row, "question")
        if not question.strip():
            raise LeaveOut(asked if isinstance(asked, str) else asked[-1], "question is empty")
        return self._with_system(row, [{"role": "user", "content": question}])

    def _message_keys(self, value: Any) -> dict:
        """Answers may be written with other keys than the conversation is."""
        first = value[0] if isinstance(value, list) and value else value
        return {k: v for k, v in self.mapping.items() if k not in ("role", "content")
                or (isinstance(first, dict) and v in first)}

    def _with_system(self, row: dict, messages: list[dict]) -> list[dict]:
        system = row.get(self.mapping.get("system") or "")
        if isinstance(system, str) and system.strip() and not (messages and messages[0]["role"] == "system"):
            return [{"role": "system", "content": system}, *messages]
        return messages

    def _with_tools(self, row: dict, result: dict) -> dict:
        name = self.mapping.get("tools")
        tools = tools_of(row.get(name), name) if name else []
        return {**result, "tools": tools} if tools else result

    def _joined(self, row: dict, key: str) -> str:
        """The text of the column, or columns, that mean ``key``."""
        names = self.mapping.get(key)
        names = [names] if isinstance(names, str) else names or []
        return "\n".join(text for name in names if (text := _as_text(row.get(name), name)).strip())

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            for word, put in self._replace.items():
                value = value.replace(word, put)
            return value
        if isinstance(value, list):
            return [self._replaced(item) for item in value]
        return {k: self._replaced(v) for k, v in value.items()} if isinstance(value, dict) else value


def _as_text(value: Any, name: str) -> str:
    """A cell as text: numbers as they are written, paragraphs joined. Raises ``LeaveOut`` for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float) and not math.isfinite(value):
        return ""  # as programs for tables write a cell in which nothing stands
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    raise LeaveOut(name, f"{name} is {kind_of(value)}, not text")


def missing_columns(mapping: dict, keys: set[str]) -> list[tuple[str, str]]:
    """``(key of the mapping, column)`` of every column that the mapping names and the file has not."""
    if mapping["layout"] in CANONICAL[1:]:
        return []
    named = [(key, column) for key in columns_of(mapping["layout"]) if key not in ("role", "content")
             for column in ([mapping[key]] if isinstance(mapping.get(key), str) else mapping.get(key) or [])]
    return [(key, column) for key, column in named if column not in keys]
