"""Brings a database to the newest schema. Safe when several processes start at once: they take turns."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.core.db import engine_for
from app.core.settings import get_settings

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
#: databases that were seen at the newest schema; a program never meets a newer one in its life
_seen_current: set[str] = set()


def alembic_config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config


def upgrade(database_url: str | None = None) -> None:
    """Apply every revision that is missing (default: to the configured database)."""
    command.upgrade(alembic_config(database_url or get_settings().sqlalchemy_url), "head")


def schema_state(database_url: str | None = None) -> str:
    """How the schema stands to this program: ``current``, ``older``, ``newer`` (made by another version), ``none``."""
    url = database_url or get_settings().sqlalchemy_url
    scripts = ScriptDirectory.from_config(alembic_config(url))
    with engine_for(url).execution_options(read_only=True).connect() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
    if present is None:
        return "none"
    if present == scripts.get_current_head():
        return "current"
    return "older" if present in {script.revision for script in scripts.walk_revisions()} else "newer"


def is_current(database_url: str | None = None) -> bool:
    """Whether the schema is the one that this program was written for."""
    url = database_url or get_settings().sqlalchemy_url
    if url in _seen_current:
        return True
    wanted = ScriptDirectory.from_config(alembic_config(url)).get_current_head()
    with engine_for(url).connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() != wanted:
            return False
    _seen_current.add(url)
    return True
