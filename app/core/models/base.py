"""What all tables share: ids, the database's clock, the words for states."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.functions import FunctionElement

RUN_STATES = ("queued", "starting", "running", "pausing", "paused", "recovering", "cancelling",
              "completed", "failed", "cancelled")
TERMINAL_STATES = ("completed", "failed", "cancelled")
#: states in which a runner holds the run
LEASED_STATES = ("starting", "running", "pausing", "cancelling")
DESIRED = ("run", "pause", "cancel")
JOB_STATES = ("queued", "running", "completed", "failed", "cancelled")
PIPELINE_STATES = ("running", "paused", "completed", "failed", "cancelled")
ROLES = ("admin", "member", "viewer")
#: the user that the start token and tokens made before any user exist belong to
LOCAL_ADMIN_ID = "local"

_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # without look-alikes


def new_id() -> str:
    """A server-made id: 12 characters, 60 bits."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))


class unix_now(FunctionElement):
    """The database's clock as unix seconds with fractions."""

    type = Float()
    inherit_cache = True


@compiles(unix_now, "sqlite")
def _unix_now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(unix_now, "postgresql")
def _unix_now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def one_of(column: str, values: tuple[str, ...]) -> str:
    """The text of a constraint."""
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


class Base(DeclarativeBase):
    pass
