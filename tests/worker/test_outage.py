"""A database that is away for longer than a lease: training goes on, nothing is lost, nothing is stored twice.

SQLite: somebody holds the write lock. PostgreSQL: every connection is cut and none is let in; the database is new, so
that nobody else notices.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy
from sqlalchemy import text, update

from app.core import db, states
from app.core.models import Run
from app.core.settings import get_settings
from app.core.timing import get_timing
from minimind.events import read_events
from minimind.run_dir import RunDir
from tests import database_rig
from tests.database_rig import HOST, add_run, get_run
from tests.worker.runner_rig import (
    BUSY_VARIABLE,
    attempt_of,
    checkpoints_of,
    events_of,
    is_dense,
    tell,
    wait_for_state,
    wait_until,
    wish,
)
from worker import processes
from worker.reconciler import Reconciler

pytestmark = pytest.mark.integration

LEASE_S = 2.0
AWAY_S = 3 * LEASE_S + 2


def at_server(statement: str) -> None:
    engine = sqlalchemy.create_engine(
        sqlalchemy.make_url(os.environ["OUTAGE_SERVER"]).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


@pytest.fixture(params=database_rig.backends())
def database(request, tmp_path, monkeypatch):
    """As everywhere, but on PostgreSQL a whole database, whose connections can be cut."""
    monkeypatch.setenv("STUDIO_LEASE_S", str(LEASE_S))
    monkeypatch.setenv(BUSY_VARIABLE, "1")
    get_timing.cache_clear()
    name = f"test_{secrets.token_hex(6)}"
    if request.param == "postgresql":
        server = os.environ["STUDIO_TEST_DATABASE_URL"]
        monkeypatch.setenv("OUTAGE_SERVER", server)
        at_server(f"CREATE DATABASE {name}")
        monkeypatch.setenv("OUTAGE_DATABASE", name)
        monkeypatch.setenv("STUDIO_TEST_DATABASE_URL", sqlalchemy.make_url(server).set(database=name)
                           .render_as_string(hide_password=False))
    with pytest.MonkeyPatch.context() as inner:
        yield from database_rig.make_database(request.param, tmp_path, inner)
    if request.param == "postgresql":
        db.engine_for(os.environ["STUDIO_TEST_DATABASE_URL"]).dispose()
        at_server(f"DROP DATABASE {name} WITH (FORCE)")
    get_timing.cache_clear()


@contextmanager
def away() -> Iterator[None]:
    """Nobody can write to the database in here."""
    url = get_settings().sqlalchemy_url
    if url.startswith("sqlite"):
        connection = db.sqlite_dbapi.connect(sqlalchemy.make_url(url).database, isolation_level=None, timeout=30)
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
        connection.close()
        return
    name = os.environ["OUTAGE_DATABASE"]
    db.engine_for(url).dispose()
    at_server(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        at_server(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        yield
    finally:
        at_server(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def said_steps(run_id: str) -> int:
    """How far the trainer says it is, in its own file."""
    events = RunDir(get_settings().runs_dir / run_id).attempt(1).events
    return max((event["step"] for event, _ in read_events(events)), default=0)


@pytest.mark.parametrize("steps", [150, pytest.param(600, marks=pytest.mark.slow)],
                         ids=["it ends meanwhile", "it goes on"])
def test_a_database_that_is_away_loses_nothing(runners, monkeypatch, steps):
    tell(monkeypatch, steps=steps, step_s=0.03, save_every=50)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: (get_run(run_id).progress.get("step") or 0) >= 3)
    runner = attempt_of(run_id, 1).runner_pid
    with away():
        before = said_steps(run_id)
        time.sleep(AWAY_S)
        assert said_steps(run_id) > before, "training goes on"
        assert processes.is_alive(runner, processes.start_time(runner))
    reconciler = Reconciler(HOST)
    reconciler._trust_expiry_at = 0  # the worst that can happen: it believes the lease at once
    deadline = time.monotonic() + 60
    while get_run(run_id).state not in ("completed", "failed") and time.monotonic() < deadline:
        reconciler.reconcile()
        time.sleep(0.3)
    run = get_run(run_id)
    assert (run.state, run.attempt) == ("completed", 1), run.error
    assert [e.step for e in events_of(run_id, "metrics")] == list(range(1, steps + 1)), "once each, in order"
    assert [c.step for c in checkpoints_of(run_id)] == list(range(50, steps + 1, 50)) and is_dense(run_id)


@pytest.mark.slow
def test_a_wish_that_was_made_before_is_granted_after(runners, monkeypatch):
    tell(monkeypatch, steps=100_000, step_s=0.03)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    wish(states.request_pause, run_id)  # no bell reaches the runner: it would look a second later
    with away():
        time.sleep(AWAY_S)
    wait_for_state(run_id, "paused", timeout_s=40)
    assert get_run(run_id).attempt == 1 and is_dense(run_id)


def test_a_runner_that_was_overtaken_meanwhile_ends_and_changes_nothing(runners, monkeypatch):
    """Another host has taken the run over: the lease was long gone, and nobody could tell the holder."""
    tell(monkeypatch, steps=100_000, step_s=0.03)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    with db.transaction() as session:
        run = session.get(Run, run_id)
        states.move(session, run, "recovering")
        states.close_attempt(session, run)
        states.move(session, run, "queued")
    assert runners.processes[0].wait(timeout=40) == 3
    assert not processes.marked(processes.marker(run_id, 1))
    assert get_run(run_id).state == "queued"
    assert events_of(run_id)[-1].data["state"] == "queued", "closed is closed, though the number is still the same"


def test_a_runner_that_is_slow_to_start_holds_its_run(runners, monkeypatch):
    """A busy machine: the first lease is over before the runner can say that it lives."""
    run_id = add_run()
    from app.core.queue import claim_run

    with db.transaction() as session:
        claim = claim_run(session, HOST)
        session.execute(update(Run).values(lease_expires_at=1.0))
    runners.start(claim)
    wait_until(lambda: attempt_of(run_id, 1).runner_pid is not None)
    with db.reading() as session:
        assert session.get(Run, run_id).lease_expires_at > db.now(session) - LEASE_S
    assert wait_for_state(run_id, "completed", "failed").attempt == 1
