"""No process outlives its parent, also where the parent ends before the child has begun to look."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from minimind.lifeline import VARIABLE

ROOT = Path(__file__).resolve().parent.parent.parent
CHILD = "import time; {slow}; from minimind.lifeline import die_as_told; die_as_told(); time.sleep(60)"
#: starts the child, says its pid, and then dies at once or waits
PARENT = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, sys.argv[2]: str(os.getpid())},
                         stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(float(sys.argv[3]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("slow", "lives_s"), [("time.sleep(0.3)", 0.0), ("pass", 1.0)], ids=["too early", "later"])
def test_a_child_ends_with_its_parent(slow: str, lives_s: float) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD.format(slow=slow), VARIABLE, str(lives_s)],
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.stdout.close()
    try:
        assert parent.wait(timeout=20) == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(pid)
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
