"""How set-up runs another program: its words in a log, its progress on one line, its failure as one sentence.

Standard library only: ``worker/bootstrap.py`` uses it before anything is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class BootstrapError(Exception):
    """One sentence for the user."""


def say(text: str) -> None:
    print(f"studio: {text}", file=sys.stderr, flush=True)


def run_logged(command: Sequence[str | Path], log_path: Path, **options: object) -> int:
    """Run ``command`` with its output in ``log_path``; returns its exit status. It ends with us when interrupted."""
    began = time.monotonic()
    with open(log_path, "w") as log:
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT, **options)
        try:
            _show_progress(process, log_path, began)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    return process.returncode


def reason_in(log_path: Path, *marks: str) -> str:
    """The line of a log that says what went wrong: the last one that begins with a mark, else the last one."""
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(marks)] if marks else []
    return (marked or lines or ["no output"])[-1]


def write_stamp(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _show_progress(process: subprocess.Popen, log_path: Path, began: float) -> None:
    """What the program is at, on one line of a terminal; elsewhere a line every 30 seconds."""
    terminal = sys.stderr.isatty()
    last = began
    while True:
        try:
            process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if not terminal and now - last < 30:
                continue
            last = now
            text = f"studio: {now - began:4.0f} s  {_latest_step(log_path)}"[:100]
            print(f"\r\033[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _latest_step(path: Path) -> str:
    """What pip's output says it is doing."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    telling = [line for line in lines if line.startswith(("Collecting", "Downloading", "Building", "Installing"))]
    return telling[-1] if telling else ""
