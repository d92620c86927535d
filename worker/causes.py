"""Why an attempt ended: class, a sentence, what to do. From what is left of it: exit statuses, logs, kernel counters.

What the trainer itself says in ``result.json`` is believed, with one exception: a rank that lost its peers only saw the
consequence, so where another rank was killed, that is the cause. Where something cannot be known (who sent a SIGKILL),
the sentence says so.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minimind.errors import class_of_words
from minimind.run_dir import read_json
from worker.stall import FULL_BYTES, Stall

#: where ``worker.launcher`` writes how torchrun's ranks ended
RANKS_FILE = "ranks.json"
LAST_WORDS_CHARS = 300

_SPEAKS_OF_ERROR = re.compile(r"Error\b|Exception\b|\berror:|Fatal |terminate called|what\(\):|CUDA|NCCL|\bXid\b")
#: lines of ``faulthandler``, which show where a process was, not what went wrong
_OF_A_STACK = re.compile(r'^(File "|Thread 0x|Current thread 0x|--- |Extension modules:|<no Python frame>)')

HINTS = {
    "OOM_CUDA": "Use a smaller batch_size with more accumulation_steps, or a smaller max_seq_len.",
    "OOM_HOST": "Use a smaller batch_size with more accumulation_steps or a smaller model, or run less beside it.",
    "GPU": "It is tried again, on another GPU where there is one; nvidia-smi and the kernel's log say more.",
    "NCCL": "A rank ended or hung, or the network between ranks failed; the logs of all ranks say more.",
    "SIGNAL": "Somebody or something ended it from outside; the machine's log (journalctl -k) may say who.",
    "DISK_FULL": "Free some space and start it again from its last checkpoint.",
    "NO_RESULT": "The log of the attempt says more.",
    "UNKNOWN": "The log of the attempt says more.",
}


@dataclass(frozen=True)
class Cause:
    """What ended an attempt. ``rank``: whose fault it was, where one rank's."""

    class_: str
    message: str
    hint: str | None
    rank: int | None = None

    def as_dict(self) -> dict:
        return {"class": self.class_, "message": self.message, "hint": self.hint}


@dataclass(frozen=True)
class Memory:
    """How often the kernel has killed for want of memory: in our control group, and on the whole machine. None where
    nobody tells."""

    group: int | None
    machine: int | None

    @classmethod
    def read(cls) -> Memory:
        return cls(_counter(_group_file(), "oom_kill"), _counter(Path("/proc/vmstat"), "oom_kill"))


@dataclass(frozen=True)
class Death:
    """How a process ended: ``status`` is its exit status, or minus the signal that killed it."""

    who: str
    rank: int | None
    status: int

    @property
    def signal_name(self) -> str | None:
        if self.status >= 0:
            return None
        try:
            return signal.Signals(-self.status).name
        except ValueError:
            return f"signal {-self.status}"


def find(*, returncode: int | None, world_size: int, attempt_dir: Path, result: dict | None,
         memory_before: Memory, stall: Stall | None = None) -> Cause | None:
    """Why the attempt ended; None where it ended well, or nothing of it was ever started."""
    if result is not None and result["status"] != "failed":
        return None
    logs = attempt_dir / "logs"
    error = (result or {}).get("error") or {}
    if stall is not None and result is None:
        return Cause("STALL", stall.message, stall.hint)
    death = None if returncode is None else _first_death(returncode, world_size, logs)
    # rank 0 saw a broken connection; who broke it?
    killed = death is not None and death.signal_name is not None
    if error and not (killed and death.rank != 0 and error.get("class") == "NCCL"):
        return Cause(error.get("class") or "UNKNOWN", error.get("message") or "Training failed.", error.get("hint"),
                     _rank_with_words(logs, "GPU") if error.get("class") == "GPU" else None)
    if death is None:
        return None
    last = last_words(logs, death.rank)
    quoted = f" The last words of its log: {last}" if last else ""
    if killed:
        return _of_signal(death, last, quoted, memory_before)
    said = class_of_words(last) if _SPEAKS_OF_ERROR.search(last) else None
    if said is None and shutil.disk_usage(attempt_dir).free < FULL_BYTES:
        return Cause("DISK_FULL", f"{death.who} ended with exit status {death.status} and could not write why: the "
                     f"disk of {attempt_dir} is full.", HINTS["DISK_FULL"])
    class_ = said or ("NO_RESULT" if death.status == 0 else "UNKNOWN")
    return Cause(class_, f"Training ended without a result: {death.who} ended with exit status {death.status}.{quoted}",
                 HINTS[class_], death.rank)


