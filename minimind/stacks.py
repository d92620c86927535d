"""What a process is doing, on demand: SIGUSR2 has it write the Python stacks of all its threads to stderr.

The answer is given by C code in the signal handler itself, so a process that waits in a kernel call, in a collective or
for a lock of another thread answers too. One that is stopped (SIGSTOP) answers when it is continued.
"""

from __future__ import annotations

import faulthandler
import signal
import sys

#: torch, NCCL and torchrun leave it alone (torchrun dies of SIGUSR1, which Slurm sends)
SIGNAL = getattr(signal, "SIGUSR2", None)


def show_when_asked() -> None:
    """From here on; a crash in C code (SIGSEGV, SIGABRT ...) shows its stacks as well. Needs a real stderr."""
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError):  # a program that calls the trainer may have put something else in its place
        return
    faulthandler.enable(sys.stderr)
    if SIGNAL is not None and hasattr(faulthandler, "register"):
        faulthandler.register(SIGNAL, sys.stderr, all_threads=True)
