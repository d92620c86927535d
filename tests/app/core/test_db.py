"""Transactions: writers wait for each other instead of failing, readers never write, bells ring after commits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app.core import db
from app.core.models import Installation
from minimind.errors import MiniMindError

ROOT = Path(__file__).resolve().parents[3]
WRITER = """
import sys
from app.core.db import transaction
from app.core.models import Installation
for _ in range(int(sys.argv[1])):
    with transaction() as session:
        row = session.get(Installation, 1, with_for_update=True)
        row.created_at = row.created_at + 1
"""


def start(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, env={**os.environ},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow  # tests/integration/test_faults_database.py does it through the studio's own processes
def test_eight_processes_that_read_and_then_write_lose_nothing(database):
    with db.transaction() as session:
        session.add(Installation(id=1, uid="x", created_at=0))
    writers = [start(WRITER, "25") for _ in range(8)]
    for writer in writers:
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0, output
    with db.reading() as session:
        assert session.get(Installation, 1).created_at == 200
        if database.startswith("sqlite"):
            assert session.scalar(text("PRAGMA integrity_check")) == "ok"


def test_a_reader_is_refused_when_it_writes_and_never_waits_for_a_writer(database):
    with db.transaction() as session:
        session.add(Installation(id=1, uid="x", created_at=0))
        session.flush()
        began = time.monotonic()
        with db.reading() as other:
            assert other.scalar(select(Installation.id)) is None
        assert time.monotonic() - began < 2
    with pytest.raises(DBAPIError), db.reading() as session:
        session.add(Installation(id=2, uid="y", created_at=0))
        session.flush()
    with db.transaction() as session:  # the connection is a writer's again
        session.add(Installation(id=3, uid="z", created_at=0))


def test_the_clock_is_the_databases(database):
    with db.reading() as session:
        assert abs(db.now(session) - time.time()) < 5


def test_callbacks_run_once_after_the_outermost_commit_and_not_after_a_rollback(database):
    rung = []
    with db.transaction() as session:
        session.after_commit(lambda: rung.append("first"), key="a")
        session.after_commit(lambda: rung.append("second"), key="a")
        with session.begin_nested():
            session.add(Installation(id=1, uid="x", created_at=0))
        assert rung == []
    assert rung == ["second"]
    with pytest.raises(ZeroDivisionError), db.transaction() as session:
        session.after_commit(lambda: rung.append("never"))
        raise ZeroDivisionError
    with db.transaction() as session:
        session.execute(text("SELECT 1"))
    assert rung == ["second"]


def test_only_libraries_with_the_fix_of_the_wal_reset_bug_may_use_wal():
    safe = [(3, 51, 3), (3, 53, 4), (3, 50, 7), (3, 44, 6), (4, 0, 0)]
    unsafe = [(3, 51, 2), (3, 51, 0), (3, 50, 6), (3, 45, 0), (3, 44, 5), (3, 40, 1)]
    assert all(map(db.wal_is_safe, safe))
    assert not any(map(db.wal_is_safe, unsafe))


def test_another_kind_of_database_is_refused_in_a_sentence():
    with pytest.raises(MiniMindError, match="'mysql' is not supported"):
        db.engine_for("mysql://localhost/x")


def test_a_forked_child_opens_connections_of_its_own(database):
    with db.transaction() as session:
        session.add(Installation(id=1, uid="x", created_at=0))
    code = """
import os, sys
from app.core.db import reading, transaction
from app.core.models import Installation
with reading() as session:
    session.get(Installation, 1)
pid = os.fork()
if pid == 0:
    with transaction() as session:
        session.get(Installation, 1).uid = "child"
    os._exit(0)
_, status = os.waitpid(pid, 0)
with reading() as session:
    assert session.get(Installation, 1).uid == "child"
sys.exit(status)
"""
    child = start(code)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0, output