def _of_signal(death: Death, last: str, quoted: str, before: Memory) -> Cause:
    """A process that was killed: by itself (an abort, a crash in C code), by the kernel for memory, or by somebody."""
    name = death.signal_name
    if death.status != -signal.SIGKILL:
        said = class_of_words(last) if _SPEAKS_OF_ERROR.search(last) else None
        class_ = said if said is not None and death.status in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS) \
            else "SIGNAL"
        return Cause(class_, f"{death.who} was killed by {name}.{quoted}", HINTS[class_], death.rank)
    after = Memory.read()
    if _grew(before.group, after.group):
        return Cause("OOM_HOST", f"{death.who} was killed by {name}: the memory that the studio's processes may use "
                     f"together was full, and the kernel ended some of them.{quoted}", HINTS["OOM_HOST"], death.rank)
    if _grew(before.machine, after.machine):
        return Cause("OOM_HOST", f"{death.who} was killed by {name}, probably by the kernel: meanwhile it has ended "
                     f"processes because the machine ran out of memory.{quoted}", HINTS["OOM_HOST"], death.rank)
    known = after.group is not None or after.machine is not None
    why = "not for want of memory, as the kernel counts" if known else \
        "perhaps because the machine ran out of memory, which this system does not tell"
    return Cause("SIGNAL", f"{death.who} was killed by {name}, {why}.{quoted}", HINTS["SIGNAL"], death.rank)


def _first_death(returncode: int, world_size: int, logs: Path) -> Death:
    """Which process ended first. Of several ranks torchrun tells, as ``worker.launcher`` has written down."""
    if world_size == 1:
        return Death("Rank 0", 0, returncode)
    ranks = read_json(logs / RANKS_FILE)
    if not isinstance(ranks, list) or not ranks:
        return Death("The process that starts the ranks (torchrun)", None, returncode)
    # torchrun looks five times a second and knows whole seconds; what it killed itself comes later, or by SIGTERM
    first = [r for r in ranks if r["t"] <= ranks[0]["t"] + 1]
    chosen = next((r for r in first if r["status"] < 0 and r["status"] != -signal.SIGTERM), first[0])
    return Death(f"Rank {chosen['rank']}", chosen["rank"], chosen["status"])


def last_words(logs: Path, rank: int | None = None) -> str:
    """The last line that tells of an error in the log of ``rank`` (None: in the newest that has one), else its last
    line; the launcher's log is the last resort."""
    own = [logs / f"rank{rank}.log"] if rank is not None else sorted(logs.glob("rank*.log"), key=_mtime, reverse=True)
    for path in (*own, logs / "launcher.log"):
        lines = list(_lines(path))
        errors = [line for line in lines if _SPEAKS_OF_ERROR.search(line)]
        if lines:
            return (errors or lines)[-1][:LAST_WORDS_CHARS]
    return ""


def _rank_with_words(logs: Path, class_: str) -> int | None:
    """The one rank whose log tells of an error of this class; None where none or several do."""
    found = [int(match[1]) for path in logs.glob("rank*.log") if (match := re.fullmatch(r"rank(\d+)\.log", path.name))
             and any(class_of_words(line) == class_ for line in _lines(path) if _SPEAKS_OF_ERROR.search(line))]
    return found[0] if len(found) == 1 else None


def _lines(path: Path) -> Iterator[str]:
    """What stands at the end of a log, without the stacks that were asked for."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 16_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if (line := line.strip()) and not _OF_A_STACK.match(line):
            yield line


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _counter(path: Path | None, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines() if path is not None else []
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


def _group_file() -> Path | None:
    """The file in which the kernel counts for the control group of this process and all that it starts."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    root = Path("/sys/fs/cgroup")
    for line in groups:
        _, controllers, place = line.split(":", 2)
        if controllers == "":  # version 2
            found = root / place.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            found = root / "memory" / place.lstrip("/") / "memory.oom_control"
            # inside a container the path is the host's, and the group is mounted as the root
            found = found if found.exists() else root / "memory" / "memory.oom_control"
        else:
            continue
        if found.exists():
            return found
    return None
