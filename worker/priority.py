"""What answering may take from a training on the same cores.

Linux divides a core among those who want it by their weights, 1.25 times less for each step of niceness. A kernel that
groups processes by session (``sched_autogroup``) weighs the groups first and niceness only inside of one; each process
of the studio has a session of its own, so there its group is made nice. A group's weight is spread over the cores on
which it runs: a training on all of n has an n-th of its own on each.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

from app.core.logging import get_logger

log = get_logger(__name__)

#: of a core that a training wants too
DEFAULT_SHARE = 0.25
#: how much less a process weighs for each step of niceness, and the last step
WEIGHT_STEP, NICEST = 1.25, 19
AUTOGROUP = Path("/proc/self/autogroup")


def niceness_for(share: float, cores: int = 1) -> int:
    """The niceness with which a process gets at most ``share`` of a core beside one of niceness 0 whose weight is
    spread over ``cores``: a step gives a fifth less, so it may be as much less. Raises ``ValueError``."""
    if not 0 < share <= 0.5:
        raise ValueError(f"STUDIO_INFERENCE_SHARE is {share:g}; it must be above 0 and at most 0.5.")
    return min(math.ceil(round(math.log((1 / share - 1) * cores, WEIGHT_STEP), 6)), NICEST)


def give_way(share: float) -> None:
    """Let trainings on this machine's cores go before this process. Where nobody else wants a core it has all of it."""
    with contextlib.suppress(OSError):
        os.nice(niceness_for(share))
    if os.getsid(0) == os.getpid() and AUTOGROUP.exists():  # a group of our own: not that of somebody's shell
        _make_group_nice(niceness_for(share, usable_cores()))


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_group_nice(niceness: int) -> None:
    for _ in range(10):  # the kernel takes one such wish in a tenth of a second, of all users but root together
        try:
            AUTOGROUP.write_text(str(niceness))
            return
        except BlockingIOError:
            time.sleep(0.15)
        except OSError as error:  # it is there and has no say: groups are off
            log.info("group_stays", error=str(error))
            return
    log.warning("group_not_nice", niceness=niceness)
