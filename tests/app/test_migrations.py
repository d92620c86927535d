"""The migrated schema is the one of the models, and any number of processes may migrate at once."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from app.core import db
from app.core.migrate import alembic_config, is_current, schema_state, upgrade
from app.core.models import Base, Installation, User
from tests import database_rig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=database_rig.backends())
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'studio.db'}"
        yield url
        db.engine_for(url).dispose()
        return
    server, schema = os.environ["STUDIO_TEST_DATABASE_URL"], f"test_{secrets.token_hex(6)}"
    with db.engine_for(server).begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    url = f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"
    yield url
    db.engine_for(url).dispose()
    with db.engine_for(server).begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))


def test_the_migrated_schema_is_the_one_of_the_models(empty: str) -> None:
    upgrade(empty)
    assert is_current(empty)
    with db.engine_for(empty).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        migrated = everything_in(connection)
    made = db.engine_for(empty)
    with made.begin() as connection:
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        assert everything_in(connection) == migrated


def everything_in(connection: object) -> dict:
    """Columns, checks, indexes and keys of every table: more than Alembic compares."""
    seen = inspect(connection)
    found = {}
    for table in sorted(Base.metadata.tables):
        found[table] = {
            "columns": sorted((c["name"], str(c["type"]), c["nullable"]) for c in seen.get_columns(table)),
            "checks": sorted((c["name"], "".join(c["sqltext"].split())) for c in seen.get_check_constraints(table)),
            "indexes": sorted((i["name"], i["column_names"], bool(i["unique"])) for i in seen.get_indexes(table)),
            "keys": sorted((k["constrained_columns"], k["referred_table"], str(k["options"]))
                           for k in seen.get_foreign_keys(table)),
            "unique": sorted(u["column_names"] for u in seen.get_unique_constraints(table)),
            "primary": seen.get_pk_constraint(table)["constrained_columns"],
        }
    return found


def test_an_installation_begins_with_its_name_and_the_local_admin(empty: str) -> None:
    upgrade(empty)
    upgrade(empty)
    with db.reading(db.reader_factory(empty)) as session:
        (installation,) = session.query(Installation).all()
        (admin,) = session.query(User).all()
    assert len(installation.uid) == 32 and installation.created_at > 1.7e9
    assert (admin.id, admin.role, admin.password_hash) == ("local", "admin", None)


def test_processes_that_start_at_once_take_turns(empty: str, tmp_path: Path) -> None:
    code = f"from app.core.migrate import upgrade; upgrade({empty!r})"
    environment = {**os.environ, "STUDIO_DATA_DIR": str(tmp_path)}
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
               for _ in range(3)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert is_current(empty)
    with db.reading(db.reader_factory(empty)) as session:
        assert session.query(Installation).count() == 1


@pytest.mark.parametrize("back_to, table, column", [
    ("0003", "run", "teacher_checkpoint_id"), ("0004", "conversation", "adapter_checkpoint_id"),
    ("0005", "conversation", "head"), ("0005", "conversation", "search_text"), ("0005", "conversation", "mode")])
def test_the_newest_revisions_can_be_taken_back(empty: str, back_to: str, table: str, column: str) -> None:
    upgrade(empty)
    command.downgrade(alembic_config(empty), back_to)
    assert schema_state(empty) == "older"
    with db.engine_for(empty).connect() as connection:
        assert column not in {c["name"] for c in inspect(connection).get_columns(table)}
    upgrade(empty)
    assert schema_state(empty) == "current"
