"""A database that does not answer now, whatever the reason: who holds a run waits for it and trains on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

AWAY = ("OperationalError", "InterfaceError", "InternalError")


class Away(Exception):
    """The database does not answer now."""


@contextlib.contextmanager
def database() -> Iterator[None]:
    """Turns every kind of "the database is away, locked or full" into ``Away``. (An ``InternalError`` is what a server
    says that was demoted and only reads.)"""
    try:
        yield
    except DBAPIError as error:
        if type(error).__name__ in AWAY or error.connection_invalidated:
            raise Away(str(error.orig)) from error
        raise
    except SQLAlchemyError as error:
        if type(error).__name__ == "TimeoutError":
            raise Away(str(error)) from error
        raise
