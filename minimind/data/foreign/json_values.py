"""JSON of any size, one value at a time: an array, an object of objects, an array inside an object, or lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from minimind.data.foreign.records import Record
from minimind.data.foreign.text import MAX_LINE_CHARS, Text
from minimind.data.rows import kind_of
from minimind.errors import DataError

#: an object with one of these and an array there is a wrapping, and its rows are in the array
WRAPPERS = ("data", "rows", "examples", "train", "items", "records", "dialogs", "dialogues", "conversations_list")
#: an object whose first key is one of these is a row, whatever its value is
ROW_KEYS = ("text", "conversations", "messages", "chosen", "rejected", "prompt", "question", "instruction", "dialog",
            "dialogue", "dialogues", "utterances", "paragraphs", "history", "instances", "tools", "content", "turns")
_FIRST_KEY = re.compile(r'\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*(.)', re.DOTALL)
_WRAPPED = re.compile(rf'"({"|".join(WRAPPERS)})"\s*:\s*\[')
_SPACE = re.compile(r"[ \t\r\n]*")
#: an error this near to the end of what was read may only mean that more is to come
_NEAR_END = 16


def json_records(text: Text) -> Iterator[Record]:
    """The rows of a JSON file of any of these forms. Raises ``DataError`` with the line of the first mistake."""
    form, key = _form_of(text)
    if form == "lines":
        yield from _lines(text)
    else:
        yield from _Values(text).records(form, key)


def container_of(text: Text) -> str:
    """The form in a word: ``jsonl`` or ``json``."""
    return "jsonl" if _form_of(text)[0] == "lines" else "json"


def begins_a_row(head: str) -> bool:
    """Whether an object that begins so is one row by its first key, and not a collection of rows."""
    match = _FIRST_KEY.match(head)
    return match is not None and (match.group(1) in ROW_KEYS or match.group(2) not in "[{")


def is_collection(value: dict) -> bool:
    """Whether an object holds rows and is none itself."""
    return bool(value) and (all(isinstance(item, dict) for item in value.values())
                            or any(isinstance(value.get(key), list) for key in WRAPPERS))


def _form_of(text: Text) -> tuple[str, str]:
    """``lines``, ``array``, ``objects`` (one behind the other), ``entries`` (id -> row) or ``wrapped`` with its key."""
    head = text.head.lstrip()
    if head.startswith("["):
        return "array", ""
    first, newline, rest = head.partition("\n")
    if text.member.suffix == ".jsonl" and first.strip() != "{" and object_of(first) is None and newline:
        return "lines", ""  # as its name says; the error is then the line's
    whole = object_of(first) if newline or text.is_whole else None
    if whole is not None:
        if rest.strip():
            return "lines", ""
        if is_collection(whole) and all(isinstance(value, dict) for value in whole.values()):
            return "entries", ""
        key = next((k for k in WRAPPERS if isinstance(whole.get(k), list)), "")
        return ("wrapped", key) if key else ("lines", "")
    if newline and first.rstrip().endswith("}") and rest.lstrip().startswith('{"'):
        return "lines", ""  # the first line is broken, and its error should say so
    match = _FIRST_KEY.match(head)
    if match is None:
        return "lines", ""
    key, follows = match.groups()
    if key in ROW_KEYS:
        return ("objects" if newline else "lines"), ""
    if wrapped := _WRAPPED.search(head, 0, 4096):
        return "wrapped", wrapped.group(1)
    return ("entries" if follows == "{" else "objects" if newline else "lines"), ""


def object_of(line: str | bytes) -> dict | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines(text: Text) -> Iterator[Record]:
    for number, line in enumerate(text.lines(), 1):
        line = line.lstrip("\ufeff") if number == 1 else line
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{text.member.name} line {number} is not valid JSON: {error.msg} at column {error.colno}.",
                            line=number, hint="Write one whole JSON object a line.") from None
        except (ValueError, RecursionError):
            raise _unusable(text.member.name, number) from None
        yield Record(number, None, value, text.position)


def _unusable(name: str, line: int) -> DataError:
    return DataError(f"{name} line {line} is not usable JSON: it is nested too deeply or has a number that is too "
                     "long.", line=line, hint="Write plain JSON objects.")


class _End(Exception):
    """The beginning that was sent of a file ends here."""


class _Values:
    """A cursor over a text that grows at its end and is forgotten at its beginning."""

    def __init__(self, text: Text):
        self._text, self._chunks = text, text.chunks()
        self._buffer, self._at = "", 0
        self._lines, self._counted = 1, 0  # the line at place `_counted` of the buffer
        self._decoder = json.JSONDecoder()

    def records(self, form: str, key: str) -> Iterator[Record]:
        try:
            if form == "array":
                yield from self._array()
            elif form == "objects":
                while self._peek():
                    yield self._record(None)
            elif form == "entries":
                yield from self._entries()
            else:
                for found in self._keys():
                    if found == key and self._peek() == "[":
                        yield from self._array()
                    else:
                        self._value()
        except _End:
            return

    def _array(self) -> Iterator[Record]:
        self._take("[")
        number = 0
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            number += 1
            yield self._record(number)
            if self._take(",", "]", after=f"element {number}") == "]":
                return

    def _entries(self) -> Iterator[Record]:
        for number, key in enumerate(self._keys(), 1):
            self._peek()
            line = self.line
            value = self._value()
            if not isinstance(value, dict):
                raise DataError(f"{self._text.member.name} line {line}: the entry {key[:40]!r} is a JSON "
                                f"{kind_of(value)}, not an object.", line=line,
                                hint="Give a list of objects, or an object that holds nothing but objects.")
            yield Record(line, number, value, self._text.position)

    def _keys(self) -> Iterator[str]:
        """Keys of the object here; the cursor then stands before each one's value, which is to be read."""
        self._take("{")
        if self._peek() == "}":
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise self._wrong("a name in quotes")
            self._take(":")
            yield key
            if self._take(",", "}") == "}":
                return

    def _record(self, number: int | None) -> Record:
        self._peek()
        line = self.line
        return Record(line, number, self._value(), self._text.position)

    def _value(self) -> object:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                if end == len(self._buffer) and isinstance(value, int | float) and self._grow():
                    continue  # the number may go on behind the end of the buffer
                self._at = end
                return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _NEAR_END
                if is_cut and self._grow():
                    continue
                if is_cut and self._text.is_partial:
                    raise _End from None
                line = self._line_at(error.pos)
                column = error.pos - self._buffer.rfind("\n", 0, error.pos)
                raise DataError(f"{self._text.member.name} line {line} is not valid JSON: {error.msg} at column "
                                f"{column}.", line=line, hint=_hint_of(error.msg)) from None
            except (ValueError, RecursionError):
                raise _unusable(self._text.member.name, self.line) from None

    def _take(self, *wanted: str, after: str = "") -> str:
        found = self._peek()
        if found not in wanted:
            if not found and self._text.is_partial:
                raise _End
            raise self._wrong(" or ".join(repr(mark) for mark in wanted) + (f" after {after}" if after else ""))
        self._at += 1
        return found

    def _wrong(self, wanted: str) -> DataError:
        found = self._buffer[self._at:self._at + 1]
        said = f"has {found!r} where {wanted} should be" if found else f"ends where {wanted} should be"
        return DataError(f"{self._text.member.name} line {self.line} is not valid JSON: it {said}.", line=self.line,
                         hint="Was the file copied whole?" if not found else "Correct the JSON there.")

    def _peek(self) -> str:
        """The next character that is not blank; '' at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._grow():
                return ""

    def _grow(self) -> bool:
        """At least double what lies before the cursor, so that a long value is tried a few times only."""
        wanted = 2 * (len(self._buffer) - self._at)
        if wanted > 2 * MAX_LINE_CHARS:
            raise DataError(f"{self._text.member.name} line {self.line}: one JSON value is longer than "
                            f"{MAX_LINE_CHARS >> 20} MiB.", line=self.line, hint="Is a quote or bracket not closed?")
        self._count(self._at)
        pieces, size = [self._buffer[self._at:]], 0
        for chunk in self._chunks:
            chunk = chunk if self._buffer or self._lines > 1 else chunk.lstrip("\ufeff")
            pieces.append(chunk)
            size += len(chunk)
            if len(pieces[0]) + size >= wanted:
                break
        if not size:
            return False
        self._buffer, self._at, self._counted = "".join(pieces), 0, 0
        return True

    @property
    def line(self) -> int:
        self._count(self._at)
        return self._lines

    def _count(self, place: int) -> None:
        self._lines += self._buffer.count("\n", self._counted, place)
        self._counted = place

    def _line_at(self, place: int) -> int:
        return self._lines + self._buffer.count("\n", self._counted, place)


def _hint_of(message: str) -> str:
    return "A quote is not closed." if message.startswith("Unterminated") else "Correct the JSON there."
