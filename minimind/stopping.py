"""How a training is asked to stop: the control file, or a signal. Both are wishes, granted at a safe place."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from minimind.control import ControlReader, Wish
from minimind.errors import MiniMindError

#: what a wish looks like in a sum over all ranks, in which only rank 0 speaks
CODES = {("none", False): 0, ("pause", True): 1, ("stop", False): 2, ("stop", True): 3, ("superseded", False): 4}
WISHES = {code: Wish(command, save) for (command, save), code in CODES.items()}


class Superseded(MiniMindError):
    """A later attempt of the run has begun: this one must change nothing any more."""

    code = "SUPERSEDED"


class StopRequested(Exception):
    """Raised between units of work before step 1."""

    def __init__(self, wish: Wish):
        super().__init__(wish.command)
        self.wish = wish


class SignalFlag:
    """SIGTERM or SIGINT set a flag, which means "pause"; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.raised = False

    def install(self) -> SignalFlag:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.raised and number == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"\nEnded at once, without a checkpoint.\n")
            os._exit(130)
        self.raised = True
        if number == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"\nFinishing this step, then saving. Ctrl-C again ends at once.\n")


class Stopper:
    """The wishes of one rank: rank 0 has the control file, every rank its signals. ``successor`` is the directory of
    the next attempt: once it exists, this attempt is over whatever else is wished."""

    def __init__(self, flag: SignalFlag, control: ControlReader | None, successor: Path | None = None):
        self.flag = flag
        self._control = control
        self._successor = successor
        self._told = self._done = 0  # ids of the wish that `code` told last, and of the last one that was answered
        self._spoken = 0  # how often samples had been asked for when they were given

    def wish(self) -> Wish:
        """The control file's wish, unless it was answered already."""
        if self._successor is not None and self._successor.exists():
            return Wish("superseded")
        wish = self._control.read() if self._control else Wish()
        return wish if wish.id > self._done else Wish()

    def code(self) -> int:
        wish = self.wish()
        self._told = max(self._told, wish.id)
        return CODES[(wish.command, wish.command == "pause" or (wish.command == "stop" and wish.save))]

    def check(self) -> None:
        """Raises ``StopRequested`` where somebody wants the work to end. For the time before step 1."""
        wish = self.wish()
        refuse_superseded(wish)
        if wish.command != "none":
            raise StopRequested(wish)
        if self.flag.raised:
            raise StopRequested(Wish("pause", True))

    def wants_sample(self) -> bool:
        """Whether somebody asked to hear the model since ``spoken``."""
        return self._control is not None and self._control.read().sample > self._spoken

    def spoken(self) -> None:
        """All who have asked so far are answered."""
        self._spoken = self._control.read().sample if self._control else 0

    def answered(self) -> None:
        """The wish that was told could not be granted (a failed save): training goes on until there is a new one,
        which may have come while the save was tried."""
        self._done = self._told
        self.flag.raised = False


def refuse_superseded(wish: Wish) -> None:
    if wish.command == "superseded":
        raise Superseded("Another start has taken this run over; this one ends without changing anything.",
                         hint="Follow the newest directory under attempts/.")


def agreed(code_sum: float, signals: float) -> Wish:
    """The wish of all ranks from the sums of ``Stopper.code`` (rank 0 alone) and of raised flags."""
    wish = WISHES[int(code_sum)]
    return Wish("pause", True) if wish.command == "none" and signals > 0 else wish
