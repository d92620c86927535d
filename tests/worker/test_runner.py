"""One attempt from claim to verdict, with real processes and a trainer that needs no torch."""

from __future__ import annotations

import json
import os
import signal
import time

from sqlalchemy import update

from app.core import db, states
from app.core.models import DeviceLease, MetricChunk, Run
from app.core.settings import get_settings
from minimind.control import Wish, read_control
from minimind.run_dir import RunDir
from tests.database_rig import add_run, get_run
from tests.worker.runner_rig import (
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


def test_a_run_completes_and_all_it_said_is_stored_once(runners):
    run_id = add_run()
    runners.claim_and_start()
    run = wait_for_state(run_id, "completed", "failed")
    assert run.state == "completed" and run.ended_at and run.lease_owner is None
    assert run.progress["step"] == run.progress["total_steps"] == 20 and run.progress["eta_s"] == 0
    assert run.progress["loss"] == 0.25 and run.progress["phase"] == "train"
    steps = [e.step for e in events_of(run_id, "metrics")]
    assert steps == list(range(1, 21)) and is_dense(run_id)
    moves = [e.data["state"] for e in events_of(run_id, "state") if "state" in e.data]
    assert moves == ["queued", "starting", "running", "completed"]
    rows = checkpoints_of(run_id)
    assert [(c.step, c.attempt, c.state) for c in rows] == [(n, 1, "ready") for n in (5, 10, 15, 20)]
    with db.reading() as session:
        chunks = session.query(MetricChunk).order_by(MetricChunk.first_step).all()
        assert [s for c in chunks for s in c.data["step"]] == steps
        assert [v for c in chunks for v in c.data["loss"]] == [5.0 / s for s in steps]
        assert session.query(DeviceLease).count() == 0
    assert attempt_of(run_id, 1).state == "closed"
    written = json.loads((get_settings().runs_dir / run_id / "run.json").read_text())
    assert written["stage"] == "pretrain" and written["device"] == "cpu"


def test_pause_saves_and_resume_goes_on_from_there(runners, monkeypatch):
    tell(monkeypatch, steps=60, step_s=0.05)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: (get_run(run_id).progress.get("step") or 0) >= 3)
    wish(states.request_pause, run_id)
    paused = wait_for_state(run_id, "paused")
    assert checkpoints_of(run_id)[-1].step == paused.progress["step"] < 60
    tell(monkeypatch, steps=60, step_s=0.0)
    wish(states.request_resume, run_id)
    runners.claim_and_start()
    assert wait_for_state(run_id, "completed", "failed").state == "completed"
    assert attempt_of(run_id, 2).resumed_from_step == paused.progress["step"]
    rewind = [e for e in events_of(run_id, "rewind")]
    assert [e.data for e in rewind] == [{"step": paused.progress["step"]}]
    later = [e for e in events_of(run_id, "metrics") if e.attempt == 2]
    assert rewind[0].seq < later[0].seq and later[0].step == paused.progress["step"] + 1
    assert is_dense(run_id)


def test_a_pause_before_the_first_step_keeps_no_checkpoint(runners, monkeypatch):
    tell(monkeypatch, steps=50, step_s=0.05)
    run_id = add_run()
    with db.transaction() as session:
        from app.core.queue import claim_run

        claim = claim_run(session, "here")
        states.request_pause(session, session.get(Run, run_id))
    attempt = get_settings().runs_dir / run_id / "attempts" / "1"
    (attempt / "logs").mkdir(parents=True)
    (attempt / "control.json").write_text('{"command": "pause", "save": true, "id": 1}')
    runners.start(claim)
    wait_for_state(run_id, "paused")
    assert checkpoints_of(run_id) == []


def test_a_wish_to_hear_the_model_reaches_its_trainer_and_stops_nothing(runners, monkeypatch):
    tell(monkeypatch, steps=1000, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    control = RunDir(get_settings().runs_dir / run_id).attempt(1).control
    for number in (1, 2):
        wish(states.request_sample, run_id)
        wait_until(lambda number=number: read_control(control).sample == number)
    assert read_control(control) == Wish("none", False, 0, 2) and get_run(run_id).state == "running"
    wish(states.request_cancel, run_id)
    wait_for_state(run_id, "cancelled")


def test_cancel_stops_without_a_save_and_keeps_what_was_saved(runners, monkeypatch):
    tell(monkeypatch, steps=1000, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    wish(states.request_cancel, run_id)
    began = time.monotonic()
    wait_for_state(run_id, "cancelled")
    assert time.monotonic() - began < 5
    assert {c.step % 5 for c in checkpoints_of(run_id)} == {0}
    assert [e.data["state"] for e in events_of(run_id, "state") if "state" in e.data][-2:] == [
        "cancelling", "cancelled"]


def test_a_crash_is_tried_again_from_the_last_checkpoint(runners, monkeypatch):
    tell(monkeypatch, steps=20, crash_at=12)
    run_id = add_run()
    runners.claim_and_start()
    recovering = wait_for_state(run_id, "recovering")
    assert recovering.fruitless_attempts == 0 and recovering.not_before is not None
    assert "SIGKILL" in events_of(run_id, "state")[-1].data["error"]["message"]
    tell(monkeypatch, steps=20)
    reconciler = Reconciler("here")
    wait_until(lambda: reconciler.reconcile() or get_run(run_id).state == "queued")
    runners.claim_and_start()
    wait_for_state(run_id, "completed")
    assert attempt_of(run_id, 2).resumed_from_step == 10
    assert [e.data["step"] for e in events_of(run_id, "rewind")] == [10]
    assert is_dense(run_id)


def test_a_users_mistake_is_not_tried_again(runners, monkeypatch):
    tell(monkeypatch, fail="DATA")
    run_id = add_run()
    runners.claim_and_start()
    run = wait_for_state(run_id, "failed")
    assert run.error == attempt_of(run_id, 1).error == {"class": "DATA", "message": "It is wrong.", "hint": None}


def test_a_missing_dataset_fails_in_a_sentence_before_anything_starts(runners):
    run_id = add_run(config={"tokenizer": "nothing"})
    runners.claim_and_start()
    assert "is not there any more" in wait_for_state(run_id, "failed").error["message"]


def test_a_killed_runner_takes_its_trainer_along_and_the_run_goes_on(runners, monkeypatch):
    tell(monkeypatch, steps=200, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    os.kill(attempt_of(run_id, 1).runner_pid, signal.SIGKILL)
    wait_until(lambda: not processes.marked(processes.marker(run_id, 1)), timeout_s=5)
    runners.processes[0].wait()
    before = get_run(run_id)
    assert before.state == "running", "nobody has looked yet"
    Reconciler("here").reconcile()
    assert get_run(run_id).state == "recovering" and attempt_of(run_id, 1).state == "closed"
    tell(monkeypatch, steps=60)
    with db.transaction() as session:
        session.execute(update(Run).values(not_before=None))
    Reconciler("here").reconcile()
    runners.claim_and_start()
    wait_for_state(run_id, "completed")
    first = [e.step for e in events_of(run_id, "metrics") if e.attempt == 1]
    assert first == list(range(1, len(first) + 1)), "what the dead runner had not stored, the reconciler did"
    assert is_dense(run_id)
