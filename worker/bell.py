"""A bell that a signal handler may ring.

``threading.Event`` may not be set there: the handler runs between two instructions of the main thread, which may
just hold the event's own lock, and then waits for itself for ever. ``queue.SimpleQueue.put`` is reentrant.
"""

from __future__ import annotations

import queue


class Bell:
    """Rung from threads and signal handlers; one thread waits for it. Rings before a wait are one ring."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        if self._rings.empty():
            self._rings.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Until it rings, at most ``timeout_s``; True where it has rung. Takes the ring."""
        try:
            self._rings.get(timeout=timeout_s)
        except queue.Empty:
            return False
        while not self._rings.empty():  # rung by several at once; only this thread takes
            self._rings.get()
        return True
