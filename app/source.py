"""The source of the training core as a page shows it: which files, their lines, and a little colour.

A client's path is only ever looked up among the names of files that were found below ``minimind/``; it is never opened.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "minimind"
#: kinds of tokens that have a colour; f-strings are tokens of their own from Python 3.12 on
_COLOURED = {tokenize.COMMENT: "comment", tokenize.STRING: "string", tokenize.NUMBER: "number"} | {
    getattr(tokenize, name): "string" for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
    if hasattr(tokenize, name)}


@dataclass(frozen=True)
class Place:
    """Something that a file defines, such as a class."""

    path: str
    name: str

    @property
    def href(self) -> str:
        """Its address, at its line where the file has it."""
        line = definitions(self.path).get(self.name)
        return f"/source/{self.path}" + (f"#L{line}" if line else "")


@dataclass(frozen=True)
class Piece:
    """A stretch of one line; ``kind`` is keyword, string, comment, number, name (of a definition) or plain."""

    text: str
    kind: str = "plain"


@cache
def files() -> dict[str, Path]:
    """Every Python file of the core by its address."""
    return {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))
            if path.is_file() and not path.is_symlink()}


@cache
def _read(path: str) -> str:
    """The program's own text does not change while it runs, as its imports do not."""
    return files()[path].read_text(encoding="utf-8")


@cache
def definitions(path: str) -> dict[str, int]:
    """Functions and classes of a file's top level, with the line that each begins at."""
    if path not in files():
        return {}
    return {node.name: node.lineno for node in ast.parse(_read(path)).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@cache
def summary(path: str) -> str:
    """The first paragraph of a file's docstring; parsing all files takes half a second, so each is parsed once."""
    words = (ast.get_docstring(ast.parse(_read(path))) or "").split("\n\n")[0]
    return " ".join(words.split())


@cache
def lines(path: str) -> list[list[Piece]]:
    """The file line by line. Raises ``KeyError`` for a name that is no file of the core."""
    text = _read(path)
    rows = text.splitlines()
    found: list[list[Piece]] = [[] for _ in rows]
    done = [0] * len(rows)
    for row, start, end, kind in _marked(text):
        if start > done[row]:
            found[row].append(Piece(rows[row][done[row]:start]))
        found[row].append(Piece(rows[row][start:end], kind))
        done[row] = end
    for row, text_of_row in enumerate(rows):
        if done[row] < len(text_of_row):
            found[row].append(Piece(text_of_row[done[row]:]))
    return found


def _marked(text: str) -> Iterator[tuple[int, int, int, str]]:
    """``(row, start, end, kind)`` of what has a colour, in order; a string over several rows comes once a row."""
    rows = text.splitlines()
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = _kind(token, before)
        if token.type == tokenize.NAME or token.type == tokenize.OP:
            before = token.string
        if kind is None:
            continue
        (first, start), (last, end) = token.start, token.end
        for row in range(first - 1, last):
            from_, to = start if row == first - 1 else 0, end if row == last - 1 else len(rows[row])
            if to > from_:
                yield row, from_, to, kind


def _kind(token: tokenize.TokenInfo, before: str) -> str | None:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name" if before in ("def", "class") else None
    return _COLOURED.get(token.type)
