"""Makes what ``./studio`` needs and goes on: ``python3 worker/bootstrap.py CHECKOUT [ARGS]``.

That is ``.venv`` with ``requirements.txt`` in it, and ``static/dist``. ``./studio`` becomes this program only when
something changed, and this one becomes ``./studio ARGS`` again when all is there. It runs on whatever Python the
machine has, so it uses the standard library alone. An installation that was interrupted is thrown away and made
again: half a package cannot be told from a whole one.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # started as a file: the packages of the checkout are one folder up
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from worker import assets
from worker.steps import BootstrapError, reason_in, run_logged, say, write_stamp


def main(root: Path, arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that pip is ended too
    requirements = root / "requirements.txt"
    environment = root / ".venv"
    with open(root / ".venv.lock", "w") as lock:
        _wait_for(lock)
        try:
            if not is_current(environment, requirements):  # another start may have done it meanwhile
                install(environment, requirements)
            assets.need(root)
        except BootstrapError as error:
            say(str(error))
            return 2
        except KeyboardInterrupt:
            say("installation interrupted; the next start makes it again.")
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
        say("making the Python environment .venv ...")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode:
            reason = (made.stdout.strip().splitlines() or ["no reason given"])[-1]
            raise BootstrapError(f"the Python environment {environment} could not be made: {reason}. Where it "
                                 "speaks of ensurepip, install the package python3-venv.")
    wanted = requirements.read_bytes()
    log_path = environment / "install.log"
    say("installing packages (some minutes the first time) ...")
    unfinished.touch()
    if run_logged([python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r", requirements],
                  log_path):
        raise BootstrapError(f"packages could not be installed ({reason_in(log_path, 'ERROR')}). Check the "
                             f"connection to the package index and start again; all of pip's words are in {log_path}.")
    write_stamp(environment / "requirements.stamp", wanted)
    unfinished.unlink()
    say(f"installed in {time.monotonic() - began:.0f} s")


def _works(python: Path) -> bool:
    """Is this an interpreter of 3.11 or newer with pip?"""
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([str(python), "-c", check], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def _wait_for(lock) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another start is installing; waiting for it ...")
        fcntl.flock(lock, fcntl.LOCK_EX)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
