"""Makes ``.venv``, installs ``requirements.txt``, goes on: ``python3 worker/bootstrap.py CHECKOUT [ARGS]``.

``./studio`` becomes this program only when something changed, and this one becomes ``./studio ARGS`` again
when all is there. It runs on whatever Python the machine has, so it uses the standard library alone. An
installation that was interrupted is thrown away and made again: half a package cannot be told from a whole one.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class BootstrapError(Exception):
    """One sentence for the user."""


def main(root: Path, arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that pip is ended too
    requirements = root / "requirements.txt"
    environment = root / ".venv"
    with open(root / ".venv.lock", "w") as lock:
        _wait_for(lock)
        try:
            if not is_current(environment, requirements):  # another start may have done it meanwhile
                install(environment, requirements)
        except BootstrapError as error:
            print(f"studio: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("studio: installation interrupted; the next start makes it again.", file=sys.stderr)
            return 130
    os.execv(root / "studio", [str(root / "studio"), *arguments])


def is_current(environment: Path, requirements: Path) -> bool:
    stamp = environment / "requirements.stamp"
    return (environment / "bin" / "python").exists() and stamp.exists() \
        and stamp.read_bytes() == requirements.read_bytes()


def install(environment: Path, requirements: Path) -> None:
    began = time.monotonic()
    python = environment / "bin" / "python"
    unfinished = environment / "installing"
    if unfinished.exists() or not _works(python):
        if environment.is_symlink() or environment.is_file():
            environment.unlink()
        print("studio: making the Python environment .venv ...", file=sys.stderr, flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode:
            reason = (made.stdout.strip().splitlines() or ["no reason given"])[-1]
            raise BootstrapError(f"the Python environment {environment} could not be made: {reason}. Where it "
                                 "speaks of ensurepip, install the package python3-venv.")
    wanted = requirements.read_bytes()
    log_path = environment / "install.log"
    print("studio: installing packages (some minutes the first time) ...", file=sys.stderr, flush=True)
    unfinished.touch()
    with open(log_path, "w") as log:
        pip = subprocess.Popen([str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
                                "-r", str(requirements)], stdin=subprocess.DEVNULL, stdout=log,
                               stderr=subprocess.STDOUT)
        try:
            _show_progress(pip, log_path, began)
        except BaseException:
            pip.terminate()
            pip.wait()
            raise
    if pip.returncode:
        lines = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise BootstrapError(f"packages could not be installed ({(errors or ['no output'])[-1].strip()}). Check the "
                             f"connection to the package index and start again; all of pip's words are in {log_path}.")
    _write_stamp(environment / "requirements.stamp", wanted)
    unfinished.unlink()
    print(f"studio: installed in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _works(python: Path) -> bool:
    """Is this an interpreter of 3.11 or newer with pip?"""
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([str(python), "-c", check], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def _show_progress(pip: subprocess.Popen, log_path: Path, began: float) -> None:
    """What pip is at, on one line of a terminal; elsewhere a line every 30 seconds."""
    terminal = sys.stderr.isatty()
    last = began
    while True:
        try:
            pip.wait(timeout=0.5)
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


def _write_stamp(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _wait_for(lock) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("studio: another start is installing; waiting for it ...", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
