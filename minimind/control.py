"""``control.json``: the one file through which the outside asks a running trainer for something.

``{"command": "none" | "pause" | "stop", "save": bool, "id": k}``; ``id`` grows with each wish. ``"sample": k`` beside
it, which grows as well, asks the model to speak now; training goes on.
Only rank 0 reads it; the ranks then agree (``stopping.agreed``), so all of them leave at one step.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from minimind.run_dir import read_json, write_json

COMMANDS = ("none", "pause", "stop")


@dataclass(frozen=True)
class Wish:
    command: str = "none"
    save: bool = False
    id: int = 0
    sample: int = 0


def write_control(path: Path, command: str, *, save: bool = False) -> Wish:
    """Ask for ``command``. ``pause`` always saves; ``stop`` saves only if asked."""
    assert command in COMMANDS, command
    before = read_control(path)
    return _write(path, replace(before, command=command, save=command == "pause" or save, id=before.id + 1))


def write_sample_wish(path: Path, number: int) -> Wish:
    """Ask for samples for the ``number``-th time. The command stays, and is not a new wish by this."""
    return _write(path, replace(read_control(path), sample=number))


def _write(path: Path, wish: Wish) -> Wish:
    write_json(path, {key: value for key, value in asdict(wish).items() if key != "sample" or value})
    return wish


def read_control(path: Path) -> Wish:
    """The present wish; a missing or unreadable file means none."""
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("command") not in COMMANDS:
        return Wish()
    id = raw.get("id")
    # a wish that somebody wrote by hand, without a number, is the first one
    number = id if _is_number(id) else int(raw["command"] != "none")
    sample = raw.get("sample")
    return Wish(raw["command"], bool(raw.get("save")), number, sample if _is_number(sample) else 0)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class ControlReader:
    """Reads the file again only when it changed: one ``stat`` a step costs microseconds."""

    def __init__(self, path: Path):
        self.path = path
        self._stamp: tuple | None = None
        self._wish = Wish()

    def read(self) -> Wish:
        try:
            stat = os.stat(self.path)
        except OSError:
            return self._wish
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            self._wish = read_control(self.path)
        return self._wish
