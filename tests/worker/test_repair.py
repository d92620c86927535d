"""``./studio doctor --repair`` on real files, rows and processes: what it finds, mends, and leaves alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app.core.db import now, reading, transaction
from app.core.models import Attempt, Checkpoint, DeviceLease, Installation, Job, Run
from app.core.queue import claim_job, claim_run, enqueue_job
from app.core.settings import get_settings
from minimind.run_dir import RunDir, write_json
from tests.database_rig import HOST, add_host, add_run, get_run
from tests.worker.runner_rig import checkpoints_of, is_dense, tell, wait_for_state
from tests.worker.test_checkpoints import saved
from worker import processes, repair
from worker.checkpoints import adopt_checkpoints
from worker.cli.doctor import look_into_data_dir

OLD = time.time() - 2 * repair.YOUNG_S


@pytest.fixture(autouse=True)
def installed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is made from the models, without the migrations whose newest one is asked for."""
    monkeypatch.setattr(repair.migrate, "schema_state", lambda: "current")


def found(*, mend: bool = False) -> list[tuple[str, str, str, str]]:
    return [(name, *finding) for name, finding in look_into_data_dir(repair=mend)]


def only(level: str, name: str, what: str, *, mend: bool = False) -> str:
    """The advice, or what was done, of the one finding there is."""
    all_of_it = [f for f in found(mend=mend) if f[2].find("can be mended here") < 0]
    assert len(all_of_it) == 1, all_of_it
    assert all_of_it[0][:2] == (name, level) and what in all_of_it[0][2], all_of_it
    return all_of_it[0][3]


def is_healthy() -> bool:
    return [f[1:3] for f in found()] == [("ok", "nothing in the data directory is left from a crash")]


def made_old(path: Path) -> Path:
    os.utime(path, (OLD, OLD))
    return path


def a_directory(home: Path, name: str, old: bool = True) -> Path:
    path = home / name
    path.mkdir(parents=True)
    (path / "something").write_text("to be missed")
    return made_old(path) if old else path


def held_run(runner_pid: int | None = None) -> str:
    """A run that a runner held which is gone."""
    add_host(boot_id=processes.boot_id())
    run_id = add_run()
    with transaction() as session:
        claim_run(session, HOST)
        session.execute(update(Attempt).where(Attempt.run_id == run_id).values(
            runner_pid=runner_pid or 1 << 22, runner_started=processes.start_time(runner_pid) if runner_pid else 1.0,
            started_at=now(session) - 1000))
        session.execute(update(Run).where(Run.id == run_id).values(lease_expires_at=now(session) + 1000))
    return run_id


