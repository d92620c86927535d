"""A foreign file as rows that training reads: opened, recognised, converted on the fly, with a report of it all."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind.data.foreign import encodings, json_values, recognise, tables
from minimind.data.foreign.convert import Converter
from minimind.data.foreign.mapping import LAYOUTS, checked
from minimind.data.foreign.members import DATA_SUFFIXES, Member, members_of
from minimind.data.foreign.messages import LeaveOut
from minimind.data.foreign.records import Record
from minimind.data.foreign.text import Text
from minimind.errors import ConfigError, DataError

#: another way of reading gives other rows: count up, so that nobody gets the old ones from a cache
CONVERSION_VERSION = 2
#: rows by which a file is recognised
FIRST_ROWS = 20
#: of the rows, how many may be of no use before the file is taken for broken
MAX_LEFT_OUT = 0.1
_PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_][\w.]*\s*\}\}")
MAX_PLACEHOLDERS = 10
#: of a first line that is parsed to see what it is
MAX_FIRST_LINE = 8 << 20


@dataclass
class Report:
    """What reading a file has found so far. ``seen`` rows of the file became ``rows``; ``left_out`` of them did not."""

    seen: int = 0
    rows: int = 0
    left_out: int = 0
    first_left_out: str = ""
    first_line: int | None = None
    first_field: str | None = None
    alone: int = 0
    placeholders: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        found = list(self.notes)
        if self.left_out:
            found.append(f"{self.left_out:,} of {self.seen:,} rows were left out; the first: {self.first_left_out}.")
        if self.alone:
            found.append(f"{self.alone:,} of {self.seen:,} rated answers have no partner (an answer to the same prompt "
                         "with the opposite label) and were left out; the layout kto_good reads the good answers as "
                         "conversations.")
        if self.placeholders:
            names = ", ".join(self.placeholders)
            first = next(iter(self.placeholders))
            found.append(f"The rows hold placeholders: {names}. Put words in their place with a mapping, such as "
                         f'{{"replace": {{"{first}": "..."}}}}.')
        return found


@dataclass
class Part:
    """One member with what was recognised in it."""

    member: Member
    records: Callable[[], Iterator[Record]]
    container: str
    encoding: str
    columns: list[str]
    mapping: dict[str, Any]
    is_certain: bool


class Source:
    """One foreign file. ``shown`` is what to call it, ``mapping`` what is known of it (see ``mapping.py``).

    ``is_partial``: only its beginning is there, so what ends in the middle is no error. A context manager. Raises
    ``DataError``, or ``ConfigError`` for a mapping that does not fit.
    """

    def __init__(self, path: Path | str, *, shown: str | None = None, mapping: dict | None = None,
                 is_partial: bool = False):
        self.path, self.shown = Path(path), shown or Path(path).name
        self.is_partial = is_partial
        self.report = Report()
        self._mapping = checked(mapping or {})
        with ExitStack() as stack:
            members = members_of(self.path, self.shown, stack, is_partial=is_partial)
            self.parts = [part for member in members if (part := self._part(member, stack)) is not None]
            if not self.parts:
                raise DataError(f"{self.shown} is empty.", hint="Give a file with at least one row.")
            self._agree()
            self._stack = stack.pop_all()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def layout(self) -> str | None:
        """The foreign layout; None where it was not recognised."""
        return self.parts[0].mapping.get("layout")

    @property
    def canonical(self) -> str:
        """The layout of the rows, as training knows it. Raises ``DataError`` where nothing was recognised."""
        part = self.parts[0]
        if not self.layout or not part.is_certain:
            raise self.not_recognised()
        return LAYOUTS[self.layout][0]

    def require(self, layout: str) -> None:
        """Raises ``DataError`` unless the rows are ones of ``layout`` (a text is a text, wherever it stood)."""
        if self.canonical != layout and {self.canonical, layout} != {"text", "txt"}:
            raise DataError(f"{self.shown} has the layout {self.layout}, whose rows are read as {self.canonical}, not "
                            f"{layout}.", field="layout",
                            hint=f"Choose {self.canonical}, or a stage that learns from it.")

    @property
    def is_certain(self) -> bool:
        return self.parts[0].is_certain

    def not_recognised(self) -> DataError:
        part = self.parts[0]
        if not part.columns:
            return DataError(f"{part.member.name} holds no JSON objects.", hint="Write one object a row.")
        if {"question", "function"} <= set(part.columns):
            return DataError(f"{part.member.name} has questions and functions and no answers.",
                             hint="There is nothing to learn from without answers: this is a test's question sheet.")
        names = ", ".join(map(str, part.columns[:20]))
        proposal = {k: v for k, v in part.mapping.items() if k in ("layout", "question", "answer", "text")}
        proposal = proposal or {"layout": "text", "text": "..."}
        said = str(proposal).replace("'", '"')
        return DataError(f"{part.member.name} is of no layout that is known; its columns are {names}.",
                         field="mapping", hint=f"Say what they mean with a mapping, such as {said}.")

    # -- recognising --

    def _part(self, member: Member, stack: ExitStack) -> Part | None:
        """The member, read as far as it takes to recognise it; None where it is empty."""
        if member.suffix == ".parquet":
            return self._recognised(member, lambda: tables.parquet_records(member), "parquet", "utf-8")
        text = Text(member, self._mapping.get("encoding"), self.is_partial)
        stack.callback(text.close)
        if warning := None if "encoding" in self._mapping else encodings.said(text.encoding):
            self._note(f"{member.name} was {warning}")
        head = text.head.lstrip()
        if not head and text.is_whole:
            return None
        asked = self._mapping.get("layout")
        if member.suffix in (".csv", ".tsv"):
            table = tables.Table(text, self._mapping.get("delimiter"), self._mapping.get("header"),
                                 recognise.KNOWN_NAMES)
            if not table.is_header_sure:
                self._note(f"The first row of {member.name} was taken "
                           + ("as the names of the columns." if table.has_header else "as data, not as names."))
            return self._recognised(member, table.records, member.suffix[1:], text.encoding, table.columns)
        if asked in ("txt", "lines") or asked is None and member.suffix != ".jsonl" and (
                member.suffix == ".txt" or not head.startswith(("{", "["))):
            layout = asked or "txt"
            given = {key: value for key, value in self._mapping.items() if key in ("encoding", "replace")}
            return Part(member, lambda: _documents(text, layout), "txt", text.encoding, [],
                        {"layout": layout, **given}, True)
        return self._recognised(member, lambda: json_values.json_records(text), json_values.container_of(text),
                                text.encoding)

    def _recognised(self, member: Member, records: Callable[[], Iterator[Record]], container: str, encoding: str,
                    columns: list[str] | None = None) -> Part | None:
        first = [record.value for record in itertools.islice(records(), FIRST_ROWS) if record.problem is None]
        if not first:
            return None
        mapping, is_certain = recognise.completed(self._mapping, first, member.name)
        rows = [value for value in first if isinstance(value, dict)]
        if "layout" not in self._mapping and is_certain and LAYOUTS[mapping["layout"]][0] == "conversations" and (
                column := recognise.may_rate(rows)):
            self._note(f"{member.name} has a column {column} of ones or zeros. If it says which answers are good, "
                       "choose the layout kto or kto_good: now all of them are learnt alike.")
        return Part(member, records, container, encoding, columns or recognise.Seen(rows).columns, mapping, is_certain)

    def _agree(self) -> None:
        """All files of an archive give rows of one layout; what is recognised nowhere is left out and said."""
        known = [part for part in self.parts if part.is_certain]
        if len(self.parts) == 1 or not known:
            return
        strange = [part for part in self.parts if not part.is_certain]
        if strange:
            self._note(f"{len(strange):,} of {len(self.parts):,} files of {self.shown} hold no data that is known and "
                       f"were left out; the first: {strange[0].member.name}.")
        self.parts = known
        found = {LAYOUTS[part.mapping["layout"]][0]: part.member.name for part in reversed(known)}
        if len(found) > 1:
            said = " and ".join(f"{layout} ({name})" for layout, name in sorted(found.items()))
            raise DataError(f"{self.shown} holds files of several layouts: {said}.",
                            hint="Give each kind of data in a file of its own.")

    def _note(self, text: str) -> None:
        if len(self.report.notes) < 10 and text not in self.report.notes:
            self.report.notes.append(text)

    # -- reading --

    def rows(self) -> Iterator[tuple[int, int, dict]]:
        """``(bytes read so far, line, row)`` of every row that training can read, in file order.

        Raises ``DataError`` at the first row that is wrong beyond leaving out, and behind the last one when too many
        were left out.
        """
        if not self.is_certain:
            raise self.not_recognised()
        read, report = 0, self.report
        report.seen = report.rows = report.left_out = report.alone = 0
        for part in self.parts:
            converter = Converter(part.mapping)
            for record in part.records():
                report.seen += 1
                try:
                    if record.problem:
                        raise LeaveOut("", record.problem)
                    for row in converter.rows(record.value):
                        report.rows += 1
                        self._look_for_placeholders(row)
                        yield read + record.done, record.line, row
                except LeaveOut as reason:
                    self._leave_out(part, record, reason)
                except DataError as error:
                    raise DataError(f"{part.member.name} {record.place}: {error.message}", line=record.line,
                                    field=error.field, hint=error.hint) from None
            report.alone += converter.alone
            read += part.member.size
        if not self.is_partial:
            self._judge()

    def _leave_out(self, part: Part, record: Record, reason: LeaveOut) -> None:
        report = self.report
        report.left_out += 1
        if report.left_out == 1:
            report.first_left_out = f"{part.member.name} {record.place}: {reason.message}"
            report.first_line, report.first_field = record.line, reason.field or None

    def _judge(self) -> None:
        report = self.report
        if report.left_out and report.left_out >= MAX_LEFT_OUT * report.seen:
            if report.left_out == report.seen == 1:
                raise DataError(f"{report.first_left_out}.", line=report.first_line, field=report.first_field,
                                hint="Correct it, or say in a mapping which column means what.")
            raise DataError(f"{report.left_out:,} of {report.seen:,} rows cannot be used; the first: "
                            f"{report.first_left_out}.", line=report.first_line, field=report.first_field,
                            hint="Correct these rows, or say in a mapping which column means what.")
        if not report.rows and report.alone:
            raise DataError(f"{self.shown}: no rated answer has a partner, an answer to the same prompt with the "
                            f"opposite label, so none of its {report.alone:,} rows makes a pair.", field="label",
                            hint='Import the good answers as conversations with the layout kto_good.')
        if not report.rows:
            raise DataError(f"{self.shown} is empty.", hint="Give a file with at least one row.")

    def _look_for_placeholders(self, row: dict) -> None:
        found = self.report.placeholders
        said = str(row)
        if "{{" in said and len(found) < MAX_PLACEHOLDERS:
            for name in _PLACEHOLDER.findall(said):
                found[name] = found.get(name, 0) + 1


def _documents(text: Text, layout: str) -> Iterator[Record]:
    """Plain text: paragraphs between blank lines, or each line (layout ``lines``)."""
    lines: list[str] = []
    first = length = 0
    for number, line in enumerate(text.lines(), 1):
        if line.strip() and layout == "lines":
            yield Record(number, None, line.strip(), text.position)
        elif line.strip():
            first = first if lines else number
            lines.append(line)
            length += len(line)
            if length > 64 << 20:
                raise DataError(f"{text.member.name}: the paragraph that begins at line {first} is longer than 64 MiB.",
                                line=first, hint="Separate documents by blank lines.")
        elif lines:
            yield Record(first, None, "".join(lines).strip(), text.position)
            lines, length = [], 0
    if lines:
        yield Record(first, None, "".join(lines).strip(), text.position)


def is_foreign(path: Path) -> bool:
    """Whether a file is to be converted; what is neither known nor ours is left to the reader of our own layouts,
    whose errors name what it lacks."""
    suffix = path.suffix.lower()
    if suffix in (".gz", ".tgz", ".zip", ".csv", ".tsv", ".parquet"):
        return True
    with open(path, "rb") as stream:
        head = stream.read(64 << 10)
        if head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"PAR1")) or not encodings.is_plain_utf8(head):
            return True
        if suffix == ".txt" or b"\0" in head:
            return False
        stream.seek(0)
        first = next((line for line in iter(lambda: stream.readline(MAX_FIRST_LINE), b"") if line.strip()), b"")
    first = first.removeprefix(b"\xef\xbb\xbf").strip()
    if not first.startswith((b"{", b"[")):
        return False
    row = json_values.object_of(first) if first.startswith(b"{") else None
    if row is None:
        if first.startswith(b"[") or first == b"{":
            return True
        return suffix != ".jsonl" and not json_values.begins_a_row(first[:4096].decode("utf-8", "replace"))
    if recognise.is_canonical(row):
        return False
    mapping, is_certain = recognise.recognise([row])
    if is_certain:
        return True
    return json_values.is_collection(row)


def inspect(path: Path | str, shown: str, mapping: dict | None = None, *, rows: int = 5, is_partial: bool = False,
            seconds: float = 3.0) -> dict[str, Any]:
    """What a file looks like, for a preview before it is imported: ``{layout, canonical, container, encoding, columns,
    mapping, is_certain, rows: [{line, row}], counted, placeholders, problems, warnings}``.

    ``counted``: rows of all of it; None where only a beginning was there or could be read in ``seconds``. What is
    wrong with the file or the mapping is not raised, it stands in ``problems``.
    """
    answer: dict[str, Any] = {"layout": None, "canonical": None, "container": None, "encoding": None, "columns": [],
                              "mapping": dict(mapping or {}), "is_certain": False, "rows": [], "counted": None,
                              "placeholders": [], "problems": [], "warnings": []}
    try:
        with Source(path, shown=shown, mapping=mapping, is_partial=is_partial) as source:
            part = source.parts[0]
            answer.update(layout=source.layout, container=part.container, encoding=part.encoding,
                          columns=part.columns, mapping=part.mapping, is_certain=source.is_certain,
                          canonical=LAYOUTS[source.layout][0] if source.layout else None)
            if len(source.parts) > 1:
                answer["container"] = f"zip, {len(source.parts)} files"
            until = time.monotonic() + seconds
            try:
                for _, line, row in source.rows():
                    if len(answer["rows"]) < rows:
                        answer["rows"].append({"line": line, "row": row})
                    if time.monotonic() > until:
                        break
                else:
                    answer["counted"] = None if is_partial else source.report.rows
            except DataError:
                answer["warnings"] = source.report.notes  # the error says the rest
                raise
            answer["placeholders"] = list(source.report.placeholders)
            source.report.placeholders = {}
            answer["warnings"] = source.report.warnings
    except ConfigError as error:
        asked = (mapping or {}).get("layout")
        if mapping and (columns := inspect(path, shown, rows=0, is_partial=is_partial, seconds=0.0)):
            answer.update({key: columns[key] for key in ("columns", "container", "encoding")},
                          layout=asked if asked in LAYOUTS else None,
                          canonical=LAYOUTS[asked][0] if asked in LAYOUTS else None)
        answer["problems"] = error.problems
    except DataError as error:
        answer["problems"] = [{"field": error.field, "message": error.message, "hint": error.hint, "line": error.line}]
    return answer


def write_canonical(source: Source, target: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Convert everything into ``target`` (jsonl); how many rows. ``progress(bytes done, bytes in all)`` may raise."""
    total, count = sum(part.member.size for part in source.parts), 0
    with open(target, "w", encoding="utf-8", errors="surrogatepass") as file:
        for done, _, row in source.rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
            if progress and count % 200 == 0:
                progress(min(done, total), total)
    return count


def data_suffixes() -> tuple[str, ...]:
    """Endings of files that may hold data, packed or not."""
    return (*DATA_SUFFIXES, ".gz", ".zip")
