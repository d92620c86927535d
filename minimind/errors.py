"""Errors that a user can cause, each with what is wrong and what to do about it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

#: what a command exits with where its user can mend what went wrong
USER_ERROR = 2


class MiniMindError(ValueError):
    """A mistake in what the user gave us. ``message`` says what and where, ``hint`` what to do."""

    #: short machine-readable class, kept in ``result.json`` and in a run's ``error.class``
    code = "CONFIG"

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None, line: int | None = None):
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint
        self.line = line

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def as_dict(self) -> dict:
        return {"class": self.code, "message": self.message, "hint": self.hint}


class ConfigError(MiniMindError):
    """One or more fields of a configuration are wrong; ``problems`` lists all of them.

    Each problem is ``{"field", "message", "hint"}``.
    """

    def __init__(self, problems: list[dict]):
        first = problems[0]
        message = first["message"] if len(problems) == 1 else " ".join(p["message"] for p in problems)
        super().__init__(message, field=first.get("field"), hint=first.get("hint") if len(problems) == 1 else None)
        self.problems = problems


class DataError(MiniMindError):
    """A data file cannot be used; ``line`` (1-based) and ``field`` say where."""

    code = "DATA"


class CheckpointError(MiniMindError):
    """A checkpoint is missing, damaged, or does not fit the run."""

    code = "CHECKPOINT"


class ResumeError(MiniMindError):
    """A run cannot be continued as asked."""

    code = "RESUME"


class DiskFullError(MiniMindError):
    code = "DISK_FULL"


#: what the words of a crash say, the most telling first: class, pattern
_WORDS = tuple((name, re.compile(pattern)) for name, pattern in (
    ("OOM_CUDA", r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|torch\.OutOfMemoryError"),
    ("GPU", r"CUDA error|cudaError|device-side assert|unspecified launch failure|uncorrectable ECC|\bXid\b|"
            r"[Dd]evice lost|fallen off the bus|no CUDA-capable device|No CUDA GPUs are available|AcceleratorError|"
            r"(CUBLAS|CUDNN|CUFFT|CUSPARSE)_STATUS_\w+"),
    ("OOM_HOST", r"DefaultCPUAllocator|\bMemoryError\b|std::bad_alloc|Cannot allocate memory"),
    ("DISK_FULL", r"No space left on device|Disk quota exceeded"),
    ("NCCL", r"NCCL|\bnccl|\bgloo\b|[Cc]onnection (closed|reset) by peer|ProcessGroup|Rendezvous\w*Error|"
             r"Dist(Store|Network|Backend)?Error|collective operation timeout|[Bb]roken pipe|Address already in use"),
))


def class_of_words(text: str) -> str | None:
    """The class of the error that ``text`` (a message, the end of a log) tells of; None where it tells of none."""
    return next((name for name, pattern in _WORDS if pattern.search(text)), None)


def exit_status(act: Callable[[], None], place: Path) -> int:
    """Do the work of a command: 0, or ``USER_ERROR`` with a sentence. ``place``: where files are written, for an error
    that names none."""
    try:
        act()
    except MiniMindError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        print(f"error: {error.filename or place} cannot be used: {error.strerror}.", file=sys.stderr)
        return USER_ERROR
    return 0
