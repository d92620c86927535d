"""A database of its own for a test: SQLite in a temporary directory, or a schema of STUDIO_TEST_DATABASE_URL.

Not migrated but created from the models; the migrations have a test of their own.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError

from app.core import db, guards
from app.core.models import Base, Host, Run, new_id
from app.core.settings import get_settings
from app.core.states import enqueue_run

HOST = "here"


def backends() -> list:
    """The backend that the environment names: what is not marked runs on SQLite with the unit tests, and all of it
    on PostgreSQL with the integration tests."""
    if os.environ.get("STUDIO_TEST_DATABASE_URL"):
        return [pytest.param("postgresql", marks=pytest.mark.integration)]
    return ["sqlite"]


def make_database(backend: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Point this process's settings at a new database; yields its URL."""
    monkeypatch.setenv("STUDIO_DATA_DIR", str(directory))
    monkeypatch.setenv("STUDIO_HOST_ID", HOST)
    # nobody listens there: bells are lost, as they may be
    monkeypatch.setenv("STUDIO_REDIS_URL", f"unix://{directory}/no-broker.sock")
    if backend == "postgresql":
        server = os.environ["STUDIO_TEST_DATABASE_URL"]
        monkeypatch.setenv("STUDIO_DATABASE_URL", f"{server}{'&' if '?' in server else '?'}"
                                                  f"options=-csearch_path%3D{_own_schema(server)}")
    get_settings.cache_clear()
    url = get_settings().sqlalchemy_url
    file = directory / "studio.db"
    if backend == "sqlite" and not file.exists():
        shutil.copyfile(_empty_sqlite(), file)
    else:
        _make_tables(url)
    try:
        yield url
    finally:
        db.engine_for(url).dispose()
        monkeypatch.undo()
        get_settings.cache_clear()


def _make_tables(url: str) -> None:
    with db.engine_for(url).begin() as connection:
        if inspect(connection).has_table("run"):
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
        else:
            Base.metadata.create_all(connection)
        guards.install(connection)


@functools.cache
def _empty_sqlite() -> Path:
    """A database file with all tables; to copy it takes 30 ms less than to make it."""
    directory = Path(tempfile.mkdtemp(prefix="studio-test-empty-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    url = f"sqlite:///{directory / 'studio.db'}"
    _make_tables(url)
    db.engine_for(url).dispose()  # the write-ahead log is in the file now
    assert [path.name for path in directory.iterdir()] == ["studio.db"]
    return directory / "studio.db"


@functools.cache
def _own_schema(server: str) -> str:
    """A schema of this test run: making its tables for each of a thousand tests took longer than the tests."""
    schema = f"test_{secrets.token_hex(6)}"
    with db.engine_for(server).begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))

    def drop() -> None:
        try:
            with db.engine_for(server).begin() as connection:
                connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        except OperationalError:  # a test that cuts its database off has one of its own, which has gone with it
            return
        finally:
            db.engine_for(server).dispose()

    atexit.register(drop)
    return schema


def add_host(id: str = HOST, *, cpu_slots: int = 2, devices: list | None = None,
             boot_id: str = "boot") -> None:
    with db.transaction() as session:
        session.add(Host(id=id, name=id, boot_id=boot_id, cpu_slots=cpu_slots, devices=devices or [], versions={},
                         draining=False, last_seen_at=db.now(session)))


def add_run(**values) -> str:
    """A queued run; its id."""
    with db.transaction() as session:
        run = Run(**{"id": new_id(), "name": "run", "user_id": "local", "stage": "pretrain", "config": {},
                     "devices": "auto", "notes": "", "tags": [], "attempt": 0, "fruitless_attempts": 0, "priority": 0,
                     "progress": {}, "next_seq": 1, "save_on_stop": False, "allow_changes": False, "nodes": 1}
                  | values)
        return enqueue_run(session, run).id


def get_run(run_id: str) -> Run:
    with db.reading() as session:
        return session.get(Run, run_id)
