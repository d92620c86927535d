"""The bell that signal handlers ring."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from worker.bell import Bell

ROOT = Path(__file__).resolve().parent.parent.parent
LISTENER = """
import signal, sys, time
from worker.bell import Bell
bell = Bell()
signal.signal(signal.SIGUSR1, lambda *_: bell.ring())
print("ready", flush=True)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    bell.wait(0.05)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
print("ended", flush=True)
"""


def test_it_rings_once_for_all_that_rang_before() -> None:
    bell = Bell()
    assert not bell.wait(0)
    for _ in range(3):
        bell.ring()
    assert bell.wait(0) and not bell.wait(0)
    threading.Timer(0.05, bell.ring).start()
    began = time.monotonic()
    assert bell.wait(5) and time.monotonic() - began < 2


def test_a_storm_of_signals_does_not_stop_its_listener() -> None:
    """An event's lock, held by the very thread that the handler interrupts, did within some hundred signals."""
    listener = subprocess.Popen([sys.executable, "-c", LISTENER], env={**os.environ, "PYTHONPATH": str(ROOT)},
                                stdout=subprocess.PIPE, text=True)
    try:
        assert listener.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 15
        while listener.poll() is None and time.monotonic() < deadline:
            listener.send_signal(signal.SIGUSR1)
            time.sleep(random.random() * 1e-4)
        assert listener.poll() == 0 and listener.stdout.read() == "ended\n"
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()
