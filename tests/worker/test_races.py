"""What happens at the same moment: cancel and success, many wakes and many claimers, a message that is delivered again.

Exactly one of them counts, and the run's events say which.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import select, update

from app.core import channels, db, queue, states
from app.core.models import TERMINAL_STATES, Attempt, DeviceLease, Host, Run
from app.core.settings import get_settings
from tests.database_rig import HOST, add_host, add_run, get_run
from tests.worker.runner_rig import ROOT, events_of, is_dense, tell, wait_for_state, wait_until, wish
from worker import processes, verdict

pytestmark = pytest.mark.integration
ONE = {"kind": "cpu", "count": 1}


def moves_of(run_id: str) -> list[str]:
    return [e.data["state"] for e in events_of(run_id, "state") if "state" in e.data]


def assert_ended_once(run_ids: list[str]) -> None:
    """One final state, one event that says so, nothing left."""
    for run_id in run_ids:
        run, moves = get_run(run_id), moves_of(run_id)
        assert run.state in TERMINAL_STATES and [m for m in moves if m in TERMINAL_STATES] == [run.state], moves
        assert moves[-1] == run.state and is_dense(run_id)
    with db.reading() as session:
        assert session.scalars(select(DeviceLease)).all() == []
        assert session.scalars(select(Attempt).where(Attempt.state != "closed")).all() == []
        if session.get_bind().dialect.name == "sqlite":
            assert session.connection().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def together(*acts: Callable[[], object]) -> list[object]:
    """What each returned or raised; they begin at the same moment."""
    line, outcomes = threading.Barrier(len(acts)), [None] * len(acts)

    def run(number: int) -> None:
        line.wait()
        try:
            outcomes[number] = acts[number]()
        except Exception as error:  # which one is the caller's to judge
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


# -- cancel and success -------------------------------------------------------------------------------------------


def test_cancel_races_success_two_hundred_times(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the database, as the web process and the runner do it: either the run has completed and the cancel is
    refused, or it is cancelled; never both, never neither."""
    monkeypatch.setattr(verdict, "_is_kept", lambda *_: True)
    add_host()
    ended: dict[str, int] = dict.fromkeys(("completed", "cancelled"), 0)
    run_ids = []
    for number in range(200):
        run_ids.append(run_id := add_run(devices=ONE))
        with db.transaction() as session:
            assert queue.claim_run(session, HOST).run_id == run_id
            states.move(session, session.get(Run, run_id), "running")

        def settle(run_id: str = run_id, wait_s: float = (number % 5) / 1000) -> str:
            time.sleep(wait_s)
            with db.transaction() as session:
                run = session.get(Run, run_id, with_for_update=True)
                return verdict.settle(session, run, 1, {"status": "completed", "checkpoint": "x"})

        def cancel(run_id: str = run_id, wait_s: float = (number % 3) / 1000) -> None:
            time.sleep(wait_s)
            wish(states.request_cancel, run_id)

        settled, refused = together(settle, cancel)
        state = get_run(run_id).state
        assert settled == state and state in ended, (settled, refused)
        assert refused is None if state == "cancelled" else isinstance(refused, states.IllegalWish), refused
        ended[state] += 1
    assert_ended_once(run_ids)
    assert min(ended.values()) >= 10, f"that was no race: {ended}"


@pytest.mark.parametrize("times", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_cancel_races_the_end_of_a_real_runner(runners, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """At every moment of a runner's life, most of all at its end."""
    tell(monkeypatch, steps=3, step_s=0.02, save_every=3)
    run_ids = [add_run(devices=ONE) for _ in range(times)]
    source, timers = random.Random(14), []
    for run_id in run_ids:
        while runners.claim_and_start() is None:  # two at a time
            time.sleep(0.02)
        timers.append(threading.Timer(source.uniform(0.2, 2.2), _cancel_if_possible, (run_id,)))
        timers[-1].start()
    for run_id in run_ids:
        wait_for_state(run_id, *TERMINAL_STATES, timeout_s=60)
    assert {get_run(run_id).state for run_id in run_ids} <= {"completed", "cancelled"}
    for timer in timers:
        timer.join()
    assert_ended_once(run_ids)


def _cancel_if_possible(run_id: str) -> None:
    try:
        wish(states.request_cancel, run_id)
    except states.IllegalWish:
        assert get_run(run_id).state == "completed"


# -- the bell -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimers(count: int, *, visibility_s: float = 3600.0) -> Iterator[None]:
    """Celery workers of one host that nothing but the bell wakes."""
    log = get_settings().data_dir / "celery.log"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # no STUDIO_WORKER_PID: this process wants no signal when it rings
    with open(log, "ab") as output:
        started = [subprocess.Popen([sys.executable, "-m", "tests.worker.celery_rig", str(visibility_s)], cwd=ROOT,
                                    env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
                   for _ in range(count)]
    try:
        wait_until(lambda: all(processes.children_of(p.pid) for p in started), timeout_s=60)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
    # (a pool child whose worker is killed under it may complain of its pipe)
    assert f'File "{ROOT / "worker"}' not in log.read_text(), log.read_text()[-3000:]


def ring(times: int) -> None:
    """One message each: ``channels.ring`` would send one for all."""
    settings = get_settings()
    app = channels._bell(settings.celery_broker_url, settings.redis_prefix)
    for _ in range(times):
        app.send_task(channels.WAKE_TASK, args=["run"], retry=False)


def test_fifty_wakes_and_four_claimers_start_each_run_once(runners, bell) -> None:
    with db.transaction() as session:
        session.execute(update(Host).values(cpu_slots=10))
    with claimers(4):
        run_ids = [add_run(devices=ONE) for _ in range(10)]
        ring(50)
        for run_id in run_ids:
            assert wait_for_state(run_id, "completed", "failed", timeout_s=90).attempt == 1
            assert moves_of(run_id) == ["queued", "starting", "running", "completed"]
        assert_ended_once(run_ids)


@pytest.mark.slow
def test_a_run_outlasts_the_visibility_timeout_of_its_message(runners, bell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker gives a message that nobody has acknowledged in time to somebody else. This one is acknowledged before
    its work, and the run is not its work."""
    tell(monkeypatch, steps=600, step_s=0.1, save_every=100)
    with claimers(2, visibility_s=5):
        run_id = add_run(devices=ONE)
        ring(1)
        wait_for_state(run_id, "running", timeout_s=60)
        assert wait_for_state(run_id, "completed", "failed", timeout_s=150).attempt == 1
        assert moves_of(run_id) == ["queued", "starting", "running", "completed"]
        assert_ended_once([run_id])
