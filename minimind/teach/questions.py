"""What a teacher is asked, read from a file; the first row that is no question is named by line and field.

A row of jsonl is ``{"question": text}``, ``{"prompt": text}`` or ``{"conversations": [...]}`` (or ``messages``), of
which everything up to the last message of the user is asked. In any other text file each line is a question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.chat_format import ROLES
from minimind.data.layouts import read_lines
from minimind.errors import DataError

SHAPE = '{"question": "..."}, {"prompt": "..."} or {"conversations": [{"role": "user", "content": "..."}, ...]}'
#: whose lines are no questions
TABLES_AND_ARCHIVES = (".csv", ".tsv", ".parquet", ".gz", ".zip")


@dataclass(frozen=True)
class Question:
    """``number`` counts the questions of a file from 1; ``messages`` end with one of the user."""

    number: int
    messages: list[dict]

    @property
    def digest(self) -> str:
        """Twelve hex digits that tell one question from another."""
        said = json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def asked(self, system: str = "") -> list[dict]:
        """What goes to the teacher: role and content alone. ``system`` stands in front where the conversation has no
        system message of its own."""
        plain = [{"role": m["role"], "content": m["content"]} for m in self.messages]
        if system and plain[0]["role"] != "system":
            plain.insert(0, {"role": "system", "content": system})
        return plain


def read_questions(path: Path | str, limit: int | None = None) -> Iterator[Question]:
    """The first ``limit`` questions of a file, in its order. Conversations with tools are passed over: a teacher is
    given none, so it would answer something else. Raises ``DataError``."""
    path, number = Path(path), 0
    if path.suffix.lower() in TABLES_AND_ARCHIVES:
        raise DataError(f"{path.name} is a table or an archive, and questions are read from lines.", field="questions",
                        hint=f"Convert it first: python -m minimind.data.foreign {path.name} --out questions.jsonl")
    is_json: bool | None = False if path.suffix.lower() == ".txt" else None
    for line_number, line in _lines(path):
        if is_json is None:
            is_json = path.suffix.lower() in (".jsonl", ".json") or line.startswith("{")
        try:
            messages = _messages(line) if is_json else [{"role": "user", "content": line}]
        except DataError as error:
            raise DataError(f"{path.name} line {line_number}: {error.message}", line=line_number, field=error.field,
                            hint=error.hint) from None
        if messages is None:
            continue
        if limit is not None and number == limit:
            return
        number += 1
        yield Question(number, messages)
    if not number:
        raise DataError(f"{path.name} has no question.", field="questions", hint=f"Rows look like {SHAPE}.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """``(line number, stripped line)`` of every line that is not blank."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.", field="questions", hint="Check the path.")
    for number, line in read_lines(path):
        if line := line.strip():
            yield number, line


def _messages(line: str) -> list[dict] | None:
    """The messages of one row of jsonl up to the last of the user; None where tools take part in them."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DataError("it is not a JSON object.", hint=f"Write one a line: {SHAPE}.")
    for key in ("question", "prompt"):
        if key in row and not isinstance(row[key], list):
            return [{"role": "user", "content": _text(row[key], key)}]
    key = next((k for k in ("conversations", "messages", "prompt") if k in row), None)
    if key is None:
        raise DataError("it has none of the fields question, prompt, conversations.", field="question",
                        hint=f"Rows look like {SHAPE}.")
    if not isinstance(row[key], list):
        raise DataError(f"{key} is not a list.", field=key, hint=f"Rows look like {SHAPE}.")
    return _prompt(row[key], key, has_tools=bool(row.get("tools")))


def _prompt(messages: list[Any], key: str, has_tools: bool) -> list[dict] | None:
    kept: list[dict] = []
    last_user = 0
    for place, message in enumerate(messages):
        where = f"{key}[{place}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise DataError(f"{where}.role is {role!r}.", field=f"{where}.role", hint=f"Roles are {', '.join(ROLES)}.")
        if role == "user":
            last_user = place + 1
        has_tools = has_tools or bool(message.get("tools"))
        kept.append(message)
    if not last_user:
        raise DataError(f"{key} has no message of the user.", field=key, hint="Without one there is nothing to ask.")
    kept = kept[:last_user]
    if has_tools or any(m["role"] == "tool" or m.get("tool_calls") for m in kept):
        return None
    plain = []
    for place, message in enumerate(kept):
        content = message.get("content")
        if content is None and message["role"] == "assistant":
            content = ""
        plain.append({"role": message["role"], "content": _text(content, f"{key}[{place}].content",
                                                                may_be_empty=message["role"] != "user")})
        if message["role"] == "assistant" and isinstance(message.get("reasoning_content"), str):
            plain[-1]["reasoning_content"] = message["reasoning_content"]
    return plain


def _text(value: Any, field: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{field} is not text.", field=field, hint=f"Rows look like {SHAPE}.")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{field} is empty.", field=field, hint="Remove the row or give it a question.")
    return value
