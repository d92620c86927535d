"""Storing what a trainer has said, beside others who change the same run."""

from __future__ import annotations

import math
import threading
import time

from sqlalchemy import update

from app.core.db import transaction
from app.core.models import Attempt, Run
from app.core.queue import claim_run
from app.core.settings import get_settings
from app.runs.schemas import RunOut
from minimind.events import EventWriter
from minimind.run_dir import RunDir
from tests.database_rig import HOST, add_host, add_run, get_run
from worker.ingest import Ingest


def test_who_loses_a_run_while_its_events_are_stored_waits_for_his_turn(database: str) -> None:
    """The reconciler locks the run, then its attempt. Locked in another order here, PostgreSQL had to end one of
    the two."""
    add_host()
    run_id = add_run()
    with transaction() as session:
        assert claim_run(session, HOST).run_id == run_id
    run_dir = RunDir(get_settings().runs_dir / run_id)
    writer = EventWriter(run_dir.make_attempt(1).events, 1)
    writer.write("log", {"message": "hello"}, step=3)
    writer.close()
    seen: list = []
    with transaction() as session:
        session.get(Run, run_id, with_for_update=True)
        reader = threading.Thread(target=lambda: seen.append(Ingest(run_id, 1, run_dir).pump()))
        reader.start()
        time.sleep(0.7)
        session.execute(update(Attempt).where(Attempt.run_id == run_id).values(state="lost"))
    reader.join(timeout=20)
    assert [s.events for s in seen] == [1]
    assert get_run(run_id).next_seq > 1


def test_progress_keeps_a_small_curve_of_the_loss_and_the_phase(database: str) -> None:
    add_host()
    run_id = add_run()
    run_dir = RunDir(get_settings().runs_dir / run_id)

    def attempt(number: int, resumed_from: int, losses: dict[int, float]) -> Run:
        with transaction() as session:
            if number == 1:
                claim_run(session, HOST)
            else:  # as the next claim would
                session.execute(update(Attempt).where(Attempt.run_id == run_id).values(state="closed"))
                session.execute(update(Run).where(Run.id == run_id).values(attempt=number))
                session.add(Attempt(run_id=run_id, number=number, state="open", host_id=HOST, boot_id="boot",
                                    events_offset=0, started_at=1.0))
        writer = EventWriter(run_dir.make_attempt(number).events, number)
        writer.write("state", {"status": "ready", "resumed_from_step": resumed_from}, step=resumed_from)
        for step, loss in losses.items():
            writer.write("metrics", {"loss": loss, "tokens_per_s": 5.0}, step=step, tokens=step * 10)
        writer.write("phase", {"phase": "eval", "done": 2, "total": 8, "unit": "batches"}, step=step)
        writer.close()
        ingest = Ingest(run_id, number, run_dir)
        while ingest.pump():
            pass
        return get_run(run_id)

    first = RunOut.of(attempt(1, 0, {s: 1000 / s for s in range(1, 101)} | {101: math.nan}))
    assert first.sparkline[0] == (1, 1000.0) and first.sparkline[-1] == (100, 10.0), "the newest finite loss"
    assert 15 <= len(first.sparkline) <= 30 and first.progress.loss is None and first.progress.step == 101
    assert (first.progress.phase, first.progress.phase_done, first.progress.phase_total,
            first.progress.phase_unit) == ("eval", 2, 8, "batches")
    second = RunOut.of(attempt(2, 50, {s: 7.12345 for s in range(51, 61)}))
    steps = [step for step, _ in second.sparkline]
    assert steps == sorted(set(steps)) and steps[0] == 1 and second.sparkline[-1] == (60, 7.1235)
    assert all(loss == 7.1235 if step > 50 else abs(loss - 1000 / step) < 1e-4 for step, loss in second.sparkline)
    assert len(get_run(run_id).progress["sparkline"]) <= 30
