"""A child that must not outlive its parent: ``die_with_parent()`` in its first lines, before anything slow.

Linux: the kernel sends SIGKILL when the parent *thread* that started us ends (prctl(2), PR_SET_PDEATHSIG); the
setting survives exec. A watch thread does the same elsewhere, and catches a parent that ended before the call.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
WATCH_EVERY_S = 1.0
#: the pid of the parent not to be outlived; 1: whoever it is
VARIABLE = "MINIMIND_DIE_WITH_PARENT"


def die_as_told(*, always: bool = False) -> None:
    """``die_with_parent`` where ``MINIMIND_DIE_WITH_PARENT`` asks for it, or ``always``.

    The variable is taken out of the environment: what this process starts is its own matter.
    """
    parent = os.environ.pop(VARIABLE, "")
    if parent.isdigit() or always:
        die_with_parent(int(parent) if parent.isdigit() and int(parent) > 1 else 0)


def die_with_parent(parent: int = 0) -> None:
    """Arrange that this process is killed when its parent ends. Call from the main thread.

    ``parent``: its pid, where the caller was told (0: whoever it is now). It closes the gap in which a parent
    that ended before this call would have been replaced already.
    """
    parent = parent or os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        _end()
    threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_EVERY_S)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
