"""Which checkpoint directories get a row, which are put aside, and which may go."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app.core import damage, states
from app.core.db import reading, transaction
from app.core.models import Attempt, Checkpoint, Run
from app.core.queue import claim_run
from app.core.settings import get_settings
from app.core.states import Fenced
from minimind import retention
from minimind.errors import CheckpointError
from minimind.events import EventWriter
from minimind.manifest import Manifest, newest_valid
from minimind.run_dir import RunDir, write_json
from tests.database_rig import HOST, add_host, add_run, get_run
from tests.worker.runner_rig import (
    ROOT,
    attempt_of,
    checkpoints_of,
    events_of,
    is_dense,
    tell,
    wait_for_state,
    wait_until,
    wish,
)
from worker.checkpoints import adopt_checkpoints, recover_checkpoints, tidy
from worker.engines import EngineCache, EngineOptions
from worker.ingest import Ingest


def saved(run: RunDir, step: int, attempt: int, eval_loss: float | None = None) -> Path:
    path = run.checkpoint(step, attempt)
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    Manifest(stage="pretrain", step=step, tokens=step * 10, attempt=attempt, world_size=1, loss=2.0,
             eval_loss=eval_loss, model={}, config_fingerprint="", data_fingerprint="", tokenizer_fingerprint="t",
             lineage={}, versions={}, created_at=1.0).seal(path)
    return path


def begin(attempt: int = 1) -> tuple[str, RunDir]:
    """A run that is held by its attempt of this number."""
    add_host()
    run_id = add_run()
    with transaction() as session:
        claim_run(session, HOST)
    for number in range(2, attempt + 1):
        next_attempt(run_id, number)
    return run_id, RunDir(get_settings().runs_dir / run_id)


def next_attempt(run_id: str, number: int) -> None:
    with transaction() as session:
        session.execute(update(Attempt).where(Attempt.run_id == run_id).values(state="closed"))
        session.execute(update(Run).where(Run.id == run_id).values(attempt=number))
        session.add(Attempt(run_id=run_id, number=number, state="open", host_id=HOST, boot_id="boot", events_offset=0,
                            started_at=1.0))


def say(run: RunDir, path: Path, attempt: int, **data: object) -> None:
    writer = EventWriter(run.make_attempt(attempt).events, attempt)
    writer.write("checkpoint", {"path": f"checkpoints/{path.name}", **data}, step=int(path.name.split("-")[1]))
    writer.close()


def rows(run_id: str) -> dict[str, str]:
    """name -> state"""
    return {f"{row.step}-a{row.attempt}": row.state for row in checkpoints_of(run_id)}


def names(run: RunDir) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir())


def test_a_save_is_filed_with_what_it_cost(database: str) -> None:
    run_id, run = begin()
    say(run, saved(run, 5, 1), 1, save_s=1.25)
    Ingest(run_id, 1, run).pump()
    (row,) = checkpoints_of(run_id)
    assert (row.state, row.step, row.save_s, row.bytes) == ("ready", 5, 1.25, 7)


def test_what_a_stale_attempt_says_is_not_filed(database: str) -> None:
    run_id, run = begin()
    say(run, saved(run, 5, 1), 1)
    next_attempt(run_id, 2)
    with pytest.raises(Fenced):
        Ingest(run_id, 1, run).pump()
    assert rows(run_id) == {}


def test_an_attempt_cannot_file_the_save_of_another(database: str) -> None:
    run_id, run = begin(2)
    say(run, saved(run, 5, 1), 2)
    Ingest(run_id, 2, run).pump()
    assert rows(run_id) == {}


def test_what_lost_its_writer_before_the_word_is_adopted(database: str) -> None:
    """At the end of the attempt, else by the next one."""
    run_id, run = begin()
    saved(run, 5, 1)
    assert adopt_checkpoints(run_id, run) == 1
    next_attempt(run_id, 2)
    saved(run, 10, 1)
    assert recover_checkpoints(run_id, run) == 1
    assert rows(run_id) == {"5-a1": "ready", "10-a1": "ready"}
    assert [e.data["adopted"] for e in events_of(run_id, "checkpoint")] == [True, True]
    assert adopt_checkpoints(run_id, run) == recover_checkpoints(run_id, run) == 0


def test_what_a_stale_writer_finishes_later_is_put_aside(database: str) -> None:
    run_id, run = begin(2)
    recover_checkpoints(run_id, run)
    late = saved(run, 90, 1)  # its process was stopped for an hour, on a machine that nobody could ask
    mine = saved(run, 10, 2)
    assert adopt_checkpoints(run_id, run) == 1
    assert rows(run_id) == {"10-a2": "ready"}
    assert names(run) == [f".stale-{late.name}-1", mine.name]
    next_attempt(run_id, 3)
    next_attempt(run_id, 4)
    saved(run, 95, 2)
    assert recover_checkpoints(run_id, run) == 0
    assert newest_valid(run)[0] == mine


def test_a_damaged_one_is_put_aside_and_the_one_before_is_used(database: str) -> None:
    run_id, run = begin()
    first, second, third = saved(run, 5, 1), saved(run, 10, 1), saved(run, 15, 1)
    adopt_checkpoints(run_id, run)
    next_attempt(run_id, 2)
    (third / "model.safetensors").write_bytes(b"weighty")
    (second / "manifest.json").unlink()
    recover_checkpoints(run_id, run)
    assert rows(run_id) == {"5-a1": "ready", "10-a1": "corrupt", "15-a1": "corrupt"}
    assert names(run) == [f".corrupt-{second.name}-1", f".corrupt-{third.name}-1", first.name]
    assert newest_valid(run) == (first, [])
    said = events_of(run_id, "warning")
    assert [e.data["code"] for e in said] == ["CHECKPOINT_CORRUPT"] * 2
    assert said[0].data["message"] == (
        "The checkpoint of step 15 is damaged and is not used any more: The content of model.safetensors has changed "
        f"since it was saved. Its files are kept as .corrupt-{third.name}-1.")
    row = checkpoints_of(run_id)[1]
    assert row.problem == "It is not a checkpoint: it has no readable manifest.json."
    recover_checkpoints(run_id, run)
    assert len(events_of(run_id, "warning")) == 2, "once"


def test_one_that_is_damaged_when_it_is_filed_says_so(database: str) -> None:
    run_id, run = begin()
    path = saved(run, 5, 1)
    (path / "model.safetensors").write_bytes(b"weighty")
    say(run, path, 1)
    assert Ingest(run_id, 1, run).pump().checkpoints == []
    assert rows(run_id) == {"5-a1": "corrupt"} and not path.exists()


def test_a_disk_that_is_away_damages_nothing(database: str) -> None:
    run_id, run = begin()
    path = saved(run, 5, 1)
    adopt_checkpoints(run_id, run)
    run.checkpoints.rename(run.path / "away")
    assert damage.look(checkpoints_of(run_id)[0].id) is None
    adopt_checkpoints(run_id, run)
    assert rows(run_id) == {"5-a1": "ready"}
    (run.path / "away").rename(run.checkpoints)
    shutil.rmtree(path)
    adopt_checkpoints(run_id, run)
    assert rows(run_id) == {"5-a1": "deleted"}
    saved(run, 5, 1)  # it is back
    adopt_checkpoints(run_id, run)
    assert rows(run_id) == {"5-a1": "ready"}


@pytest.mark.parametrize("role", ["base_checkpoint_id", "teacher_checkpoint_id"])
def test_a_damaged_base_or_teacher_is_found_before_it_is_read(database: str, role: str) -> None:
    base_id, base = begin()
    path = saved(base, 5, 1)
    adopt_checkpoints(base_id, base)
    (path / "model.safetensors").write_bytes(b"weighty")
    run_id = add_run(**{role: checkpoints_of(base_id)[0].id})
    recover_checkpoints(run_id, RunDir(get_settings().runs_dir / run_id))
    assert rows(base_id) == {"5-a1": "corrupt"}


def test_one_that_cannot_be_loaded_for_a_talk_is_offered_no_more(database: str) -> None:
    run_id, run = begin()
    path = saved(run, 5, 1)
    adopt_checkpoints(run_id, run)
    (path / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(CheckpointError, match="is damaged: the content of model.safetensors has changed"):
        EngineCache(EngineOptions(max_engines=1, max_bytes=1 << 20)).get(path)
    assert rows(run_id) == {"5-a1": "corrupt"}


@pytest.mark.parametrize("role", ["base_checkpoint_id", "teacher_checkpoint_id"])
def test_what_need_not_be_kept_goes_when_the_new_one_is_filed(database: str, monkeypatch, role: str) -> None:
    run_id, run = begin()
    for step in range(10, 101, 10):
        saved(run, step, 1, eval_loss=0.5 if step == 40 else 1.0)
    adopt_checkpoints(run_id, run)
    write_json(run.resolved, {"total_steps": 100, "config": {"keep": 2}})
    assert tidy(run_id, run) == [], "all of it is small"
    used = {row.step: row.id for row in checkpoints_of(run_id)}
    queued = add_run(**{role: used[70]})
    monkeypatch.setattr(retention, "KEEP_ALL_BYTES", 10)
    say(run, saved(run, 110, 1), 1)
    assert Ingest(run_id, 1, run).pump().checkpoints
    # the last two, the best, the first of each half (and what is beyond the last step), the one that a run waits for
    assert [int(p.name.split("-")[1]) for p in run.checkpoint_dirs()] == [110, 100, 70, 60, 40, 10]
    assert {row.step for row in checkpoints_of(run_id) if row.state == "ready"} == {110, 100, 70, 60, 40, 10}
    assert {row.state for row in checkpoints_of(run_id)} == {"ready", "deleted"}
    with transaction() as session:
        session.execute(update(Run).where(Run.id == queued).values({role: None}))
    assert [p.name for p in tidy(run_id, run)] == ["step-00000070-a1"]


def test_the_last_two_are_never_deleted(database: str, monkeypatch) -> None:
    run_id, run = begin()
    for step in (1, 2, 3):
        saved(run, step, 1)
    adopt_checkpoints(run_id, run)
    write_json(run.resolved, {"total_steps": 3, "config": {"keep": 0}})
    monkeypatch.setattr(retention, "KEEP_ALL_BYTES", 0)
    for _ in range(2):
        tidy(run_id, run)
        assert rows(run_id) == {"1-a1": "deleted", "2-a1": "ready", "3-a1": "ready"}


def test_hashes_are_computed_once_for_files_that_stay_as_they_are(database: str, monkeypatch) -> None:
    _, run = begin()
    path = saved(run, 1, 1)
    asked: list[Path] = []
    monkeypatch.setattr(damage, "damage_of", lambda directory: asked.append(directory))
    assert damage.problem_of(path) is None and damage.problem_of(path) is None
    assert asked == [path]
    time.sleep(0.01)
    (path / "model.safetensors").write_bytes(b"weights")
    damage.problem_of(path)
    assert asked == [path, path]


def test_who_condemns_first_speaks(database: str) -> None:
    """Many readers find the damage at once."""
    run_id, run = begin()
    path = saved(run, 5, 1)
    adopt_checkpoints(run_id, run)
    (path / "model.safetensors").unlink()
    for expected in (True, False):
        with transaction() as session:
            assert (damage.condemn(session, run_id, 5, 1, "It is broken.") is not None) is expected
    with reading() as session:
        row = session.scalar(select(Checkpoint).where(Checkpoint.run_id == run_id))
    assert (row.state, row.problem) == ("corrupt", "It is broken.") and Path(row.path).is_dir()
    assert damage.look(row.id) == "It is broken."


#: stores the events of an attempt and is killed at a point of the save
KILLED_AT = """
import os, signal, sys
from minimind import retention, save_points
from minimind.run_dir import RunDir
from worker.ingest import Ingest
run, point = RunDir(sys.argv[1]), sys.argv[2]
retention.KEEP_ALL_BYTES = 0
save_points.watchers.append(lambda reached: reached == point and os.kill(os.getpid(), signal.SIGKILL))
Ingest(run.path.name, 1, run).pump()
"""


@pytest.mark.parametrize("point", ["after_row", "in_retention"])
def test_a_runner_killed_after_it_filed_a_save_leaves_nothing_half(database: str, point: str) -> None:
    run_id, run = begin()
    for step in (1, 2, 3):
        saved(run, step, 1)
    adopt_checkpoints(run_id, run)
    write_json(run.resolved, {"total_steps": 4, "config": {"keep": 0}})
    say(run, saved(run, 4, 1), 1)
    ended = subprocess.run([sys.executable, "-c", KILLED_AT, str(run.path), point], cwd=ROOT, timeout=120,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == -signal.SIGKILL
    assert rows(run_id)["4-a1"] == "ready" and newest_valid(run) == (run.checkpoint(4, 1), [])
    assert rows(run_id)["1-a1"] == ("ready" if point == "after_row" else "deleted")

    next_attempt(run_id, 2)
    recover_checkpoints(run_id, run)
    assert retention.leftovers(run.checkpoints) == ([] if point == "after_row" else [run.checkpoint(2, 1)])
    assert rows(run_id)["2-a1"] == ("ready" if point == "after_row" else "deleted")
    assert {c.path for c in checkpoints_of(run_id) if c.state == "ready"} == {
        str(path) for path in run.checkpoint_dirs() if path not in retention.leftovers(run.checkpoints)}


def test_a_run_goes_on_from_the_one_before_a_damaged_one(runners, monkeypatch) -> None:
    tell(monkeypatch, steps=60, step_s=0.05)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: (get_run(run_id).progress.get("step") or 0) >= 7)
    wish(states.request_pause, run_id)
    wait_for_state(run_id, "paused")
    before, newest = checkpoints_of(run_id)[-2:]
    (Path(newest.path) / "model.safetensors").write_bytes(b"weighty")
    tell(monkeypatch, steps=60, step_s=0.0)
    wish(states.request_resume, run_id)
    runners.claim_and_start()
    assert wait_for_state(run_id, "completed", "failed").state == "completed"
    assert attempt_of(run_id, 2).resumed_from_step == before.step
    assert rows(run_id)[f"{newest.step}-a1"] == "corrupt" and is_dense(run_id)
    assert [e.data["code"] for e in events_of(run_id, "warning")] == ["CHECKPOINT_CORRUPT"]
