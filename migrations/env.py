"""Alembic's entry: applies the revisions in ``versions/`` in one transaction, one process at a time.

SQLite: the transaction begins with ``BEGIN IMMEDIATE``, so a second process waits for the first.
PostgreSQL: an advisory lock that ends with the transaction does the same. Either way a revision is applied
whole or not at all.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from app.core.db import engine_for
from app.core.models import Base
from app.core.settings import get_settings

#: any number, as long as nothing else in the database uses it
ADVISORY_LOCK = 7_302_118_844


def run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True,
                      render_as_batch=connection.dialect.name == "sqlite")
    with context.begin_transaction():
        context.run_migrations()


url = context.config.get_main_option("sqlalchemy.url") or get_settings().sqlalchemy_url
with engine_for(url).begin() as connection:
    run(connection)
