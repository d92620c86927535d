"""Makes what ``./studio`` needs and goes on: ``python3 worker/bootstrap.py CHECKOUT [ARGS]``.

That is ``.venv`` with ``requirements.txt`` in it, for ``./studio test`` with ``requirements-dev.txt`` over that, and
``static/dist``. ``./studio`` becomes this program only when something changed, and this one becomes ``./studio ARGS``
again when all is there. It runs on whatever Python the machine has, so it uses the standard library alone. An
installation that was interrupted is made again, because half a package cannot be told from a whole one: of
``requirements.txt`` with the environment, of ``requirements-dev.txt`` over what is there, so that the studio still
starts where only the packages of its tests cannot be had.
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
    locks = locks_for(root, arguments)
    environment = root / ".venv"
    with open(root / ".venv.lock", "w") as lock:
        _wait_for(lock)
        try:
            if not all(is_current(environment, one) for one in locks):  # another start may have done it meanwhile
                install(environment, locks)
            assets.need(root)
        except BootstrapError as error:
            say(str(error))
            return 2
        except KeyboardInterrupt:
            say("installation interrupted; the next start makes it again.")
            return 130
    os.execv(root / "studio", [str(root / "studio"), *arguments])


def locks_for(root: Path, arguments: list[str]) -> list[Path]:
    """The locks that a command needs: every one ``requirements.txt``, the tests their own over it."""
    return [root / "requirements.txt", *([root / "requirements-dev.txt"] if arguments[:1] == ["test"] else [])]


def is_current(environment: Path, lock: Path) -> bool:
    stamp = _stamp(environment, lock)
    return (environment / "bin" / "python").exists() and stamp.exists() and stamp.read_bytes() == lock.read_bytes()


def install(environment: Path, locks: list[Path]) -> None:
    """Make the environment where there is none, and install those locks that are not in it as they are now. Raises
    ``BootstrapError``."""
    began = time.monotonic()
    _need_environment(environment)
    first, *others = locks
    if not is_current(environment, first):
        for stamp in environment.glob("*.stamp"):  # what was installed over it is looked at anew
            stamp.unlink()
        _install(environment, first, "packages", environment / "installing")
    for lock in others:
        if not is_current(environment, lock):
            unfinished = _stamp(environment, lock).with_suffix(".unfinished")
            again = []
            if unfinished.exists():  # whole ones go, or two versions of one might stay; half ones are written over
                run_logged([environment / "bin" / "python", "-m", "pip", "uninstall", "-y", *_names_in(lock)],
                           environment / "install.log")
                again = ["--ignore-installed"]
            # The lock is whole, so nothing needs resolving; of what it brings, most is never imported.
            _install(environment, lock, "packages for the tests", unfinished, "--no-deps", "--no-compile", *again)
    say(f"installed in {time.monotonic() - began:.0f} s")


def _names_in(lock: Path) -> list[str]:
    return [line.partition("==")[0] for line in lock.read_text().splitlines() if line[:1].isalnum() and "==" in line]


def _stamp(environment: Path, lock: Path) -> Path:
    return environment / f"{lock.stem}.stamp"


def _need_environment(environment: Path) -> None:
    python = environment / "bin" / "python"
    if (environment / "installing").exists() or not _works(python):
        if environment.is_symlink() or environment.is_file():
            environment.unlink()
        say("making the Python environment .venv ...")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode:
            reason = (made.stdout.strip().splitlines() or ["no reason given"])[-1]
            raise BootstrapError(f"the Python environment {environment} could not be made: {reason}. Where it "
                                 "speaks of ensurepip, install the package python3-venv.")


def _install(environment: Path, lock: Path, what: str, unfinished: Path, *options: str) -> None:
    """``unfinished``: the file that says so until pip is done."""
    wanted = lock.read_bytes()
    log_path = environment / "install.log"
    say(f"installing {what} (some minutes the first time) ...")
    unfinished.touch()
    _stamp(environment, lock).unlink(missing_ok=True)
    command = [environment / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if run_logged([*command, *options, "-r", lock], log_path):
        raise BootstrapError(f"{what} could not be installed ({reason_in(log_path, 'ERROR')}). Check the "
                             f"connection to the package index and start again; all of pip's words are in {log_path}.")
    write_stamp(_stamp(environment, lock), wanted)
    unfinished.unlink()


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
