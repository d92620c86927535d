"""A machine whose clock is wrong, or is set, decides as the others do: leases are counted by the database's clock,
waiting by a clock that nobody sets, and a process is known by a start that does not move."""

from __future__ import annotations

import ast
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.core import db
from app.core.models import Host
from tests.database_rig import HOST, add_run, get_run
from tests.worker.runner_rig import attempt_of, checkpoints_of, tell, wait_for_state, wait_until
from worker import processes
from worker.reconciler import Reconciler

ROOT = Path(__file__).resolve().parents[2]
HOUR_S = 3600.0
#: wall clocks that decide nothing about rows, processes or leases
ALLOWED = {
    "worker/repair.py": "the age of files that nobody knows, an hour at least",
    "worker/cli/demo.py": "the name of a directory",
}


def set_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    """As ``date --set`` would for this process: the time, and the boot time that the kernel derives from it."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + by_s)
    if sys.platform == "linux":
        from psutil import _pslinux

        real_boot = _pslinux.boot_time
        monkeypatch.setattr(_pslinux, "boot_time", lambda: real_boot() + by_s)


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def test_a_worker_whose_clock_is_wrong_leaves_a_living_run_alone_and_claims(runners, monkeypatch, by_s):
    tell(monkeypatch, steps=500, step_s=0.02)
    first = add_run(devices={"kind": "cpu", "count": 1})
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(first), timeout_s=40)
    pid = attempt_of(first, 1).runner_pid
    set_clock(monkeypatch, by_s)
    reconciler = Reconciler(HOST)
    reconciler._trust_expiry_at = 0
    reconciler.heartbeat(worker_pid=os.getpid())
    for _ in range(3):
        reconciler.reconcile()
    assert (get_run(first).state, get_run(first).attempt) == ("running", 1)
    assert processes.is_alive(pid, attempt_of(first, 1).runner_started)
    with db.reading() as session:
        assert abs(session.get(Host, HOST).last_seen_at - db.now(session)) < 600
    tell(monkeypatch, steps=5)
    second = add_run(devices={"kind": "cpu", "count": 1})
    assert runners.claim_and_start().run_id == second
    assert abs(get_run(second).lease_expires_at - get_run(first).lease_expires_at) < 600
    wait_for_state(second, "completed", timeout_s=40)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: reconciler.reconcile() or get_run(first).state == "recovering")


def test_a_process_is_the_same_before_and_after_its_clock_is_set(monkeypatch):
    started, old_row = processes.start_time(), psutil.Process().create_time()
    assert processes.is_alive(os.getpid(), started) and processes.is_alive(os.getpid(), old_row)
    assert not processes.is_alive(os.getpid(), started - 10)
    set_clock(monkeypatch, HOUR_S)
    assert processes.start_time() == started and processes.is_alive(os.getpid(), started)


def test_nothing_is_decided_by_a_wall_clock():
    """In the parts that claim, lease, recover and save: the database's clock, or ``time.monotonic``."""
    for path in [*(ROOT / "app" / "core").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        wrong = calls & {"time.time", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}
        assert not wrong or name in ALLOWED, f"{name} asks {wrong}: use app.core.db.now, or time.monotonic"
