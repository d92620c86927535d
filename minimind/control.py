"""``control.json``: the one file through which the outside asks a running trainer for something.

``{"command": "none" | "pause" | "stop", "save": bool, "id": k}``; ``id`` grows with each wish.
Only rank 0 reads it; the ranks then agree (``distributed.agree``), so all of them leave at one step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from minimind.run_dir import read_json, write_json

COMMANDS = ("none", "pause", "stop")


@dataclass(frozen=True)
class Wish:
    command: str = "none"
    save: bool = False
    id: int = 0


def write_control(path: Path, command: str, *, save: bool = False) -> Wish:
    """Ask for ``command``. ``pause`` always saves; ``stop`` saves only if asked."""
    assert command in COMMANDS, command
    before = read_control(path)
    wish = Wish(command, command == "pause" or save, before.id + 1)
    write_json(path, {"command": wish.command, "save": wish.save, "id": wish.id})
    return wish


def read_control(path: Path) -> Wish:
    """The present wish; a missing or unreadable file means none."""
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("command") not in COMMANDS:
        return Wish()
    id = raw.get("id")
    # a wish that somebody wrote by hand, without a number, is the first one
    number = id if isinstance(id, int) and not isinstance(id, bool) else int(raw["command"] != "none")
    return Wish(raw["command"], bool(raw.get("save")), number)


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
