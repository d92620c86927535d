"""The run directory: where everything that a run reads and writes lies, and how it is written safely.

::

    run.json                 the validated configuration
    resolved.json            what every ``auto`` became
    attempts/{n}/            control.json  events.jsonl  result.json  logs/rank{r}.log  [resolved.json]
    checkpoints/step-{step:08d}-a{attempt}/
    base/                    of the stage lora: the checkpoint that its adapters stand on
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

from minimind.events import dumps

RESULT_STATUSES = ("completed", "paused", "stopped", "failed")
_CHECKPOINT_NAME = re.compile(r"^step-(\d{8,})-a(\d+)$")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that a reader sees the old file or the whole new one, also after a power cut."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def read_json(path: Path) -> Any | None:
    """The parsed file, or ``None`` where there is none or it is not whole JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def fsync_dir(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LOCK_FILE = ".lock"
#: what a trainer that was killed can leave running (processes that tokenize) is gone after this
LOCK_PATIENCE_S = 10.0


class RunLock:
    """Held by rank 0 while it works in a run directory; ends with the process, however that ends.

    Where the file system knows no locks there is none: attempts still fence each other off by their numbers.
    """

    def __init__(self, directory: Path):
        self.path = directory / LOCK_FILE
        self._file: Any = None

    def take(self, patience_s: float) -> bool:
        """False where another process holds it: at once if that one lives, else after ``patience_s``."""
        file = open(self.path, "a+")
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline and not _is_alive(self.holder()):
                    time.sleep(0.05)
                    continue
                file.close()
                return False
            except OSError:
                file.close()
                return True
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            self._file = file
            return True

    def holder(self) -> int | None:
        """Pid of whoever took it last."""
        try:
            return int(self.path.read_text())
        except (OSError, ValueError):
            return None

    def is_taken(self) -> bool:
        """Whether another process works in the directory now."""
        try:
            with open(self.path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # no such file: nobody was ever there
        return False

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class AttemptDir:
    """``attempts/{n}``: one start of a run."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.number = int(self.path.name)

    @property
    def control(self) -> Path:
        return self.path / "control.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.json"

    def log(self, rank: int) -> Path:
        return self.path / "logs" / f"rank{rank}.log"

    def read_result(self) -> dict | None:
        """The verdict, or ``None`` where the attempt left none (it was killed, or still runs)."""
        result = read_json(self.result)
        if not isinstance(result, dict) or result.get("attempt") != self.number:
            return None
        return result if result.get("status") in RESULT_STATUSES else None

    def write_result(self, status: str, step: int, checkpoint: str | None, error: dict | None = None) -> None:
        assert status in RESULT_STATUSES, status
        write_json(self.result, {"attempt": self.number, "status": status, "step": step,
                                 "checkpoint": checkpoint, "error": error})


class RunDir:
    """Paths of one run. Nothing is created until asked."""

    def __init__(self, path: Path | str):
        self.path = Path(path).absolute()

    @property
    def config(self) -> Path:
        return self.path / "run.json"

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.json"

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def attempt(self, number: int) -> AttemptDir:
        return AttemptDir(self.path / "attempts" / str(number))

    def attempts(self) -> list[AttemptDir]:
        """Attempts on disk, oldest first."""
        parent = self.path / "attempts"
        if not parent.is_dir():
            return []
        return [self.attempt(n) for n in sorted(int(p.name) for p in parent.iterdir() if p.name.isdigit())]

    def make_attempt(self, number: int | None = None) -> AttemptDir:
        """Create ``attempts/{number}`` (default: last + 1) with an empty control file. Idempotent."""
        if number is None:
            existing = self.attempts()
            number = existing[-1].number + 1 if existing else 1
        attempt = self.attempt(number)
        (attempt.path / "logs").mkdir(parents=True, exist_ok=True)
        if not attempt.control.exists():
            write_json(attempt.control, {"command": "none", "save": False, "id": 0})
        return attempt

    def checkpoint(self, step: int, attempt: int) -> Path:
        return self.checkpoints / f"step-{step:08d}-a{attempt}"

    def checkpoint_dirs(self) -> list[Path]:
        """Directories named like checkpoints, newest step (then attempt) first. Not verified."""
        if not self.checkpoints.is_dir():
            return []
        found = [(parse_checkpoint_name(p.name), p) for p in self.checkpoints.iterdir()]
        return [p for key, p in sorted((x for x in found if x[0]), reverse=True)]

    def last_result(self) -> dict | None:
        attempts = self.attempts()
        return attempts[-1].read_result() if attempts else None


def parse_checkpoint_name(name: str) -> tuple[int, int] | None:
    """``step-00000020-a3`` -> ``(20, 3)``; anything else -> ``None``."""
    match = _CHECKPOINT_NAME.match(name)
    return (int(match[1]), int(match[2])) if match else None


def put_aside(directory: Path, why: str) -> Path | None:
    """Rename a directory so that nobody takes it for a checkpoint, for whoever wants to look at it: its new path,
    ``.{why}-{name}-{number}``; None where it is gone."""
    asides = (directory.with_name(f".{why}-{directory.name}-{number}") for number in itertools.count(1))
    aside = next(path for path in asides if not path.exists())
    try:
        directory.rename(aside)
    except FileNotFoundError:
        return None
    fsync_dir(directory.parent)
    return aside
