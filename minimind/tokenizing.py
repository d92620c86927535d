"""What a user hears while data is turned into tokens."""

from __future__ import annotations

import time

from minimind.metrics import Reporter
from minimind.stopping import Stopper

SAY_EVERY_S = 10.0  # between two lines


class Tokenizing:
    """Progress in bytes of the files, with the rate and the time that is left. Data sets that are found tokenized
    count as done and say nothing of the rate."""

    def __init__(self, reporter: Reporter, stopper: Stopper, total_bytes: int):
        self.reporter = reporter
        self.stopper = stopper
        self.total = total_bytes
        self.before = self.found = self.now = 0  # bytes of earlier data sets, of the found ones, of this one
        self.began = self.said = time.monotonic()

    def tell(self, rows: int, done: int) -> None:
        """``done``: bytes of this data set. Raises ``StopRequested``."""
        now = time.monotonic()
        self.now = done
        place = self.before + done
        worked_s = now - self.began
        message = f"Tokenizing {self.total / 1e6:,.1f} MB."
        if worked_s > 1:
            rate = (place - self.found) / worked_s
            message = f"Tokenizing: {rate / 1e6:.1f} MB/s, {(self.total - place) / rate:,.0f} s left."
        if now - self.said > SAY_EVERY_S:
            self.said = now
            self.reporter.say(f"{place / self.total:.0%}. {message}")
        self.reporter.phase("tokenize", place / 1e6, self.total / 1e6, "MB", message)
        self.stopper.check()

    def next(self, num_bytes: int) -> None:
        self.before += num_bytes
        self.found += num_bytes if self.now == 0 else 0
        self.now = 0
