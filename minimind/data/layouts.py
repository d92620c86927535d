"""What a data file may look like, checked row by row; the first bad row is named by file and line.

=============== ======================================================================================
``text``        jsonl, one ``{"text": "..."}`` a line (MiniMind's pretraining files)
``conversations`` jsonl, ``{"conversations": [{"role", "content", ...}, ...]}`` (MiniMind's SFT files)
``dpo``         jsonl, ``{"chosen": [...], "rejected": [...]}``, each a conversation
``txt``         plain text; a document is a paragraph, paragraphs are separated by blank lines
``questions``   jsonl, ``{"question": "..."}``: for a teacher to answer, no stage learns from it
=============== ======================================================================================

A path is one file or a directory of such files (read in the order of their names). Reading is streaming: memory
is bounded by the longest line. A file of any other layout, container or encoding that ``minimind.data.foreign`` knows
is converted on the fly, so that whoever reads here meets rows of these five only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from minimind.data import foreign
from minimind.data.rows import SHAPES, check_conversations, check_dpo, check_question, check_text, kind_of
from minimind.errors import DataError

LAYOUTS = ("text", "conversations", "dpo", "txt", "questions")
SUFFIXES = foreign.data_suffixes()
#: by which a row tells its layout
KEY_OF_LAYOUT = {"text": "text", "conversations": "conversations", "dpo": "chosen", "questions": "question"}
_CHECKS = {"text": check_text, "conversations": check_conversations, "dpo": check_dpo, "questions": check_question}
MAX_LINE_BYTES = 64 << 20
#: a mean that paragraphs of prose do not reach
LONG_PARAGRAPH_BYTES = 65_536


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
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
        if not files:
            raise DataError(f"There is no data file in the directory {path}.",
                            hint=f"It should hold files ending in {', '.join(SUFFIXES)}.")
        return files
    if not path.exists():
        raise DataError(f"There is no file {path}.", field="data_path", hint="Check the path.")
    return [path]


def detect_layout(path: Path | str) -> str:
    """Layout of ``path`` by its first rows, as training reads it. Raises ``DataError`` if it is none that we know."""
    file = data_files(path)[0]
    if foreign.is_foreign(file):
        with foreign.Source(file) as source:
            return source.canonical
    if file.suffix.lower() == ".txt":
        return "txt"
    first = next(((number, line) for number, line in read_lines(file) if line.strip()), None)
    if first is None:
        raise DataError(f"{file.name} is empty.", hint="Give a file with at least one row.")
    number, line = first
    if file.suffix.lower() not in (".jsonl", ".json") and not line.lstrip().startswith(("{", "[")):
        return "txt"
    row = _object(line, file, number)
    for layout, key in KEY_OF_LAYOUT.items():
        if key in row:
            return layout
    columns = ", ".join(list(row)[:20])
    raise DataError(f"{file.name} line {number} has none of the fields text, conversations, chosen, and is of no other "
                    f"layout that is known; its fields are {columns}.", line=number,
                    hint='Say what they mean with a mapping, such as {"layout": "pairs", "question": "...", '
                         '"answer": "..."}, or write rows like ' + SHAPES["text"] + ".")


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
    damaged = unanswered = silent = 0
    reports: list[foreign.Report] = []
    for done, _, row in iter_places(path, result.layout, reports):
        result.rows += 1
        result.bytes = min(done, total)  # a last line may lack its newline
        damaged += "\ufffd" in str(row)
        if result.layout == "conversations":
            unanswered += row["conversations"][-1]["role"] != "assistant"
            silent += any(map(_says_nothing, row["conversations"]))
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
    result.warnings += [warning for report in reports for warning in report.warnings]
    if result.layout == "txt" and result.rows and result.bytes / result.rows > LONG_PARAGRAPH_BYTES:
        result.warnings.append(f"Paragraphs have {result.bytes // result.rows:,} bytes on average. If each line is a "
                               "document of its own, import the file with the layout lines.")
    if damaged:
        result.warnings.append(f"{damaged} of {result.rows} rows contain the replacement character U+FFFD: "
                               "text was lost in an earlier conversion.")
    if unanswered:
        result.warnings.append(f"{unanswered} of {result.rows} conversations do not end with the assistant; "
                               "nothing is learnt from their last message.")
    if silent:
        result.warnings.append(f"{silent} of {result.rows} conversations have an empty answer of the assistant: the "
                               "model learns to say nothing there.")
    return result


def _says_nothing(message: dict) -> bool:
    said = (message.get(key) for key in ("content", "reasoning_content", "tool_calls"))
    return message["role"] == "assistant" and not any(s.strip() if isinstance(s, str) else s for s in said)


def _known(path: Path | str, layout: str) -> str:
    if layout == "auto":
        return detect_layout(path)
    if layout not in LAYOUTS:
        raise DataError(f"There is no layout named {layout!r}.", field="layout",
                        hint=f"Layouts are auto, {', '.join(LAYOUTS)}.")
    return layout


def iter_places(path: Path | str, layout: str,
                reports: list[foreign.Report] | None = None) -> Iterator[tuple[int, int, dict]]:
    """``(bytes read so far, line number, row)``. What converting foreign files has found is added to ``reports``, one
    for each file, and complete when all of it is read."""
    reports = [] if reports is None else reports
    read = rows = 0
    files = data_files(path)
    for file in files:
        if foreign.is_foreign(file):
            places = _foreign_rows(file, layout, reports)
        else:
            places = _paragraphs(file) if layout == "txt" else _objects(file, layout)
        for number, row, size in places:
            rows += 1
            yield read + size, number, row
        read += file.stat().st_size
    if not rows:
        name = files[0].name if len(files) == 1 else str(path)
        raise DataError(f"{name} is empty.", hint="Give a file with at least one row.")


def _foreign_rows(file: Path, layout: str, reports: list[foreign.Report]) -> Iterator[tuple[int, dict, int]]:
    with foreign.Source(file) as source:
        source.require(layout)
        reports.append(source.report)
        for done, number, row in source.rows():
            yield number, row, done


def _objects(file: Path, layout: str) -> Iterator[tuple[int, dict, int]]:
    check = _CHECKS[layout]
    size = 0
    for number, line in read_lines(file):
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
    for number, line in read_lines(file):
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


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
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
        raise DataError(f"{file.name} line {number} is a JSON {kind_of(row)}, not an object.", line=number,
                        hint=f"Write one object a line, such as {SHAPES['text']}.")
    return row
