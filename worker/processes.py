"""Finding and ending processes safely.

A pid says nothing by itself: it is used again. A process is known by pid, start time and the boot it lives in;
all processes of one attempt also carry ``STUDIO_ATTEMPT=run/attempt`` in their environment, which children
inherit and no ``setsid`` or double fork takes away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

ATTEMPT_VARIABLE = "STUDIO_ATTEMPT"
#: start times in unix seconds are computed from the boot time, which moves a little when the clock is set
START_TOLERANCE_S = 3.0
#: no machine has been up for so long: a start that is later was written down in unix seconds
UNIX_SECONDS = 1e9


def boot_id() -> str:
    """Names the present boot of this machine: processes recorded under another one are gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"


def start_time(pid: int | None = None) -> float:
    """When the process (default: this one) started: on Linux in seconds after the boot, because the kernel's answer in
    unix seconds is another one whenever the clock is set; elsewhere in unix seconds."""
    if sys.platform != "linux":
        return psutil.Process(pid).create_time()
    try:
        stat = Path(f"/proc/{pid or os.getpid()}/stat").read_bytes()
    except OSError:
        raise psutil.NoSuchProcess(pid) from None
    return int(stat.rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int | None, started: float | None) -> bool:
    """Whether exactly this process lives; a zombie does not."""
    if pid is None or started is None:
        return False
    try:
        process = psutil.Process(pid)
        begun = process.create_time() if started > UNIX_SECONDS else start_time(pid)
        return abs(begun - started) <= START_TOLERANCE_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marker(run_id: str, attempt: int) -> str:
    return f"{run_id}/{attempt}"


def marked(mark: str, *, variable: str = ATTEMPT_VARIABLE, spare: Iterable[int] = ()) -> list[int]:
    """Pids of the living processes with this mark, those in ``spare`` left out."""
    wanted = f"{variable}={mark}"
    spared = set(spare)
    return [pid for pid in psutil.pids() if pid not in spared and wanted in _environment(pid)]


def all_marked(variable: str = ATTEMPT_VARIABLE) -> dict[int, str]:
    """pid -> mark of every living process that carries one."""
    found = {}
    for pid in psutil.pids():
        for entry in _environment(pid):
            if entry.startswith(variable + "="):
                found[pid] = entry.partition("=")[2]
    return found


def marked_in(data_dir: Path) -> dict[int, str]:
    """As ``all_marked``, of the studio on ``data_dir`` alone, without asking the database whose they are."""
    place = f"STUDIO_DATA_DIR={data_dir}"
    return {pid: mark for pid, mark in all_marked().items() if place in _environment(pid)}


def outermost(pids: Iterable[int]) -> list[int]:
    """Those of ``pids`` that none of the others has started: the runners, of all processes of an attempt."""
    given = set(pids)
    found = []
    for pid in given:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).ppid() not in given:
                found.append(pid)
    return found


def _environment(pid: int) -> list[str]:
    """``NAME=value`` entries; empty for zombies, the dead and other users' processes."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []
    try:
        return [f"{k}={v}" for k, v in psutil.Process(pid).environ().items()]
    except (psutil.Error, OSError):
        return []


def send(pids: Iterable[int], number: int) -> None:
    """Signal each; one that has just ended is fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_marked(mark: str, *, variable: str = ATTEMPT_VARIABLE, spare: Iterable[int] = (),
                timeout_s: float = 5.0) -> bool:
    """SIGKILL everything with this mark until nothing is left; False where something could not be ended."""
    spared = set(spare)
    deadline = time.monotonic() + timeout_s
    while True:
        left = marked(mark, variable=variable, spare=spared)
        if not left:
            # between fork and exec a process shows its parent's environment, during exec none: look twice
            time.sleep(0.02)
            if not marked(mark, variable=variable, spare=spared):
                return True
            continue
        send(left, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
        reap()


def children_of(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def ranks_below(pid: int) -> dict[int, int]:
    """rank -> pid of the ranks that torchrun ``pid`` has started."""
    found = {}
    for child in children_of(pid):
        for entry in _environment(child):
            name, _, value = entry.partition("=")
            if name == "RANK" and value.isdigit():
                found[int(value)] = child
    return dict(sorted(found.items()))


_started: list = []


def remember(process: object) -> None:
    """Keep a detached child that this process started, so that ``reap`` can collect it when it ends."""
    _started.append(process)


def reap() -> None:
    """Collect ended children, so that none stays behind as a zombie."""
    _started[:] = [p for p in _started if p.poll() is None]