def lock(name: str):
    path = get_settings().data_dir / name
    path.write_text(f"{os.getpid()}\n")
    file = open(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.fixture
def process() -> Iterator[Callable[[str], subprocess.Popen]]:
    """Starts a process that carries the mark of an attempt on this data directory."""
    started = []

    def start(mark: str) -> subprocess.Popen:
        env = {**os.environ, processes.ATTEMPT_VARIABLE: mark, "STUDIO_DATA_DIR": str(get_settings().data_dir)}
        started.append(subprocess.Popen([sys.executable, "-c", "print(1, flush=True); import time; time.sleep(300)"],
                                        env=env, stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()


def test_a_healthy_place_is_left_as_it_is() -> None:
    add_host()
    run_id = add_run()
    run = RunDir(get_settings().runs_dir / run_id)
    saved(run, 5, 1)
    with transaction() as session:
        claim_run(session, HOST)
    adopt_checkpoints(run_id, run)
    before = sorted(get_settings().runs_dir.rglob("*"))
    assert is_healthy() and found(mend=True)[0][1] == "ok"
    assert sorted(get_settings().runs_dir.rglob("*")) == before


def test_looking_makes_no_database(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STUDIO_DATA_DIR", str(tmp_path / "new"))
    monkeypatch.delenv("STUDIO_DATABASE_URL", raising=False)
    get_settings.cache_clear()
    assert is_healthy()
    (tmp_path / "new").mkdir()
    assert is_healthy() and list((tmp_path / "new").iterdir()) == []
    get_settings.cache_clear()


def test_a_database_that_is_away_is_said(monkeypatch) -> None:
    def away() -> str:
        raise OperationalError("", {}, Exception("connection refused"))

    monkeypatch.setattr(repair, "schema_state", lambda settings: away())
    a_directory(get_settings().runs_dir, "whose")
    assert "what in the data directory is in use" in only("bad", "rows", "connection refused", mend=True)
    assert (get_settings().runs_dir / "whose").exists()


def test_a_database_of_another_version_is_said(monkeypatch) -> None:
    monkeypatch.setattr(repair, "schema_state", lambda settings: "older")
    a_directory(get_settings().runs_dir, "whose")
    assert "Start the studio once" in only("note", "rows", "made by an older version", mend=True)


def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    path = tmp_path / "broker" / "valkey.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert is_healthy(), "somebody listens"
    only("note", "sockets", str(path))
    with lock("studio.lock"):
        assert "runs on this data directory" in only("note", "sockets", str(path), mend=True)
        assert path.exists()
    (tmp_path / "studio.lock").unlink()
    only("done", "sockets", str(path), mend=True)
    assert not path.exists() and is_healthy()


def test_a_lock_file_that_names_a_dead_process(tmp_path: Path) -> None:
    (tmp_path / "worker-here.lock").write_text(f"{1 << 22}\n")
    assert "Harmless" in only("note", "locks", "worker-here.lock")
    only("done", "locks", "worker-here.lock", mend=True)
    assert is_healthy()
    with lock("worker-here.lock"):
        assert is_healthy(), "it is held"


@pytest.mark.parametrize("home", ["runs", "datasets", "tokenizers"])
def test_a_directory_that_no_row_knows_goes_to_the_trash(tmp_path: Path, home: str) -> None:
    path = a_directory(tmp_path / home, "strange")
    a_directory(tmp_path / home, "young", old=False)
    assert "--repair" in only("note", "files", str(path))
    assert path.exists()
    assert "trash" in only("done", "files", str(path), mend=True)
    (moved,) = (tmp_path / "trash").iterdir()
    assert (moved / "something").read_text() == "to be missed" and not path.exists()
    assert is_healthy()


def test_rows_of_another_installation_say_nothing_of_this_directory(tmp_path: Path) -> None:
    """Moved to a server, asked with the old database: every newer run would belong to nothing."""
    home = a_directory(get_settings().runs_dir, "newerrun")
    with transaction() as session:
        session.add(Installation(id=1, uid="of the old database", created_at=0.0))
    write_json(get_settings().data_dir / "installation.json", {"uid": "of the server"})
    assert "STUDIO_DATABASE_URL" in only("bad", "rows", "belongs to another installation", mend=True)
    assert home.is_dir()


def test_half_made_checkpoints_go_unless_somebody_makes_them(tmp_path: Path) -> None:
    run_id = held_run(os.getpid())
    checkpoints = RunDir(get_settings().runs_dir / run_id).checkpoints
    a_directory(checkpoints, ".tmp-step-00000005-a1")
    a_directory(checkpoints, "step-00000003-a1")  # retention was killed in the middle
    for advice in (f[3] for f in found(mend=True)):
        assert advice == "Left alone: Its run is being trained."
    with transaction() as session:
        session.execute(update(Run).where(Run.id == run_id).values(
            state="pausing"))
        session.execute(update(Run).where(Run.id == run_id).values(
            state="paused", lease_owner=None, lease_host=None, lease_expires_at=None))
        session.execute(update(Attempt).values(state="closed", ended_at=now(session)))
        session.query(DeviceLease).delete()
    assert [f[1] for f in found()] == ["note"] * 3
    assert [f[1] for f in found(mend=True)] == ["done"] * 2
    assert list(checkpoints.iterdir()) == [] and is_healthy()


def test_what_changed_since_it_was_looked_at_is_left_alone(tmp_path: Path) -> None:
    """A run is taken up, or a checkpoint becomes whole, between the look and the repair."""
    run_id = add_run()
    checkpoints = RunDir(get_settings().runs_dir / run_id).checkpoints
    taken, whole = (a_directory(checkpoints, f"step-0000000{step}-a1") for step in (3, 4))
    repairs = {finding.what.split()[0]: finding.repair for _, finding in repair.look() if finding.repair}
    assert set(repairs) == {str(taken), str(whole)}
    (whole / "manifest.json").write_text("{}")
    assert "whole or gone" in repairs[str(whole)]() and whole.is_dir()
    add_host()
    with transaction() as session:
        claim_run(session, HOST)
    assert "being trained by now" in repairs[str(taken)]() and taken.is_dir()


def test_what_vanishes_while_it_is_measured_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the trainer renames, and a directory that it deletes, between their being listed and looked into."""
    home = a_directory(tmp_path, "half")
    (home / "inner").mkdir()
    (home / "inner" / "more").write_text("12345")
    assert repair.size_of(home) == len("to be missed") + 5
    walk = os.walk

    def walked(place: Path) -> Iterator[tuple]:
        for found in walk(place):
            shutil.rmtree(home, ignore_errors=True)
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(os, "walk", walked)
        assert repair.size_of(home) == 0
    assert repair.size_of(home / "something") == 0


def test_half_made_imports_and_forgotten_uploads(tmp_path: Path) -> None:
    with transaction() as session:
        job = enqueue_job(session, "dataset_import", {
            "dataset_id": "wanted", "upload_path": str(tmp_path / "uploads" / "wanted")}, user_id="local")
        assert job.state == "queued"
    for home, name in (("datasets", ".wanted.importing"), ("datasets", ".left.importing"),
                       ("tokenizers", ".left.training"), ("runs", ".left.importing"), ("exports", ".left.exporting"),
                       ("exports", "orphan")):
        a_directory(tmp_path / home, name)
    (tmp_path / "uploads").mkdir()
    for name in ("wanted", "left"):
        (tmp_path / "uploads" / name).write_text("rows")
        made_old(tmp_path / "uploads" / name)
    (tmp_path / "uploads" / "young").write_text("rows")
    mended = [(f[2].split()[0].removeprefix(str(tmp_path)), f[1]) for f in found(mend=True)]
    assert mended == [("/exports/orphan", "done"), ("/datasets/.left.importing", "done"),
                      ("/datasets/.wanted.importing", "note"), ("/tokenizers/.left.training", "done"),
                      ("/runs/.left.importing", "done"), ("/exports/.left.exporting", "done"),
                      ("/uploads/left", "done")]
    assert (tmp_path / "datasets" / ".wanted.importing").exists() and (tmp_path / "uploads" / "young").exists()


def test_a_damaged_checkpoint_is_put_aside() -> None:
    add_host()
    run_id = add_run()
    run = RunDir(get_settings().runs_dir / run_id)
    with transaction() as session:
        claim_run(session, HOST)
    first, second = saved(run, 5, 1), saved(run, 10, 1)
    adopt_checkpoints(run_id, run)
    with transaction() as session:
        for state in ("cancelling", "cancelled"):
            session.execute(update(Run).where(Run.id == run_id).values(
                state=state, **({} if state == "cancelling" else {"lease_owner": None, "ended_at": 1.0})))
        session.execute(update(Attempt).values(state="closed", ended_at=1.0))
        session.query(DeviceLease).delete()
    (second / "model.safetensors").write_bytes(b"weighty")
    assert "--repair" in only("bad", "saves", f"{second} is damaged: The content of model.safetensors has changed")
    assert second.exists() and checkpoints_of(run_id)[1].state == "ready", "looking changes nothing"
    done = [f for f in found(mend=True) if f[1] == "done"]
    assert len(done) == 1 and done[0][3].endswith("marked as damaged; step 5 is the newest one now.")
    assert [c.state for c in checkpoints_of(run_id)] == ["ready", "corrupt"] and first.exists() and not second.exists()
    assert "Nothing uses them." in only("note", "saves", ".corrupt-step-00000010-a1-1")


def test_rows_whose_files_are_gone() -> None:
    add_host()
    run_id = add_run()
    with transaction() as session:
        session.add(Checkpoint(run_id=run_id, attempt=1, stage="pretrain", step=3, tokens=1, bytes=1, created_at=1.0,
                               path=str(get_settings().runs_dir / "gone"), state="ready"))
    only("bad", "files", "has no files")
    assert only("done", "files", "has no files", mend=True) == "Marked it as deleted."
    assert checkpoints_of(run_id)[0].state == "deleted" and is_healthy()


def test_a_run_whose_runner_is_gone_is_settled_unless_a_worker_lives() -> None:
    run_id = held_run()
    assert "--repair" in only("bad", "rows", run_id)
    with lock("worker-here.lock"):
        assert "The worker settles it by itself" in only("bad", "rows", run_id, mend=True)
    assert get_run(run_id).state == "starting"
    assert "recovering" in next(f[3] for f in found(mend=True) if f[1] == "done")
    assert get_run(run_id).state == "recovering" and is_dense(run_id)
    with reading() as session:
        assert session.scalars(select(DeviceLease)).all() == []
        assert session.get(Attempt, (run_id, 1)).state == "closed"


def test_a_living_runner_is_left_alone(process) -> None:
    run_id = held_run(os.getpid())
    with transaction() as session:
        session.execute(update(Run).where(Run.id == run_id).values(lease_expires_at=now(session) - 5))
    child = process(processes.marker(run_id, 1))
    assert "renews it" in only("note", "rows", "whose lease is over", mend=True)
    assert child.poll() is None and get_run(run_id).state == "starting"


def test_processes_of_an_attempt_that_is_over_are_ended(process) -> None:
    add_host()
    run_id = add_run()
    with transaction() as session:
        session.add(Attempt(run_id=run_id, number=1, state="closed", host_id=HOST, boot_id="b", events_offset=0,
                            started_at=1.0, ended_at=now(session)))
    child = process(processes.marker(run_id, 1))
    assert is_healthy(), "it may still be tidying up"
    with transaction() as session:
        session.execute(update(Attempt).values(ended_at=now(session) - 100))
    stranger = process("of-a-run-that-was-deleted/1")
    levels = [(f[0], f[1]) for f in found()]
    assert levels == [("processes", "bad")] * 2 + [("files", "note")]
    assert child.poll() is None and stranger.poll() is None
    assert [f[1] for f in found(mend=True)] == ["done"] * 2
    assert child.wait(timeout=20) == stranger.wait(timeout=20) == -9


def test_devices_taken_for_nobody_are_freed() -> None:
    add_host()
    run_id = add_run()
    with transaction() as session:
        session.add(DeviceLease(host_id=HOST, device="cpu:0", run_id=run_id, attempt=1))
    only("bad", "devices", f"cpu:0 of {HOST} is taken for the run {run_id}, which is queued")
    only("done", "devices", "cpu:0", mend=True)
    assert is_healthy()


def test_a_job_whose_process_is_gone_is_done_once_more() -> None:
    add_host()
    with transaction() as session:
        job_id = enqueue_job(session, "dataset_import", {"dataset_id": "d"}, user_id="local").id
    with transaction() as session:
        claim_job(session, HOST)
        session.get_one(Job, job_id).lease_expires_at = now(session) - 5
    only("bad", "rows", job_id)
    assert only("done", "rows", job_id, mend=True) == "It is queued now."
    with reading() as session:
        assert session.get(Job, job_id).state == "queued"


def test_one_that_cannot_be_mended_keeps_no_other_from_it(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        a_directory(tmp_path / "runs", name)
    was = repair.to_trash

    def reluctant(place: repair.Place, path: Path) -> str:
        if path.name == "a":
            raise PermissionError("not yours")
        return was(place, path)

    monkeypatch.setattr(repair, "to_trash", reluctant)
    first, second = found(mend=True)
    assert first[1] == "bad" and "PermissionError: not yours" in first[3] and second[1] == "done"


def test_a_run_that_is_being_trained_is_not_disturbed(runners, monkeypatch) -> None:
    """With a runner and a trainer that live: looked at and mended over and over."""
    tell(monkeypatch, steps=60, step_s=0.03, save_every=3)
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    looks = 0
    while get_run(run_id).state == "running":
        wrong = [f for f in found(mend=True) if f[1] in ("bad", "done")]
        assert not wrong
        looks += 1
    assert wait_for_state(run_id, "completed", "failed").state == "completed" and looks > 3
    assert [c.step for c in checkpoints_of(run_id)] == list(range(3, 61, 3)) and is_dense(run_id)
    assert {c.state for c in checkpoints_of(run_id)} == {"ready"}
