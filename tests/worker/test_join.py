"""A machine that does not fit is told so in one sentence; one that does is let in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from app.core import db, queue
from app.core.models import Checkpoint, Host, Installation
from app.core.settings import get_settings
from app.core.timing import get_timing
from app.core.version import code_version, version_of
from tests import database_rig
from tests.integration.studio import own_postgres_database
from worker import join, main, processes
from worker.database import MARK, mark_directory, open_installation

ROOT = Path(__file__).resolve().parents[2]
MINE = "mine"


@pytest.fixture(params=database_rig.backends())
def installation(request, tmp_path, monkeypatch) -> Iterator[Path]:
    """An installation that a web process of this code has opened; its data directory."""
    directory = tmp_path / "D"
    monkeypatch.setenv("STUDIO_DATA_DIR", str(directory))
    monkeypatch.setenv("STUDIO_HOST_ID", MINE)
    drop = None
    if request.param == "postgresql":
        url, drop = own_postgres_database(os.environ["STUDIO_TEST_DATABASE_URL"])
        monkeypatch.setenv("STUDIO_DATABASE_URL", url)
    get_settings.cache_clear()
    url = get_settings().sqlalchemy_url
    open_installation()
    try:
        yield directory
    finally:
        db.engine_for(url).dispose()
        if drop is not None:
            drop()
        monkeypatch.undo()
        get_settings.cache_clear()


def on_sqlite() -> bool:
    return get_settings().sqlalchemy_url.startswith("sqlite")


def say(monkeypatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()


def change(**values: object) -> None:
    with db.transaction() as session:
        row = session.get(Installation, 1)
        for name, value in values.items():
            setattr(row, name, value)


def refused(role: str = "worker") -> join.JoinError:
    with pytest.raises(join.JoinError) as caught:
        join.check(role)
    assert caught.value.hint and caught.value.message.endswith(".")
    return caught.value


def command(role: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-P", "-m", "worker.cli", role], cwd=ROOT, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, timeout=60)


# -- versions -----------------------------------------------------------------------------------------------------


def test_two_copies_of_the_sources_are_one_version_and_any_change_is_another(tmp_path):
    for name in ("one", "two"):
        for package in ("app", "worker", "migrations"):
            (tmp_path / name / package).mkdir(parents=True)
            (tmp_path / name / package / "a.py").write_text("x = 1\n")
        (tmp_path / name / "pyproject.toml").write_text('[project]\nversion = "1.2"\n')
    (tmp_path / "two" / "app" / "notes.txt").write_text("not code")
    assert version_of(tmp_path / "one") == version_of(tmp_path / "two")
    assert version_of(tmp_path / "one").startswith("1.2+")
    (tmp_path / "two" / "worker" / "a.py").write_text("x = 2\n")
    changed = version_of(tmp_path / "two")
    assert changed != version_of(tmp_path / "one")
    (tmp_path / "two" / "worker" / "a.py").rename(tmp_path / "two" / "worker" / "b.py")
    assert version_of(tmp_path / "two") != changed
    assert len(code_version()) <= 64


def test_the_web_process_writes_down_what_workers_compare(installation):
    with db.reading() as session:
        row = session.get(Installation, 1)
    assert row.code_version == code_version()
    assert row.home_host == (MINE if on_sqlite() else None)
    mark = json.loads((installation / MARK).read_text())
    assert mark == {"uid": row.uid, "data_dir": str(installation),
                    "database": "sqlite" if on_sqlite() else "postgresql"}
    before = (installation / MARK).stat().st_mtime_ns
    open_installation()
    assert (installation / MARK).stat().st_mtime_ns == before
    (installation / MARK).unlink()  # a directory made before there were marks
    open_installation()
    assert (installation / MARK).is_file()


def test_another_version_is_refused_at_the_start_and_stops_new_work_later(installation):
    change(code_version="0.0.9+000000000000")
    error = refused()
    assert "0.0.9+000000000000" in error.message and code_version() in error.message
    problem = join.problem_now(by_up=False)
    assert "takes no new ones" in problem and "start the worker again" in problem
    assert join.problem_now(by_up=True) is None, "what up starts is of its own checkout"
    change(code_version=code_version())
    assert join.problem_now(by_up=False) is None


def test_a_worker_of_an_older_version_takes_nothing_new_until_it_fits_again(installation):
    worker = main.Worker(drain=False)
    run_id = database_rig.add_run()

    def claim() -> queue.Claim | None:
        worker._heartbeat()
        with db.transaction() as session:
            return queue.claim_run(session, MINE)

    change(code_version="0.0.9+000000000000")
    assert claim() is None, "whoever claims for this host: its bell, too"
    with db.reading() as session:
        assert "takes no new ones" in session.get(Host, MINE).problem
    change(code_version=code_version())
    assert claim().run_id == run_id
    with db.reading() as session:
        assert session.get(Host, MINE).problem is None


def test_a_database_of_another_schema_is_refused(installation):
    with db.engine_for(get_settings().sqlalchemy_url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    assert "older schema" in refused().message
    with db.engine_for(get_settings().sqlalchemy_url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert "another version" in refused().message
    with db.engine_for(get_settings().sqlalchemy_url).begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    assert "no schema" in refused().message and "./studio web" in refused().hint


def test_a_database_that_no_web_process_has_opened_is_refused(installation):
    change(code_version=None)
    assert "./studio web" in refused().hint


# -- where the database is ----------------------------------------------------------------------------------------


def test_sqlite_serves_one_machine(installation, monkeypatch):
    if not on_sqlite():
        pytest.skip("about SQLite")
    join.check("worker")  # beside ./studio web, on its machine
    say(monkeypatch, STUDIO_HOST_ID="another")
    assert "SQLite serves one machine" in refused().message and "STUDIO_DATABASE_URL" in refused().hint
    say(monkeypatch, STUDIO_HOST_ID=MINE, STUDIO_REDIS_URL="redis://127.0.0.1:1/0")
    for role in ("worker", "inference"):
        assert "SQLite serves one machine" in refused(role).message
    say(monkeypatch, STUDIO_DATABASE_URL=f"sqlite:///{installation}/elsewhere.db")
    assert "SQLite serves one machine" in refused().message
    assert not (installation / "elsewhere.db").exists(), "a look makes no database"


@pytest.mark.parametrize("url, said", [
    ("postgresql://studio:secret@127.0.0.1:1/studio", "127.0.0.1:1/studio"),
    ("postgresql://studio:s?cret@no-such-host.invalid/studio", "cannot be used"),
])
def test_a_database_that_does_not_answer_is_named_without_its_password(installation, monkeypatch, url, said):
    say(monkeypatch, STUDIO_DATABASE_URL=url)
    error = refused()
    assert said in error.message and "cret" not in str(error)


def test_the_command_says_it_in_one_line_and_ends_with_status_2(installation):
    ended = command("worker", STUDIO_DATABASE_URL="", STUDIO_REDIS_URL="redis://127.0.0.1:1/0")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("studio: ") and ended.stderr.count("\n") == 1
    assert "SQLite serves one machine" in ended.stderr


@pytest.mark.parametrize("environment, said", [
    ({"STUDIO_DATABASE_URL": "nonsense"}, "STUDIO_DATABASE_URL"),
    ({"STUDIO_DATABASE_URL": "mysql://a:b@c/d"}, "not supported"),
    ({"STUDIO_REDIS_URL": "nonsense"}, "STUDIO_REDIS_URL"),
])
def test_nonsense_is_a_sentence_too(installation, monkeypatch, environment, said):
    if on_sqlite() and "STUDIO_REDIS_URL" in environment:
        pytest.skip("SQLite and a broker of its own are refused before")
    say(monkeypatch, **environment)
    with pytest.raises(ValueError, match=said):
        join.check("worker")
        join.look_for_broker("worker")


def test_a_broker_that_is_away_is_said_and_no_reason_to_refuse(installation, monkeypatch, capsys):
    if not on_sqlite():
        say(monkeypatch, STUDIO_REDIS_URL="redis://:secret@127.0.0.1:1/0")
    join.look_for_broker("worker")
    said = capsys.readouterr().err
    assert "does not answer" in said and "secret" not in said


# -- the directory ------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_the_installations_is_refused(installation, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    say(monkeypatch, STUDIO_DATABASE_URL=get_settings().sqlalchemy_url, STUDIO_DATA_DIR=str(elsewhere))
    error = refused()
    assert str(elsewhere) in error.message and "same path" in error.hint
    shutil.copy(installation / MARK, elsewhere / MARK)  # the right one, at another path
    assert str(installation) in refused().message and str(elsewhere) in refused().message
    (elsewhere / MARK).write_text(json.dumps({"uid": "x", "data_dir": str(elsewhere)}))
    assert "another studio" in refused().message
    assert str(elsewhere) in join.problem_now(by_up=False)


def test_a_directory_that_goes_away_stops_new_work(installation):
    assert join.problem_now(by_up=False) is None
    (installation / MARK).unlink()
    assert "not the run directory" in join.problem_now(by_up=False)


def test_a_full_disk_stops_new_work(installation, monkeypatch):
    """Else every waiting run would begin, fail at once, and make room for the next."""
    assert join.problem_now(by_up=True) is None
    monkeypatch.setattr(join.shutil, "disk_usage", lambda _: type("Usage", (), {"free": join.LEAST_FREE_BYTES - 1})())
    assert "is full: nothing new begins" in join.problem_now(by_up=True)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_refused(installation):
    (installation / "runs").mkdir(exist_ok=True)
    (installation / "runs").chmod(0o500)
    assert "cannot be written" in refused().message


def test_a_file_in_the_place_of_a_directory_is_refused(installation):
    (installation / "runs").write_text("")
    assert str(installation / "runs") in refused().message


def test_checkpoints_must_lie_where_the_database_says(installation):
    run_id = database_rig.add_run()
    with db.transaction() as session:
        session.add(Checkpoint(run_id=run_id, attempt=1, stage="pretrain", step=1, tokens=1, bytes=1, state="ready",
                               path="/srv/elsewhere/runs/x/checkpoints/step-00000001-a1", created_at=0.0))
    assert "/srv/elsewhere" in refused().message
    with db.transaction() as session:
        session.query(Checkpoint).one().path = str(installation / "runs" / "gone")
    assert "cannot be found" in refused().message


def test_a_directory_of_a_database_server_is_not_taken_over(installation):
    settings = get_settings()
    (installation / MARK).write_text(json.dumps({"uid": "x", "data_dir": str(installation), "database": "postgresql"}))
    with pytest.raises(ValueError, match="belongs to another installation"):
        open_installation()
    (installation / MARK).write_text(json.dumps({"uid": "x", "data_dir": str(installation), "database": "sqlite"}))
    open_installation()  # its database was removed, or replaced by a server
    mark_directory(settings, json.loads((installation / MARK).read_text())["uid"])


# -- one worker a host --------------------------------------------------------------------------------------------


def test_a_second_worker_of_one_host_is_refused(installation, monkeypatch):
    monkeypatch.setattr(join, "LOCK_PATIENCE_S", 0.3)
    with join.only_worker():
        with pytest.raises(join.JoinError, match=f"pid {os.getpid()}") as caught, join.only_worker():
            raise AssertionError("two workers")
        assert "STUDIO_HOST_ID" in caught.value.hint
        say(monkeypatch, STUDIO_HOST_ID="another")
        with join.only_worker():
            pass
    say(monkeypatch, STUDIO_HOST_ID=MINE)
    with join.only_worker():
        pass


def add_namesake(**values: object) -> None:
    with db.transaction() as session:
        session.add(Host(**{"id": MINE, "name": "far", "boot_id": "another boot", "cpu_slots": 1, "devices": [],
                            "versions": {}, "draining": False, "worker_pid": 1, "last_seen_at": db.now(session)}
                         | values))


@pytest.fixture
def quick(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("STUDIO_LEASE_S", "2")
    get_timing.cache_clear()
    yield
    get_timing.cache_clear()


def test_another_machine_of_the_same_name_is_refused(installation, quick):
    add_namesake()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.3):
            with db.transaction() as session:
                session.get(Host, MINE).last_seen_at = db.now(session)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(join.JoinError, match="far") as caught, join.only_worker():
            raise AssertionError("two machines of one name")
        assert "STUDIO_HOST_ID" in caught.value.hint
    finally:
        over.set()
        thread.join()


def test_a_machine_that_was_started_again_is_itself(installation, quick):
    add_namesake()
    began = time.monotonic()
    with join.only_worker():
        assert time.monotonic() - began >= 2, "its last boot's heartbeat was waited for"


@pytest.mark.parametrize("values", [{"worker_pid": None}, {"last_seen_at": 0.0}, {"boot_id": processes.boot_id()}])
def test_a_worker_that_ended_is_not_waited_for(installation, values):
    add_namesake(**values)
    with join.only_worker():
        pass
