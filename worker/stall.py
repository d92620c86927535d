"""Progress is a second clock: a trainer that lives but does nothing more is found, shown and ended.

A lease only says that the runner lives, and a process group waits half an hour for a rank that hangs. So the runner
follows what rank 0 writes (``events.jsonl``, without the database) and knows how long each phase may be silent. What
counts is progress: a step, another place in a phase, a checkpoint, an evaluation, a sample; a warning that is said
again and again is none.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.core.timing import get_timing
from minimind import stacks
from minimind.events import read_events
from minimind.run_dir import RunDir
from worker import processes

#: less than this free and nothing can be written any more, not even a verdict or a sign of life
FULL_BYTES = 1 << 20
#: how often the runner looks
LOOK_EVERY_S = 1.0
#: a watch that was not called for this long was stopped itself, like the machine: nobody is to blame
GAP_S = 5.0
#: steps whose median is a step's time
MEDIAN_OF = 101
#: ranks have this long to write down what they are doing
ANSWER_S = 5.0

DATA_PHASES = ("import", "tokenizer", "tokenize")
PROGRESS = ("metrics", "checkpoint", "eval", "sample", "state")


@dataclass(frozen=True)
class Stall:
    """Nothing has moved for ``silent_s``, though the limit is ``limit_s``."""

    phase: str | None
    step: int
    silent_s: float
    limit_s: float
    setting: str

    @property
    def message(self) -> str:
        where = f"in the phase {self.phase} at step {self.step}" if self.phase else "before its first phase"
        return (f"Training made no progress for {in_words(self.silent_s)} {where}; the limit there is "
                f"{in_words(self.limit_s)}.")

    @property
    def hint(self) -> str:
        return ("The logs of its ranks show what each was doing. If it only needs more time there, start the studio "
                f"with a larger {self.setting}.")


class Progress:
    """Follows one attempt; ``look`` about once a second, from a thread that waits for nothing else."""

    def __init__(self, run_dir: RunDir, attempt: int, clock: Callable[[], float] = time.monotonic):
        self.stall: Stall | None = None
        self.phase: str | None = None
        self.step = 0
        self._run_dir = run_dir
        self._attempt = attempt
        self._clock = clock
        self._offset = 0
        self._place: tuple | None = None  # phase and place in it
        self._times: deque[tuple[float, int]] = deque(maxlen=MEDIAN_OF)  # of the trainer's clock
        self._since = self._looked_at = clock()

    def look(self) -> Stall | None:
        """Read on; what hangs, if anything does."""
        at = self._clock()
        if at - self._looked_at > GAP_S:
            self._since = at
        self._looked_at = at
        if self._read_on():
            self._since = at
        limit_s, setting = self.limit()
        silent_s = at - self._since
        if silent_s > limit_s and self._is_disk_full():
            self._since, silent_s = at, 0.0  # its events are lost: it cannot say that it moves
        self.stall = Stall(self.phase, self.step, silent_s, limit_s, setting) if silent_s > limit_s else None
        return self.stall

    def limit(self) -> tuple[float, str]:
        """Seconds that the present phase may be silent, and the setting that they come from."""
        timing = get_timing()
        if self.phase == "save" or self._is_saving():
            return timing.stall_save_s, "STUDIO_STALL_SAVE_S"
        if self.phase in ("train", "eval"):
            step_s = self.step_s()
            return max(timing.stall_step_s, timing.stall_step_factor * (step_s or 0.0)), "STUDIO_STALL_STEP_S"
        if self.phase in DATA_PHASES or (self.phase is None and self._offset):
            return timing.stall_data_s, "STUDIO_STALL_DATA_S"
        return timing.stall_compile_s, "STUDIO_STALL_COMPILE_S"  # compiling, or starting: torch itself, old checkpoints

    def step_s(self) -> float | None:
        """Median seconds of a step, from what was reported last; None before there are two."""
        pairs = zip(self._times, list(self._times)[1:], strict=False)
        each = [(t1 - t0) / (s1 - s0) for (t0, s0), (t1, s1) in pairs if s1 > s0 and t1 >= t0]
        return statistics.median(each) if each else None

    def _is_disk_full(self) -> bool:
        try:
            return shutil.disk_usage(self._run_dir.path).free < FULL_BYTES
        except OSError:
            return False

    def _is_saving(self) -> bool:
        """Whether a checkpoint is half written: a save is announced only where saves are known to be slow."""
        return any(self._run_dir.checkpoints.glob(f".tmp-step-*-a{self._attempt}"))

    def _read_on(self) -> bool:
        """True where what was read is progress."""
        moved = False
        try:
            for event, offset in read_events(self._run_dir.attempt(self._attempt).events, self._offset):
                self._offset = offset
                moved |= self._take(event)
        except OSError:
            return moved  # a disk that does not answer is no progress either
        return moved

    def _take(self, event: dict) -> bool:
        kind, data = event["type"], event.get("data") or {}
        if event.get("attempt") != self._attempt:
            return False
        if kind == "phase":
            place = (data.get("phase"), data.get("done"))
            if place == self._place:
                return False
            if data.get("phase") != self.phase:
                self._times.clear()
            self.phase, self._place = data.get("phase"), place
        if kind == "metrics" or (kind == "phase" and self.phase == "train"):
            self.step = int(event.get("step") or 0)
            self._times.append((float(event.get("t") or 0.0), self.step))
        return kind == "phase" or kind in PROGRESS


def collect_stacks(ranks: Mapping[int, int], log: Callable[[int], Path], why: str) -> list[str]:
    """Have every rank (rank -> pid) write what it is doing into its log; a sentence for each that has a story."""
    told: list[str] = []
    waiting: dict[int, int] = {}  # rank -> size of its log before the answer
    for rank, pid in ranks.items():
        state = _state(pid)
        stopped = state == psutil.STATUS_STOPPED
        _write(log(rank), f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {why} What rank {rank} (pid {pid}) is doing:"
               + (" it was stopped by a signal (SIGSTOP) and is continued to answer." if stopped else ""))
        if not _answers(pid):
            told.append(f"Rank {rank} cannot show its stacks: it had not come that far.")
            continue
        if stopped:
            told.append(f"Rank {rank} was stopped by a signal (SIGSTOP).")
        waiting[rank] = _size(log(rank))
        processes.send([pid], stacks.SIGNAL)
        if stopped:  # with the question already waiting for it
            processes.send([pid], signal.SIGCONT)
    deadline = time.monotonic() + ANSWER_S
    while waiting and time.monotonic() < deadline:
        time.sleep(0.1)
        waiting = {rank: size for rank, size in waiting.items() if _size(log(rank)) <= size}
    for rank in waiting:
        told.append(f"Rank {rank} did not show its stacks: its process is in the state {_state(ranks[rank])}.")
    time.sleep(0.2)  # an answer is written line by line
    return told


def in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _answers(pid: int) -> bool:
    """Whether the process has asked to hear the signal; it would die of it otherwise."""
    if stacks.SIGNAL is None:
        return False
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return _state(pid) != "gone"  # no /proc: it is ended in a moment anyway
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (stacks.SIGNAL - 1) & 1)


def _state(pid: int) -> str:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(path: Path, line: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError:
        return  # a full disk: the ranks' own answers will not be kept either, and the run is ended all the same
