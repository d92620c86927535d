"""How a trainer that was asked to stop is made to stop: politely first, and in bounded time.

====== ============= =====================
cancel with a save   step
====== ============= =====================
0 s    0 s           ``control.json`` says stop
15 s   26 s          SIGTERM to the ranks
25 s   33 s          SIGTERM to torchrun, which gives its ranks some seconds more
35 s   38 s          SIGKILL to everything that carries the attempt's mark
====== ============= =====================

A shutdown of the studio (save and go back into the queue) takes 28, 33 and 37 seconds. A pause by the user never
kills: after ten minutes without a save it is given up, and the run goes on.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field

from app.core.timing import get_timing
from worker import processes


@dataclass
class Ladder:
    """When each rung is due, in seconds after the wish; ``climb`` is called a few times a second."""

    kind: str  # "cancel" | "pause" | "shutdown"
    term_ranks_s: float | None
    term_all_s: float | None
    kill_s: float | None
    limit_s: float | None = None
    began: float = field(default_factory=time.monotonic)
    _done: set[str] = field(default_factory=set)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def expired(self) -> bool:
        return self.limit_s is not None and self.elapsed > self.limit_s

    def climb(self, child: int, ranks: list[int], mark: str, spared: tuple[int, ...]) -> None:
        """Take every rung that is due and was not taken yet."""
        if self._is_due("ranks", self.term_ranks_s):
            processes.send(ranks, signal.SIGTERM)
        if self._is_due("all", self.term_all_s) and child not in ranks:
            processes.send([child], signal.SIGTERM)
        if self.kill_s is not None and self.elapsed >= self.kill_s:
            processes.kill_marked(mark, spare=spared, timeout_s=2)

    def _is_due(self, rung: str, at: float | None) -> bool:
        if at is None or self.elapsed < at or rung in self._done:
            return False
        self._done.add(rung)
        return True


def cancel(*, save: bool) -> Ladder:
    return Ladder("cancel", 26, 33, 38) if save else Ladder("cancel", 15, 25, 35)


def shutdown() -> Ladder:
    return Ladder("shutdown", 28, 33, 37)


def pause() -> Ladder:
    return Ladder("pause", None, None, None, limit_s=get_timing().pause_limit_s)
