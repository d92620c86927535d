"""The answers so far, a line each, so that a restart asks only what has no answer yet.

The first line says which teacher and options the answers belong to, every other one ``{"n": number, "q": digest of
the question, "answer": message}`` or ``{"n", "q", "left_out": why}``, in the order in which they came. A last line
without its newline was being written when the process ended; it is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minimind.errors import DataError
from minimind.run_dir import fsync_dir
from minimind.teach.questions import Question
from minimind.teach.teachers import Answer


class Journal:
    """Open, and held by this process alone, until ``close``. Raises ``DataError`` where it was begun otherwise."""

    def __init__(self, path: Path | str, options: dict[str, Any]):
        self.path = Path(path)
        self.left_out: Counter[str] = Counter()
        self.answered = 0
        self._places: dict[int, tuple[int, str]] = {}  # number -> offset of the line, digest of the question
        self._file = open(self.path, "a+b")  # until `close`
        try:
            self._hold()
            self._read(options)
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def has(self, question: Question) -> bool:
        """Whether this question was asked. Raises ``DataError`` where another one had its number."""
        place = self._places.get(question.number)
        if place is not None and place[1] != question.digest:
            raise DataError(f"Question {question.number} is another one than when {self.path.name} was begun.",
                            field="questions", hint=f"Use the file of then, or remove {self.path} to begin anew.")
        return place is not None

    def add(self, question: Question, answer: Answer) -> None:
        """Write an answer down; it is on its way to the disk when this returns."""
        said = {"left_out": answer.left_out} if answer.left_out else {"answer": answer.message()}
        self._file.seek(0, os.SEEK_END)
        self._note({"n": question.number, "q": question.digest, **said}, self._file.tell())
        self._write({"n": question.number, "q": question.digest, **said})

    def write_rows(self, path: Path | str, questions: Iterable[Question], *, system: str = "") -> int:
        """Write what was answered as ``{"conversations": [...]}``, in the order of ``questions``; the file appears
        whole or not at all. ``system``: kept in front of rows without a system message. Returns how many rows."""
        path, rows = Path(path), 0
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with open(aside, "w", encoding="utf-8") as file:
                for question in questions:
                    answer = self._answer(question) if self.has(question) else None
                    if answer is None:
                        continue
                    messages = question.messages
                    if system and messages[0]["role"] != "system":
                        messages = [{"role": "system", "content": system}, *messages]
                    file.write(_dumps({"conversations": [*messages, answer]}) + "\n")
                    rows += 1
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            fsync_dir(path.parent)
        finally:
            aside.unlink(missing_ok=True)
        return rows

    def _answer(self, question: Question) -> dict | None:
        self._file.seek(self._places[question.number][0])
        return json.loads(self._file.readline()).get("answer")

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"Another process is writing {self.path}.", field="out",
                            hint="Wait until it has ended, or choose another name.") from None
        except OSError:  # a file system without locks: two of them at once are then not noticed
            return

    def _read(self, options: dict[str, Any]) -> None:
        self._file.seek(0)
        head, offset = None, 0
        for number, line in enumerate(iter(self._file.readline, b""), 1):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                raise DataError(f"{self.path.name} line {number} is damaged.", line=number,
                                hint=f"Remove the line, or {self.path} as a whole to begin anew.") from None
            if entry is None:
                break  # torn
            if head is None:
                head = entry.get("options")
                self._compare(head, options)
            else:
                self._note(entry, offset)
            offset += len(line)
        self._file.truncate(offset)
        if head is None:
            self._write({"options": options})

    def _compare(self, begun: Any, options: dict[str, Any]) -> None:
        now = json.loads(_dumps(options))
        if not isinstance(begun, dict):
            raise DataError(f"{self.path} holds no answers of a teacher.", field="out", hint="Choose another name.")
        other = [k for k in sorted({*begun, *now}) if begun.get(k) != now.get(k)]
        if other:
            told = ", ".join(f"{k} was {_dumps(begun.get(k))} and is {_dumps(now.get(k))} now" for k in other)
            raise DataError(f"{self.path.name} was begun otherwise: {told}.", field=other[0],
                            hint=f"Ask in the same way, or remove {self.path} to begin anew.")

    def _note(self, entry: dict, offset: int) -> None:
        if entry["n"] in self._places:
            return
        self._places[entry["n"]] = (offset, entry["q"])
        if "answer" in entry:
            self.answered += 1
        else:
            self.left_out[entry["left_out"]] += 1

    def _write(self, entry: dict) -> None:
        self._file.write(_dumps(entry).encode() + b"\n")
        self._file.flush()


def _dumps(value: Any) -> str:
    """One line of JSON that UTF-8 can hold: a teacher may say half a surrogate pair."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
