"""How much of ``/v1`` one user may take: answers at a time, and requests within a minute.

The counts live in this process. A studio has one web process, so they hold; behind several each would count for itself.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from app.core.errors import AppError

WINDOW_S = 60.0


@dataclass
class Place:
    """What a request holds of its user's answers until ``leave``."""

    limits: Limits
    user_id: str
    answers: int

    def leave(self) -> None:
        self.limits.running[self.user_id] -= self.answers
        if self.limits.running[self.user_id] <= 0:
            del self.limits.running[self.user_id]
        self.answers = 0


@dataclass
class Limits:
    """``running``: answers by user. Times are of the monotonic clock."""

    running: Counter[str] = field(default_factory=Counter)
    _sent: defaultdict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def count(self, user_id: str, per_minute: int) -> dict[str, str]:
        """One more request; the headers that say what is left. Raises ``AppError`` 429."""
        if not per_minute:
            return {}
        now, sent = time.monotonic(), self._sent[user_id]
        while sent and sent[0] <= now - WINDOW_S:
            sent.popleft()
        if len(sent) >= per_minute:
            wait_s = sent[-per_minute] + WINDOW_S - now
            raise AppError(429, "rate_limit_exceeded", f"You have sent {per_minute} requests within a minute, which is "
                           f"as many as this server takes. Try again in {math.ceil(wait_s)} s.",
                           headers={"Retry-After": str(math.ceil(wait_s)), **_headers(per_minute, 0, wait_s)})
        sent.append(now)
        return _headers(per_minute, per_minute - len(sent), sent[0] + WINDOW_S - now)

    def enter(self, user_id: str, answers: int, at_a_time: int) -> Place:
        """Hold a place for ``answers``. Raises ``AppError`` 429."""
        running = self.running[user_id]
        if at_a_time and running + answers > at_a_time:
            if not running:
                del self.running[user_id]
            raise AppError(429, "rate_limit_exceeded", f"You have {running} answers running or waiting and ask for "
                           f"{answers} more; this server makes {at_a_time} at a time for one user. Try again when some "
                           "have ended.", headers={"Retry-After": "2"})
        self.running[user_id] += answers
        return Place(self, user_id, answers)


def _headers(limit: int, remaining: int, reset_s: float) -> dict[str, str]:
    return {"x-ratelimit-limit-requests": str(limit), "x-ratelimit-remaining-requests": str(remaining),
            "x-ratelimit-reset-requests": f"{reset_s:.3f}s"}
