"""Tables: comma- or tab-separated text with a sniffed delimiter and header, and parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import itertools
from collections.abc import Iterator
from typing import Any

from minimind.data.foreign.members import Member
from minimind.data.foreign.records import Record
from minimind.data.foreign.text import MAX_LINE_CHARS, Text
from minimind.errors import DataError

DELIMITERS = (",", "\t", ";", "|")
MAX_COLUMNS = 1000
_SNIFFED_ROWS = 50
#: a first row with a longer cell holds data, not names
_MAX_NAME_CHARS = 48


class Table:
    """Rows of a csv or tsv file as dicts. ``is_header_sure``: whether it is certain that the first row holds names."""

    def __init__(self, text: Text, delimiter: str | None = None, header: bool | None = None,
                 known_names: frozenset[str] = frozenset()):
        self._text = text
        csv.field_size_limit(MAX_LINE_CHARS)
        self.delimiter = delimiter or _sniff(text.head, "\t" if text.member.suffix == ".tsv" else ",")
        first = next(iter(_parsed(text.head, self.delimiter, 1)), [])
        sure = bool({cell.strip().lower() for cell in first} & known_names)
        self.is_header_sure = header is not None or sure
        self.has_header = header if header is not None else sure or _looks_like_names(first)
        self.columns = [cell.strip().lstrip("\ufeff") for cell in first] if self.has_header else [
            f"column{number}" for number in range(1, len(first) + 1)]
        if len(self.columns) > MAX_COLUMNS:
            raise DataError(f"{text.member.name} line 1 has {len(self.columns):,} columns; {MAX_COLUMNS:,} is the "
                            "most.", line=1, hint="Name its delimiter in a mapping if it was guessed wrong.")
        twice = {name for name in self.columns if self.columns.count(name) > 1}
        if twice:
            raise DataError(f"{text.member.name} line 1 has two columns named {sorted(twice)[0]!r}.", line=1,
                            hint="Rename one, or say in a mapping that the file has no header.")

    def records(self) -> Iterator[Record]:
        """Rows below the header; of the beginning of a file, without the last one, which may be cut."""
        if not self._text.is_partial:
            yield from self._records()
            return
        kept: Record | None = None
        for record in self._records():
            if kept:
                yield kept
            kept = record

    def _records(self) -> Iterator[Record]:
        lines = self._text.lines()
        reader = csv.reader(lines, delimiter=self.delimiter)
        before = 0
        is_first = True
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{self._text.member.name} line {before + 1} is not a row of a table: {error}.",
                                line=before + 1, hint="Is a quote not closed?") from None
            if cells is None:
                return
            line, before = before + 1, reader.line_num
            if not any(cell.strip() for cell in cells) or (is_first and self.has_header):
                is_first = is_first and not cells
                continue
            is_first = False
            problem = None
            if len(cells) != len(self.columns):
                problem = f"the row has {len(cells)} cells and the table {len(self.columns)} columns"
            yield Record(line, None, dict(zip(self.columns, cells, strict=False)), self._text.position, problem)


def _parsed(head: str, delimiter: str, rows: int) -> list[list[str]]:
    try:
        reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
        return list(itertools.islice((row for row in reader if row), rows))
    except csv.Error:
        return []


def _sniff(head: str, fallback: str) -> str:
    """The delimiter that cuts the first rows into the same number of cells, the more cells the better."""
    best, chosen = (0.0, 0), fallback
    for delimiter in (fallback, *(d for d in DELIMITERS if d != fallback)):
        sizes = [len(row) for row in _parsed(head, delimiter, _SNIFFED_ROWS + 1)]
        sizes = sizes[:-1] if len(sizes) > 1 else sizes  # the last one may be cut
        if not sizes or sizes[0] < 2:
            continue
        score = (sum(size == sizes[0] for size in sizes) / len(sizes), sizes[0])
        if score > best:
            best, chosen = score, delimiter
    return chosen


def _looks_like_names(cells: list[str]) -> bool:
    def is_number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    return bool(cells) and len(set(cells)) == len(cells) and all(
        0 < len(cell.strip()) <= _MAX_NAME_CHARS and not is_number(cell) and "\n" not in cell
        and not cell.strip().endswith((".", "?", "!", "。", "？", "！")) for cell in cells)


def parquet_records(member: Member) -> Iterator[Record]:
    """Rows of a parquet file, by row group. Raises ``DataError`` where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{member.name} is a parquet file, and the package pyarrow is not installed.",
                        hint="Install it ('pip install pyarrow'), or export the file as .jsonl.")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    with member.open() as stream:
        content = bytearray()
        while block := stream.read():
            content += block
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        number = 0
        for batch in file.iter_batches(1000):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, None, row, round(member.size * number / max(1, file.metadata.num_rows)))
    except (OSError, ValueError) as error:
        raise DataError(f"{member.name} is not a parquet file that can be read: {error}.",
                        hint="Export it again, or as .jsonl.") from None
