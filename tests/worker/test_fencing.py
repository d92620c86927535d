"""Runners that hang, come back, are doubled or fenced; pauses and cancels that go wrong; the drain of a host."""

from __future__ import annotations

import signal
import time

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from app.core import db, states
from app.core.models import Run
from app.core.settings import get_settings
from app.core.timing import get_timing
from tests.database_rig import add_run, get_run
from tests.worker.runner_rig import (
    attempt_of,
    checkpoints_of,
    events_of,
    is_dense,
    stop_between_transactions,
    tell,
    wait_for_state,
    wait_until,
    wish,
)
from worker import drain, processes
from worker.drain import drain_host
from worker.reconciler import Reconciler

pytestmark = pytest.mark.integration


def test_a_pause_that_cannot_be_saved_is_said_and_the_run_goes_on(runners, monkeypatch):
    tell(monkeypatch, steps=200, step_s=0.02, save_fails=True)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    wish(states.request_pause, run_id)
    wait_until(lambda: [e for e in events_of(run_id, "warning") if e.data.get("code") == "pause_failed"])
    assert wait_for_state(run_id, "running", "completed").desired == "run"
    wait_for_state(run_id, "completed")


def test_three_attempts_without_a_checkpoint_are_enough(runners, monkeypatch):
    tell(monkeypatch, crash_at=1)
    run_id = add_run()
    for attempt in (1, 2, 3):
        assert runners.claim_and_start().attempt == attempt
        run = wait_for_state(run_id, "recovering", "failed")
        if run.state == "recovering":
            with db.transaction() as session:
                session.execute(update(Run).values(not_before=None))
            Reconciler("here").reconcile()
    assert run.state == "failed" and run.error["class"] == "SIGNAL"
    assert "3 attempts" in run.error["message"]


def test_a_checkpoint_whose_word_was_lost_is_found(runners, monkeypatch):
    tell(monkeypatch, lose_word=True)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "recovering")
    assert [c.step for c in checkpoints_of(run_id)] == [5]
    assert [e.data["adopted"] for e in events_of(run_id, "checkpoint")] == [True]


def test_a_fenced_runner_ends_its_trainer_and_changes_nothing(runners, monkeypatch):
    tell(monkeypatch, steps=500, step_s=0.05)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    with db.transaction() as session:
        session.execute(update(Run).values(attempt=2))
    assert runners.processes[0].wait(timeout=10) == 3
    assert get_run(run_id).state == "running" and not processes.marked(processes.marker(run_id, 1))


def test_a_second_runner_of_one_attempt_goes_away(runners, monkeypatch):
    tell(monkeypatch, steps=100, step_s=0.02)
    run_id = add_run()
    claim = runners.claim_and_start()
    wait_for_state(run_id, "running")
    runners.start(claim)
    # it leaves by itself, or the first one has ended everything of the attempt before it could
    assert runners.processes[1].wait(timeout=10) in (3, -signal.SIGKILL)
    wait_for_state(run_id, "completed")
    assert runners.processes[0].wait(timeout=10) == 0


def test_a_runner_that_lost_contact_takes_its_run_back(runners, monkeypatch):
    tell(monkeypatch, steps=300, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    reconciler = Reconciler("here")
    reconciler._trust_expiry_at = 0
    with db.transaction() as session:
        session.execute(update(Run).values(lease_expires_at=1.0))
    reconciler.reconcile()
    assert get_run(run_id).state in ("recovering", "running")
    assert wait_for_state(run_id, "running").attempt == 1
    wait_for_state(run_id, "completed")
    assert is_dense(run_id)


def test_drain_saves_and_puts_back_in_time(runners, monkeypatch):
    tell(monkeypatch, steps=500, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: (get_run(run_id).progress.get("step") or 0) >= 2)
    began = time.monotonic()
    assert drain_host(reconciler=Reconciler("here"))
    assert time.monotonic() - began < 10
    run = get_run(run_id)
    assert (run.state, run.desired) == ("queued", "run") and checkpoints_of(run_id)
    assert runners.claim_and_start() is None, "a draining host takes nothing on"


@pytest.mark.slow
def test_a_deaf_trainer_is_cancelled_within_45_seconds(runners, monkeypatch):
    tell(monkeypatch, steps=100_000, step_s=0.05, deaf=True)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    began = time.monotonic()
    wish(states.request_cancel, run_id)
    wait_for_state(run_id, "cancelled", timeout_s=45)
    assert 30 < time.monotonic() - began < 45
    wait_until(lambda: not processes.marked(processes.marker(run_id, 1)), timeout_s=3)  # the runner too


def test_a_hanging_runner_is_fenced_after_its_lease(runners, monkeypatch):
    """SIGSTOP: it lives, but says nothing; SIGKILL works on a stopped process too."""
    tell(monkeypatch, steps=1000, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    stop_between_transactions(attempt_of(run_id, 1).runner_pid)
    reconciler = Reconciler("here")
    reconciler._trust_expiry_at = 0
    with db.transaction() as session:
        session.execute(update(Run).values(lease_expires_at=1.0))
    reconciler.reconcile()
    assert attempt_of(run_id, 1).state == "lost"
    reconciler.reconcile()
    assert attempt_of(run_id, 1).state == "lost", "it may still come back"
    monkeypatch.setattr(get_timing(), "come_back_s", -1.0)
    reconciler.reconcile()
    assert attempt_of(run_id, 1).state == "closed"
    assert not processes.marked(processes.marker(run_id, 1))


def test_a_hanging_runner_of_a_cancelled_run_is_ended_too(runners, monkeypatch):
    """There is nothing to recover, so it is never marked lost; its devices must be freed all the same."""
    tell(monkeypatch, steps=1000, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    stop_between_transactions(attempt_of(run_id, 1).runner_pid)
    wish(states.request_cancel, run_id)
    reconciler = Reconciler("here")
    reconciler._trust_expiry_at = 0
    with db.transaction() as session:
        session.execute(update(Run).values(lease_expires_at=db.now(session) - 5))
    reconciler.reconcile()
    assert get_run(run_id).state == "cancelling", "it may still come back"
    with db.transaction() as session:
        session.execute(update(Run).values(lease_expires_at=1.0))
    reconciler.reconcile()
    assert get_run(run_id).state == "cancelled" and attempt_of(run_id, 1).state == "closed"
    assert not processes.marked(processes.marker(run_id, 1))


@pytest.mark.parametrize("deaf", [False, True], ids=["it hears", "it is deaf"])
def test_a_drain_ends_everything_also_where_the_database_is_away(runners, monkeypatch, deaf):
    def away(*_: object) -> list:
        raise OperationalError("SELECT 1", {}, Exception("the server closed the connection"))

    tell(monkeypatch, steps=100_000, step_s=0.02, deaf=deaf)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: (get_run(run_id).progress.get("step") or 0) >= 2)
    reconciler = Reconciler("here")
    monkeypatch.setattr(drain, "attempts_of_host", away)
    assert drain_host(2.0 if deaf else 20.0, reconciler=reconciler) is False
    wait_until(lambda: not processes.marked_in(get_settings().data_dir), timeout_s=3)
