"""A process that the supervisor keeps alive: started, watched, started again with back-off, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
#: a child that lived this long starts over with the first back-off
HEALTHY_AFTER_S = 60.0
ROTATE_LOG_BYTES = 10 << 20


class Child:
    """One kept process. All calls come from the supervisor's main thread: a child asks the kernel to be
    killed when the *thread* that started it ends."""

    def __init__(self, name: str, argv: list[str], *, env: dict[str, str], log: Path, say: Callable[[str], None],
                 pass_fds: tuple[int, ...] = ()):
        self.name = name
        self.argv = argv
        self.env = env
        self.log = log
        self.say = say
        self.pass_fds = pass_fds
        self.process: subprocess.Popen | None = None
        self.deaths = 0
        self._started_at = 0.0
        self._backoff = FIRST_BACKOFF_S
        self._start_at = 0.0

    def start(self) -> None:
        """Start it in a session of its own, so that the terminal's Ctrl-C reaches the supervisor alone."""
        if self.log.exists() and self.log.stat().st_size > ROTATE_LOG_BYTES:
            os.replace(self.log, self.log.with_name(self.log.name + ".1"))
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv, env=self.env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                pass_fds=self.pass_fds, start_new_session=True)
        self._started_at = time.monotonic()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def keep_alive(self) -> None:
        """Start it again if it died and its back-off is over; called a few times a second."""
        if self.alive:
            return
        now = time.monotonic()
        if self.process is not None:
            if now - self._started_at > HEALTHY_AFTER_S:
                self._backoff = FIRST_BACKOFF_S
            self.deaths += 1
            self.say(f"{self.name} ended ({describe(self.process.returncode)}); starting it again in "
                     f"{self._backoff:g} s. Its log: {self.log}")
            self.process = None
            self._start_at = now + self._backoff
            self._backoff = min(2 * self._backoff, LONGEST_BACKOFF_S)
        if now >= self._start_at:
            self.start()

    def signal(self, number: int) -> None:
        if self.alive:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the child and to what it left in its own session (a pool, a helper)."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.signal(signal.SIGKILL)
        self.process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of its log, for a message about why it does not start."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 8000))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def describe(returncode: int) -> str:
    if returncode < 0:
        try:
            return signal.Signals(-returncode).name
        except ValueError:
            return f"signal {-returncode}"
    return f"exit status {returncode}"
