"""``events.jsonl``: what a trainer tells the world, one JSON object a line, never read back by it.

``{"v":1,"attempt":n,"t":unix seconds,"type":...,"step":k,"tokens":k,"data":{...}}``

A reader may see a last line without newline (the writer was killed in the middle); it is ignored.
NaN and infinity are written as ``null``: JSON has no word for them and every reader must survive them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENT_VERSION = 1
EVENT_TYPES = ("phase", "metrics", "log", "sample", "eval", "checkpoint", "state", "warning", "error")
PHASES = ("import", "tokenizer", "tokenize", "compile", "train", "eval", "save")


def finite(value: Any) -> Any:
    """``value`` with every NaN or infinity replaced by ``None``, containers included."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def dumps(value: Any) -> str:
    """Compact strict JSON in UTF-8 text, non-finite numbers as ``null``."""
    return json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class EventWriter:
    """Appends events of one attempt. A write error (disk full) never stops training: it is counted."""

    def __init__(self, path: Path, attempt: int):
        self.attempt = attempt
        self.lost = 0
        self._file = open(path, "ab", buffering=0)
        # A killed writer of this attempt can have left half a line: close it, so that ours starts clean.
        self._torn = self._file.tell() > 0 and not _ends_with_newline(path)

    def write(self, type: str, data: dict | None = None, *, step: int = 0, tokens: int = 0) -> None:
        assert type in EVENT_TYPES, type
        event = {"v": EVENT_VERSION, "attempt": self.attempt, "t": round(time.time(), 3), "type": type,
                 "step": step, "tokens": tokens, "data": data or {}}
        line = b"\n" * self._torn + dumps(event).encode() + b"\n"
        try:
            written = self._file.write(line)  # one call: lines never interleave
        except OSError:
            self.lost += 1
            return
        if written:
            self._torn = written < len(line)  # the disk became full in the middle of the line
        self.lost += written != len(line)

    def close(self) -> None:
        self._file.close()


class NullEventWriter:
    """What every rank but 0 writes to."""

    attempt = 0
    lost = 0

    def write(self, type: str, data: dict | None = None, *, step: int = 0, tokens: int = 0) -> None:
        assert type in EVENT_TYPES, type

    def close(self) -> None:
        return


def read_events(path: Path, offset: int = 0, limit_bytes: int = 4 << 20) -> Iterator[tuple[dict, int]]:
    """Whole events from byte ``offset`` on, each with the offset behind it.

    Reads at most ``limit_bytes`` or one line (call again from the last offset). A line that is not JSON is skipped:
    a killed writer can leave half a line that its successor closed.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            block = file.read(limit_bytes)
            if b"\n" not in block:
                block += file.readline()  # a line longer than the limit must not stop the reader for ever
    except FileNotFoundError:
        return
    position = offset
    for line in block.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        position += len(line)
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("type") in EVENT_TYPES:
            yield event, position


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
