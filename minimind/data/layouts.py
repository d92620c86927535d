"""What a data file may look like, checked row by row; the first bad row is named by file and line.

=============== ======================================================================================
``text``        jsonl, one ``{"text": "..."}`` a line (MiniMind's pretraining files)
``conversations`` jsonl, ``{"conversations": [{"role", "content", ...}, ...]}`` (MiniMind's SFT files)
``dpo``         jsonl, ``{"chosen": [...], "rejected": [...]}``, each a conversation
``txt``         plain text; a document is a paragraph, paragraphs are separated by blank lines
=============== ======================================================================================

A path is one file or a directory of such files (read in the order of their names). Reading is streaming: memory
is bounded by the longest line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind.chat_format import ROLES
from minimind.errors import DataError

LAYOUTS = ("text", "conversations", "dpo", "txt")
SUFFIXES = (".jsonl", ".json", ".txt")
MAX_LINE_BYTES = 64 << 20
#: keys of layouts that other programs write, for a helpful refusal
FOREIGN = {
    "instruction": "This looks like Alpaca's layout",
    "messages": "This looks like OpenAI's layout",
    "prompt": "This looks like a prompt/completion file",
}
SHAPES = {
    "text": '{"text": "..."}',
    "txt": "plain text",
    "conversations": '{"conversations": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "dpo": '{"chosen": [{"role": "user", ...}, ...], "rejected": [...]}',
}


@dataclass
class ScanResult:
    """What a full read of a file or directory found."""

    layout: str
    rows: int = 0
    bytes: int = 0
    warnings: list[str] = field(default_factory=list)


def data_files(path: Path | str) -> list[Path]:
    """The file itself, or the data files of a directory by name. Raises ``DataError`` when there is none."""
    path = Path(path)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and f.is_file())
        if not files:
            raise DataError(f"There is no data file in the directory {path}.",
                            hint=f"It should hold files ending in {', '.join(SUFFIXES)}.")
        return files
    if not path.exists():
        raise DataError(f"There is no file {path}.", field="data_path", hint="Check the path.")
    return [path]


def detect_layout(path: Path | str) -> str:
    """Layout of ``path`` by its first row. Raises ``DataError`` if it is none that we know."""
    file = data_files(path)[0]
    if file.suffix == ".txt":
        return "txt"
    first = next(((number, line) for number, line in _lines(file) if line.strip()), None)
    if first is None:
        raise DataError(f"{file.name} is empty.", hint="Give a file with at least one row.")
    number, line = first
    if file.suffix not in (".jsonl", ".json") and not line.lstrip().startswith(("{", "[")):
        return "txt"
    row = _object(line, file, number)
    for layout in ("text", "conversations", "dpo"):
        if (layout if layout != "dpo" else "chosen") in row:
            return layout
    raise DataError(f"{file.name} line {number} has none of the fields text, conversations, chosen.", line=number,
                    hint=_shape_hint(row))


def iter_rows(path: Path | str, layout: str = "auto") -> Iterator[tuple[int, dict]]:
    """``(line number, row)`` of every row, in file order; rows of ``txt`` are ``{"text": paragraph}``.

    Raises ``DataError`` at the first row that cannot be used, and when there is no row at all.
    """
    for _, number, row in iter_places(path, _known(path, layout)):
        yield number, row


def scan(path: Path | str, layout: str = "auto", limit: int | None = None,
         progress: Callable[[int, int], None] | None = None,
         should_stop: Callable[[], bool] | None = None) -> ScanResult:
    """Read everything (or the first ``limit`` rows) and say what is there.

    ``progress(bytes done, bytes in all)`` and ``should_stop()`` are called every thousand rows. Raises ``DataError``.
    """
    files = data_files(path)
    total = sum(f.stat().st_size for f in files)
    result = ScanResult(_known(path, layout))
    damaged = unanswered = 0
    for done, _, row in iter_places(path, result.layout):
        result.rows += 1
        result.bytes = min(done, total)  # a last line may lack its newline
        damaged += "\ufffd" in str(row)
        if result.layout == "conversations":
            unanswered += row["conversations"][-1]["role"] != "assistant"
        if result.rows % 1000 == 0:
            if progress:
                progress(result.bytes, total)
            if should_stop and should_stop():
                break
        if limit is not None and result.rows >= limit:
            break
    else:
        result.bytes = total
    if progress:
        progress(result.bytes, total)
    if damaged:
        result.warnings.append(f"{damaged} of {result.rows} rows contain the replacement character U+FFFD: "
                               "text was lost in an earlier conversion.")
    if unanswered:
        result.warnings.append(f"{unanswered} of {result.rows} conversations do not end with the assistant; "
                               "nothing is learnt from their last message.")
    return result


def _known(path: Path | str, layout: str) -> str:
    if layout == "auto":
        return detect_layout(path)
    if layout not in LAYOUTS:
        raise DataError(f"There is no layout named {layout!r}.", field="layout",
                        hint=f"Layouts are auto, {', '.join(LAYOUTS)}.")
    return layout


def iter_places(path: Path | str, layout: str) -> Iterator[tuple[int, int, dict]]:
    """``(bytes read so far, line number, row)``."""
    read = rows = 0
    files = data_files(path)
    for file in files:
        for number, row, size in _paragraphs(file) if layout == "txt" else _objects(file, layout):
            rows += 1
            yield read + size, number, row
        read += file.stat().st_size
    if not rows:
        name = files[0].name if len(files) == 1 else str(path)
        raise DataError(f"{name} is empty.", hint="Give a file with at least one row.")


def _objects(file: Path, layout: str) -> Iterator[tuple[int, dict, int]]:
    check = {"text": _check_text, "conversations": _check_conversations, "dpo": _check_dpo}[layout]
    size = 0
    for number, line in _lines(file):
        size += len(line.encode()) if not line.isascii() else len(line)
        if not line.strip():
            continue
        row = _object(line, file, number)
        try:
            check(row)
        except DataError as error:
            raise DataError(f"{file.name} line {number}: {error.message}", line=number, field=error.field,
                            hint=error.hint) from None
        yield number, row, size


def _paragraphs(file: Path) -> Iterator[tuple[int, dict, int]]:
    lines: list[str] = []
    first = size = length = 0
    for number, line in _lines(file):
        size += len(line.encode()) if not line.isascii() else len(line)
        if line.strip():
            first = first if lines else number
            lines.append(line)
            length += len(line)
            if length > MAX_LINE_BYTES:
                raise DataError(f"{file.name}: the paragraph that begins at line {first} is longer than "
                                f"{MAX_LINE_BYTES >> 20} MiB.", line=first, hint="Separate documents by blank lines.")
        elif lines:
            yield first, {"text": "".join(lines).strip()}, size
            lines, length = [], 0
    if lines:
        yield first, {"text": "".join(lines).strip()}, size


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """``(line number, line)`` with universal newlines; a byte order mark is dropped, anything but UTF-8 refused."""
    with open(file, "rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{file.name} line {number} is longer than {MAX_LINE_BYTES >> 20} MiB.", line=number,
                                hint="Write one row a line.")
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{file.name} is UTF-16, not UTF-8.", line=1, hint="Save it as UTF-8.")
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file.name} line {number} is not UTF-8 (byte {error.start + 1} is "
                                f"0x{line[error.start]:02x}).", line=number, hint="Save the file as UTF-8.") from None
            if "\0" in text:
                raise DataError(f"{file.name} line {number} has a zero byte: this is not a text file.", line=number,
                                hint="Give a jsonl or txt file in UTF-8.")
            yield number, text.removesuffix("\n").removesuffix("\r") + "\n"


def _object(line: str, file: Path, number: int) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        hint = "Write one whole JSON object a line."
        if line.strip() in ("[", "{"):
            hint = "This looks like one JSON document over many lines: write one object a line (jsonl)."
        raise DataError(f"{file.name} line {number} is not valid JSON: {error.msg} at column {error.colno}.",
                        line=number, hint=hint) from None
    except (ValueError, RecursionError):
        raise DataError(f"{file.name} line {number} is not usable JSON: it is nested too deeply or has a number that "
                        "is too long.", line=number, hint="Write one plain JSON object a line.") from None
    if not isinstance(row, dict):
        raise DataError(f"{file.name} line {number} is a JSON {_kind(row)}, not an object.", line=number,
                        hint=f"Write one object a line, such as {SHAPES['text']}.")
    return row


def _check_text(row: dict) -> None:
    text = _required(row, "text", str, SHAPES["text"])
    if not text.strip():
        raise DataError("text is empty.", field="text", hint="Remove the line or give it text.")


def _check_conversations(row: dict) -> None:
    _check_messages(_required(row, "conversations", list, SHAPES["conversations"]), "conversations")
    _check_tools(row)


def _check_dpo(row: dict) -> None:
    for name in ("chosen", "rejected"):
        _check_messages(_required(row, name, list, SHAPES["dpo"]), name)
    _check_tools(row)


def _check_tools(row: dict) -> None:
    """``tools`` beside the messages: a list, or the JSON text of one."""
    value = row.get("tools")
    if value == "" or (value and not isinstance(value, str | list | dict)):
        raise DataError("tools is not a JSON list of objects.", field="tools",
                        hint="Leave tools out where there are none.")
    if isinstance(value, str):
        _json_list(value, "tools", "tools")


def _check_messages(messages: list, name: str) -> None:
    if not messages:
        raise DataError(f"{name} is empty.", field=name, hint="Give at least a question and an answer.")
    for place, message in enumerate(messages):
        where = f"{name}[{place}]"
        if not isinstance(message, dict):
            raise DataError(f"{where} is a JSON {_kind(message)}, not an object.", field=where,
                            hint=f"Write {SHAPES['conversations']}.")
        if "role" not in message and "from" in message:
            raise DataError(f"{where} has from/value instead of role/content.", field=where,
                            hint="This looks like ShareGPT's layout: rename from to role and value to content.")
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"{where}.role is {role!r}.", field=f"{where}.role", hint=f"Roles are {', '.join(ROLES)}.")
        content = message.get("content")
        says_otherwise = message.get("tool_calls") or message.get("reasoning_content")
        if not isinstance(content, str) and not (content is None and says_otherwise):
            raise DataError(f"{where}.content is {_kind(content)}, not text." if "content" in message
                            else f"{where}.content is missing.", field=f"{where}.content",
                            hint="Each message needs its text in content.")
        if role == "user" and not content.strip():
            raise DataError(f"{where}.content is empty.", field=f"{where}.content",
                            hint="Remove the row or give the message text.")
        for number, call in enumerate(_check_json_list(message, "tool_calls", where)):
            called = call.get("function") or call
            missing = [key for key in ("name", "arguments") if not isinstance(called, dict) or key not in called]
            if missing and role == "assistant":  # nobody else's calls are read
                raise DataError(f"{where}.tool_calls[{number}] has no {missing[0]}.", field=f"{where}.tool_calls",
                                hint='Write a call as {"name": ..., "arguments": {...}}.')
        _check_json_list(message, "tools", where)
        if not isinstance(message.get("reasoning_content", ""), str | None):
            raise DataError(f"{where}.reasoning_content is {_kind(message['reasoning_content'])}, not text.",
                            field=f"{where}.reasoning_content", hint="Write the reasoning as text or leave it out.")
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{name} has no message of the assistant.", field=name,
                        hint="Without an answer there is nothing to learn.")


def _check_json_list(message: dict, name: str, where: str) -> list[dict]:
    """``tools`` and ``tool_calls`` are lists of objects, or JSON texts of such lists."""
    value: Any = message.get(name)
    return _json_list(value, name, f"{where}.{name}") if value else []


def _json_list(value: Any, name: str, where: str) -> list[dict]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where} is not a JSON list of objects.", field=where,
                        hint=f"Leave {name} out where there are none.")
    return value


def _required(row: dict, name: str, kind: type, shape: str) -> Any:
    if name not in row:
        raise DataError(f"the field {name} is missing.", field=name, hint=_shape_hint(row, shape))
    if not isinstance(row[name], kind):
        raise DataError(f"{name} is {_kind(row[name])}, not {'text' if kind is str else 'a list'}.", field=name,
                        hint=f"Rows look like {shape}.")
    return row[name]


def _shape_hint(row: dict, shape: str | None = None) -> str:
    for key, said in FOREIGN.items():
        if key in row:
            return f"{said}: rewrite the rows as {SHAPES['conversations']}."
    for layout, key in (("text", "text"), ("conversations", "conversations"), ("dpo", "chosen")):
        if shape and key in row:
            return f"The row has the layout {layout}: choose that layout, or a stage that learns from it."
    return f"Rows look like {shape or SHAPES['text'] + ' or ' + SHAPES['conversations']}."


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true/false", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
