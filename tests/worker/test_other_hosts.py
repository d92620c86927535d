"""A machine that falls silent: its runs go on elsewhere after a grace, and what still lives there changes nothing."""

from __future__ import annotations

import os
import signal

import pytest
from sqlalchemy import select, update

from app.core import db, queue, states
from app.core.models import DeviceLease, Host, Run
from app.core.settings import get_settings
from app.core.timing import get_timing
from tests.database_rig import HOST, add_host, add_run, get_run
from tests.worker.runner_rig import (
    attempt_of,
    checkpoints_of,
    events_of,
    is_dense,
    stop_between_transactions,
    tell,
    wait_for_state,
    wait_until,
)
from worker import processes, reconciler
from worker.reconciler import Reconciler

pytestmark = pytest.mark.integration
OTHER = "there"


@pytest.fixture
def watcher(runners) -> Reconciler:
    """The bookkeeper of the machine ``there``; the runs are started ``here``."""
    add_host(OTHER, boot_id="another boot")
    found = Reconciler(OTHER)
    found._trust_expiry_at = 0
    return found


def fall_silent(run_id: str) -> None:
    """``here`` was not heard of, and the lease of its run is over."""
    with db.transaction() as session:
        session.execute(update(Run).where(Run.id == run_id).values(lease_expires_at=1.0))
        session.execute(update(Host).where(Host.id == HOST).values(last_seen_at=1.0))


def pass_grace(monkeypatch) -> None:
    monkeypatch.setattr(get_timing(), "host_grace_s", -1.0)


