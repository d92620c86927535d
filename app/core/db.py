"""Connections, sessions and transactions.

One session kind (synchronous). A *writing* transaction takes the write lock at once (``BEGIN IMMEDIATE``), so
that reading first and writing later can never meet "database is locked"; a *reading* one (``reading``) never
takes it and is refused when it tries to write. Measured elsewhere with 6 writers: plain ``BEGIN`` lost 533 of
1,200 transactions, ``BEGIN IMMEDIATE`` none.

SQLite before 3.51.3 (3.50.7, 3.44.6) can corrupt a database in WAL mode (sqlite.org/wal.html#walresetbug);
``pysqlite3`` carries a newer library than most Pythons, and where even that is too old the journal is kept
in TRUNCATE mode instead.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy.orm
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import sessionmaker

from app.core.models import unix_now
from app.core.settings import get_settings
from minimind.errors import MiniMindError

try:
    from pysqlite3 import dbapi2 as sqlite_dbapi
except ImportError:  # no wheel for this platform
    from sqlite3 import dbapi2 as sqlite_dbapi

#: how long a writer waits for the others
BUSY_TIMEOUT_S = 30.0
_engines: dict[str, Engine] = {}
_left_to_the_parent: list[dict[str, Engine]] = []
#: a server that lost its power, or a cable that was pulled, says nothing at all: noticed in half a minute, not in hours
_NOTICE_SILENCE = {"keepalives": 1, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3,
                   "tcp_user_timeout": 30_000}
_READ_ONLY = {"read_only": True, "postgresql_readonly": True}
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "ceph", "lustre", "glusterfs"}


class Session(sqlalchemy.orm.Session):
    """A session that can be told what to do once its transaction is committed (ring a bell, wake a page)."""

    def after_commit(self, callback: Callable[[], None], *, key: Any = None) -> None:
        """Call ``callback`` after the outermost commit, not at all after a rollback.

        Of several callbacks with one ``key`` only the last is kept. A callback must not raise and not use
        this session.
        """
        self.info.setdefault("after_commit", {})[key if key is not None else object()] = callback


@event.listens_for(Session, "after_commit")
def _run_callbacks(session: Session) -> None:
    if session.in_nested_transaction():
        return  # a savepoint was released; nothing is durable yet
    for callback in session.info.pop("after_commit", {}).values():
        callback()


@event.listens_for(Session, "after_rollback")
def _drop_callbacks(session: Session) -> None:
    session.info.pop("after_commit", None)


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite library carries the fix of the WAL-reset bug."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def journal_mode() -> str:
    """``wal`` where the SQLite library is known to be safe with it, else ``truncate``."""
    return "wal" if wal_is_safe(sqlite_dbapi.sqlite_version_info) else "truncate"


def engine_for(url: str) -> Engine:
    """The engine of ``url`` (made once per process and URL): ``sqlite:///path`` or ``postgresql://...``."""
    if url not in _engines:
        _engines[url] = _make_engine(url)
    return _engines[url]


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed)
    if parsed.get_backend_name() == "postgresql":
        return _postgresql_engine(parsed)
    raise MiniMindError(f"The database kind {parsed.get_backend_name()!r} is not supported.", field="database_url",
                        hint="Set STUDIO_DATABASE_URL to sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME.")


def _postgresql_engine(url: sqlalchemy.engine.URL) -> Engine:
    engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=10,
                           max_overflow=20,
                           connect_args={"connect_timeout": 5, "application_name": "studio", **_NOTICE_SILENCE})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # a process that hangs in the middle of a transaction must not stop everybody else for ever
        connection.execute(f"SET lock_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        connection.execute(f"SET idle_in_transaction_session_timeout = {int(2 * BUSY_TIMEOUT_S * 1000)}")
        connection.commit()

    return engine


def _sqlite_engine(url: sqlalchemy.engine.URL) -> Engine:
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_network_disk(path)
    engine = create_engine(url.set(drivername="sqlite+pysqlite"), module=sqlite_dbapi, pool_size=10, max_overflow=20,
                           connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN is off; ours follows
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        # its own knows ASCII alone: "É" would not be found as "é"
        connection.create_function("lower", 1, lambda text: text.lower() if isinstance(text, str) else text,
                                   deterministic=True)
        _set_journal_mode(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.engine.Connection) -> None:
        read_only = bool(connection.get_execution_options().get("read_only"))
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _set_journal_mode(connection: Any) -> None:
    """Several processes may open a new database at once; only one can change its mode at a time."""
    wanted = journal_mode()
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] not in (wanted, "memory"):
        try:
            connection.execute(f"PRAGMA journal_mode = {wanted}")
        except sqlite_dbapi.OperationalError:  # locked: the busy handler is not asked for this one
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _refuse_network_disk(path: Path) -> None:
    """WAL and file locks are not safe over a network; better to say so than to lose a database."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return  # not Linux: nothing to read it from
    resolved = str(path.parent.resolve()) + "/"
    kinds = {m[1]: m[2] for m in (line.split() for line in mounts)}
    best = max((place for place in kinds if resolved.startswith(place.rstrip("/") + "/")), key=len, default=None)
    if best and kinds[best] in _NETWORK_FILE_SYSTEMS:
        raise MiniMindError(f"{path} lies on a network file system ({kinds[best]}), where SQLite is not safe.",
                            field="data_dir", hint="Use --data_dir on a local disk, or set STUDIO_DATABASE_URL "
                                                   "to a PostgreSQL server.")


def session_factory(url: str | None = None) -> sessionmaker[Session]:
    """Makes writing sessions on ``url`` (default: the configured database)."""
    return _factories(url or get_settings().sqlalchemy_url)[0]


def reader_factory(url: str | None = None) -> sessionmaker[Session]:
    """Makes sessions that never take the write lock and are refused when they write."""
    return _factories(url or get_settings().sqlalchemy_url)[1]


@functools.cache
def _factories(url: str) -> tuple[sessionmaker[Session], sessionmaker[Session]]:
    engine = engine_for(url)
    return (sessionmaker(engine, class_=Session, expire_on_commit=False),
            sessionmaker(engine.execution_options(**_READ_ONLY), class_=Session, expire_on_commit=False))


@contextlib.contextmanager
def transaction(factory: Callable[[], Session] | None = None) -> Iterator[Session]:
    """One writing transaction: commits at the end of the block, rolls back if it raises."""
    with (factory or session_factory())() as session, session.begin():
        yield session


@contextlib.contextmanager
def reading(factory: Callable[[], Session] | None = None) -> Iterator[Session]:
    """One consistent look at the database."""
    with (factory or reader_factory())() as session, session.begin():
        yield session


def now(session: sqlalchemy.orm.Session) -> float:
    """The database's clock, unix seconds."""
    return float(session.scalar(select(unix_now())))


def _forget_connections() -> None:
    """After a fork the connections belong to the parent: the child opens its own.

    They are kept referenced, not closed: closing them here would talk on the parent's sockets and could drop
    its file locks.
    """
    _left_to_the_parent.append(dict(_engines))
    _engines.clear()
    _factories.cache_clear()


os.register_at_fork(after_in_child=_forget_connections)
