"""What a run stands on is looked at before it takes a device: gone, changed, damaged, of another program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from app.core import db, inputs, queue, states
from app.core.errors import Invalid
from app.core.models import Attempt, Checkpoint, Dataset, DeviceLease, Host, Installation, Run, TokenizerRow
from app.core.settings import get_settings
from minimind.manifest import sha256_of
from minimind.run_dir import write_json
from tests.database_rig import HOST, add_host, add_run, get_run


@pytest.fixture
def dataset(database) -> Path:
    """The file of the data set ``d``."""
    add_host()
    path = get_settings().data_dir / "data.jsonl"
    path.write_text('{"text": "a"}\n')
    with db.transaction() as session:
        session.add(Dataset(id="d", name="my data", user_id="local", layout="text", state="ready", created_at=0,
                            source={"kind": "upload"}, warnings=[], path=str(path), bytes=path.stat().st_size,
                            sha256=sha256_of(path), stamp=inputs.stamp_of(path)))
    return path


def claim(*sure: str) -> queue.Claim | queue.Unsure | None:
    with db.transaction() as session:
        return queue.claim_run(session, HOST, sure)


def claim_patiently() -> queue.Claim | None:
    found = claim()
    if isinstance(found, queue.Unsure):
        inputs.look_again(found.dataset_id)
        found = claim(found.dataset_id)
    return found


def nothing_was_taken() -> bool:
    with db.reading() as session:
        return session.scalar(select(func.count()).select_from(Attempt)) == 0 \
            and session.scalar(select(func.count()).select_from(DeviceLease)) == 0


def resume(run_id: str, **wish) -> None:
    with db.transaction() as session:
        states.request_resume(session, session.get(Run, run_id), **wish)


def test_a_file_that_is_what_it_was_is_not_hashed(dataset, monkeypatch):
    run_id = add_run(dataset_id="d")
    monkeypatch.setattr(inputs, "look_again", None)
    assert claim().run_id == run_id


def test_a_file_that_was_only_touched_is_hashed_once_and_taken(dataset):
    run_id = add_run(dataset_id="d")
    os.utime(dataset, (1, 1))
    assert claim() == queue.Unsure("d")
    assert claim_patiently().run_id == run_id
    with db.reading() as session:
        assert session.get(Dataset, "d").stamp == inputs.stamp_of(dataset)


def test_a_changed_dataset_is_said_before_a_device_is_taken(dataset):
    run_id = add_run(dataset_id="d")
    dataset.write_text('{"text": "b"}\n')
    assert claim_patiently() is None
    run = get_run(run_id)
    assert (run.state, run.error["class"]) == ("failed", "DATA")
    assert "'my data'" in run.error["message"] and "was changed" in run.error["message"] and nothing_was_taken()


def test_a_run_with_progress_waits_for_its_user_instead(dataset):
    """It is not thrown away: the file can be brought back, or the change accepted."""
    run_id = add_run(dataset_id="d", attempt=2)
    before = dataset.read_text()
    dataset.write_text("something else entirely\n")
    assert claim_patiently() is None
    run = get_run(run_id)
    assert (run.state, run.desired, run.reason) == ("paused", "pause", "inputs") and nothing_was_taken()
    with pytest.raises(Invalid, match="was changed") as refused:
        resume(run_id)
    assert refused.value.field == "dataset_id" and get_run(run_id).state == "paused"
    dataset.write_text(before)
    resume(run_id)
    assert get_run(run_id).error is None and claim_patiently().run_id == run_id


def test_a_change_can_be_accepted(dataset):
    run_id = add_run(dataset_id="d", attempt=1)
    dataset.write_text("something else entirely\n")
    assert claim_patiently() is None
    resume(run_id, allow_changes=True)
    assert claim().run_id == run_id


@pytest.mark.parametrize("gone", ["dataset", "file", "base", "base files", "tokenizer", "teacher", "teacher files"])
def test_what_is_gone_is_said_before_a_device_is_taken(dataset, tmp_path, gone):
    base, tokenizer = tmp_path / "base", tmp_path / "tokenizer"
    write_json_in(base, "manifest.json", {"version": 1})
    tokenizer.mkdir()
    other = add_run(state="paused")
    with db.transaction() as session:
        session.execute(update(Run).values(desired="pause"))
        session.add(TokenizerRow(id="t", name="my words", user_id="local", state="ready", path=str(tokenizer),
                                 source={}, created_at=0))
        session.add(Checkpoint(id="c", run_id=other, attempt=1, stage="pretrain", step=5, tokens=1, bytes=1,
                               path=str(base), state="ready", created_at=0))
        write_json_in(tmp_path / "teacher", "manifest.json", {"version": 1})
        session.add(Checkpoint(id="teacher", run_id=other, attempt=1, stage="sft", step=6, tokens=1, bytes=1,
                               path=str(tmp_path / "teacher"), state="ready", created_at=0))
    run_id = add_run(dataset_id=None if gone == "dataset" else "d", base_checkpoint_id="c", tokenizer_id="t",
                     teacher_checkpoint_id="teacher")
    with db.transaction() as session:
        if gone in ("base", "teacher"):
            session.get(Checkpoint, "c" if gone == "base" else "teacher").state = "deleted"
        if gone == "dataset":
            session.get(Dataset, "d").state = "failed"
            session.get(Run, run_id).dataset_id = "d"
    if gone == "file":
        dataset.unlink()
    elif gone == "base files":
        (base / "manifest.json").unlink()
    elif gone == "teacher files":
        (tmp_path / "teacher" / "manifest.json").unlink()
    elif gone == "tokenizer":
        tokenizer.rmdir()
    assert claim_patiently() is None
    run = get_run(run_id)
    assert run.state == "failed" and "is not there any more" in run.error["message"] and run.error["hint"]
    assert nothing_was_taken()


@pytest.mark.parametrize("manifest, state, said", [
    ({"version": 99}, "ready", "another version of the program"), ({"version": 1}, "corrupt", "is damaged")])
def test_a_base_of_another_program_or_a_damaged_one(dataset, tmp_path, manifest, state, said):
    write_json_in(tmp_path / "base", "manifest.json", manifest)
    other = add_run(desired="run")
    with db.transaction() as session:
        states.request_pause(session, session.get(Run, other))
        session.add(Checkpoint(id="c", run_id=other, attempt=1, stage="pretrain", step=5, tokens=1, bytes=1,
                               path=str(tmp_path / "base"), state=state, created_at=0, problem="A file differs."))
    for run_id in (add_run(base_checkpoint_id="c"), add_run(teacher_checkpoint_id="c")):
        assert claim_patiently() is None
        assert said in get_run(run_id).error["message"] and nothing_was_taken()


@pytest.mark.parametrize("gone", ["row", "files", "damaged"])
def test_a_run_that_has_saved_goes_on_without_its_base(dataset, tmp_path, gone):
    """Its own checkpoint holds the weights; until there is one, and once that is gone, it needs its base."""
    run_id = add_run(stage="lora", state="paused", attempt=1, base_checkpoint_id="c")
    write_json_in(tmp_path / "own", "manifest.json", {"version": 1})
    with db.transaction() as session:
        session.get(Run, run_id).desired = "pause"
        session.add(Checkpoint(id="own", run_id=run_id, attempt=1, stage="lora", step=5, tokens=1, bytes=1,
                               path=str(tmp_path / "own"), state="ready", created_at=0))
        if gone != "row":
            other = Run(**{c.name: getattr(session.get(Run, run_id), c.name) for c in Run.__table__.columns} |
                        {"id": "other"})
            session.add(other)
            session.flush()
            session.add(Checkpoint(id="c", run_id="other", attempt=1, stage="sft", step=5, tokens=1, bytes=1,
                                   path=str(tmp_path / "base"), state="corrupt" if gone == "damaged" else "ready",
                                   created_at=0))
    with db.reading() as session:
        assert inputs.problem(session, session.get(Run, run_id)) is None
        run = session.get(Run, run_id)
    resume(run_id)
    assert claim().run_id == run_id
    (tmp_path / "own" / "manifest.json").unlink()
    with db.reading() as session:
        assert inputs.problem(session, run)["field"] == "base_checkpoint_id"


def test_one_that_cannot_start_does_not_keep_the_next_from_it(dataset):
    bad, good = add_run(dataset_id="d", priority=5), add_run()
    dataset.unlink()
    assert claim_patiently().run_id == good and get_run(bad).state == "failed"


def test_nothing_begins_while_the_queue_is_paused_or_its_host_has_a_problem(database):
    add_host()
    run_id = add_run()
    with db.transaction() as session:
        session.add(Installation(id=1, uid="x", created_at=0.0, queue_paused_at=1.0))
    assert claim() is None
    with db.transaction() as session:
        session.get(Installation, 1).queue_paused_at = None
        session.get(Host, HOST).problem = "It runs another version."
    assert claim() is None
    with db.transaction() as session:
        session.get(Host, HOST).problem = None
    assert claim().run_id == run_id


def test_a_bad_device_is_left_alone_for_its_time(database):
    add_host(devices=[{"id": "cuda:0"}, {"id": "cuda:1"}])
    first, second = (add_run(devices={"kind": "cuda", "count": 1}) for _ in range(2))
    with db.transaction() as session:
        session.get(Host, HOST).bad_devices = [{"id": "cuda:0", "reason": "Xid 79", "until": db.now(session) + 600}]
    assert claim().devices == ("cuda:1",) and claim() is None
    with db.transaction() as session:
        session.get(Host, HOST).bad_devices = [{"id": "cuda:0", "reason": "Xid 79", "until": db.now(session) - 1}]
    assert claim() == queue.Claim(second, 1, ("cuda:0",)) and get_run(first).state == "starting"


def write_json_in(directory: Path, name: str, value: object) -> None:
    directory.mkdir()
    write_json(directory / name, value)


def test_a_file_that_cannot_be_read_is_left_to_the_trainer(dataset, monkeypatch):
    """It is looked at once, not for ever."""
    run_id = add_run(dataset_id="d")
    os.utime(dataset, (1, 1))
    monkeypatch.setattr(inputs, "open", None, raising=False)
    assert claim() == queue.Unsure("d") and claim("d").run_id == run_id


def test_no_job_begins_while_the_queue_is_paused(database):
    add_host()
    with db.transaction() as session:
        session.add(Installation(id=1, uid="x", created_at=0.0, queue_paused_at=1.0))
        queue.enqueue_job(session, "dataset_import", {"dataset_id": "d"}, user_id="local")
        assert queue.claim_job(session, HOST) is None
        session.get(Installation, 1).queue_paused_at = None
        assert queue.claim_job(session, HOST) is not None