def test_it_is_recovering_at_once_and_goes_on_elsewhere_after_the_grace(runners, watcher, monkeypatch):
    tell(monkeypatch, steps=400, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    runner = attempt_of(run_id, 1).runner_pid
    stop_between_transactions(runner)  # a machine that is cut off: its trainer works on
    fall_silent(run_id)
    watcher.reconcile()
    run = get_run(run_id)
    assert run.state == "recovering" and attempt_of(run_id, 1).state == "lost"
    assert "here does not answer" in [e for e in events_of(run_id, "state")][-1].data["message"]
    watcher.reconcile()
    assert attempt_of(run_id, 1).state == "lost", "the grace is not over"
    pass_grace(monkeypatch)
    watcher.reconcile()
    assert attempt_of(run_id, 1).state == "closed"
    with db.transaction() as session:
        assert session.scalars(select(DeviceLease)).all() == []
        session.execute(update(Run).values(not_before=None))
    watcher.reconcile()
    with db.transaction() as session:
        claim = queue.claim_run(session, OTHER)
    assert (claim.run_id, claim.attempt) == (run_id, 2)
    events = len(events_of(run_id))
    os.kill(runner, signal.SIGCONT)  # back again: the run has moved on
    assert runners.processes[0].wait(timeout=20) == 3
    wait_until(lambda: not processes.marked(processes.marker(run_id, 1)), timeout_s=5)
    assert get_run(run_id).attempt == 2 and len(events_of(run_id)) == events and is_dense(run_id)


def test_one_that_comes_back_within_the_grace_keeps_its_run(runners, watcher, monkeypatch):
    tell(monkeypatch, steps=150, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    runner = attempt_of(run_id, 1).runner_pid
    stop_between_transactions(runner)
    fall_silent(run_id)
    watcher.reconcile()
    os.kill(runner, signal.SIGCONT)
    run = wait_for_state(run_id, "running", "completed")
    assert run.attempt == 1
    wait_for_state(run_id, "completed")
    assert is_dense(run_id)


def test_a_lease_alone_says_nothing_while_the_machine_is_heard_of(runners, watcher, monkeypatch):
    """Its own bookkeeper can prove what is dead; nobody else can."""
    tell(monkeypatch, steps=400, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    stop_between_transactions(attempt_of(run_id, 1).runner_pid)
    pass_grace(monkeypatch)
    with db.transaction() as session:
        session.execute(update(Run).values(lease_expires_at=1.0))
        session.execute(update(Host).values(last_seen_at=db.now(session)))
    watcher.reconcile()
    assert get_run(run_id).state == "running"


def test_a_cancelled_run_of_a_silent_machine_ends(runners, watcher, monkeypatch):
    tell(monkeypatch, steps=400, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    stop_between_transactions(attempt_of(run_id, 1).runner_pid)
    with db.transaction() as session:
        states.request_cancel(session, session.get(Run, run_id))
    fall_silent(run_id)
    watcher.reconcile()
    assert get_run(run_id).state == "cancelled"  # its lease ended in 1970: long past any grace
    assert attempt_of(run_id, 1).state == "closed"


def test_what_carries_the_mark_of_an_attempt_that_is_over_is_ended(runners, monkeypatch):
    monkeypatch.setattr(reconciler, "ORPHAN_AFTER_S", -1.0)
    tell(monkeypatch, steps=100_000, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    stop_between_transactions(attempt_of(run_id, 1).runner_pid)
    reconciler.settle_from_disk(run_id, 1, "a test says so", put_back=True)
    assert attempt_of(run_id, 1).state == "closed" and processes.marked(processes.marker(run_id, 1))
    Reconciler(HOST).reconcile()
    assert not processes.marked(processes.marker(run_id, 1))


def test_a_claim_whose_runner_needs_long_to_start_is_not_given_up(runners, monkeypatch):
    """A short lease on a busy machine: the program exists and has not said anything yet."""
    run_id = add_run()
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
    bookkeeper = Reconciler(HOST)
    bookkeeper._trust_expiry_at = 0
    with db.transaction() as session:
        session.execute(update(Run).values(lease_expires_at=1.0))
    bookkeeper.reconcile()
    assert get_run(run_id).state == "starting", "its claimer is just about to start the runner"
    runners.start(claim)
    monkeypatch.setattr(get_timing(), "runner_start_s", -1.0)
    bookkeeper.reconcile()
    assert get_run(run_id).state in ("starting", "running", "completed") and get_run(run_id).attempt == 1
    wait_for_state(run_id, "completed")


def test_a_claim_without_any_runner_is_given_up(runners, monkeypatch):
    monkeypatch.setattr(get_timing(), "runner_start_s", -1.0)
    monkeypatch.setattr(get_timing(), "retry_first_s", 0.0)
    run_id = add_run()
    with db.transaction() as session:
        queue.claim_run(session, HOST)
    bookkeeper = Reconciler(HOST)
    bookkeeper.reconcile()
    bookkeeper.reconcile()
    assert get_run(run_id).state == "queued" and attempt_of(run_id, 1).state == "closed"


def test_three_bookkeepers_settle_one_lost_attempt_once(runners, monkeypatch):
    """They look at the same moment; what one machine lost is one attempt, not three."""
    run_id = add_run()
    with db.transaction() as session:
        queue.claim_run(session, HOST)
    with db.transaction() as session:
        states.move(session, session.get(Run, run_id), "recovering")
    assert [reconciler.settle_from_disk(run_id, 1, "its machine does not answer") for _ in range(3)] == 3 * [
        "recovering"]
    assert get_run(run_id).fruitless_attempts == 1 and is_dense(run_id)


def test_a_machine_without_the_directory_settles_nothing(runners, monkeypatch, tmp_path):
    run_id = add_run()
    with db.transaction() as session:
        queue.claim_run(session, HOST)
    monkeypatch.setenv("STUDIO_DATA_DIR", str(tmp_path / "not mounted"))
    monkeypatch.setenv("STUDIO_DATABASE_URL", get_settings().sqlalchemy_url)
    get_settings.cache_clear()
    with pytest.raises(FileNotFoundError, match="not mounted"):
        reconciler.settle_from_disk(run_id, 1, "its machine does not answer")
    assert attempt_of(run_id, 1).state == "open"
