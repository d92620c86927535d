"""Whether this machine may take part: asked by ``./studio worker`` and ``./studio inference`` before they begin, and
by the worker with each heartbeat.

All machines of an installation share one PostgreSQL, one Redis and one directory at one path, and run one version of
the code; SQLite serves one machine. What ``./studio up`` starts is of its own making and is asked only whether it is
the one worker of this host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.core import migrate
from app.core.db import now, reading
from app.core.models import Checkpoint, Host, Installation
from app.core.settings import Settings, get_settings
from app.core.timing import get_timing
from app.core.version import code_version
from minimind.errors import MiniMindError
from worker import broker, processes
from worker.database import MARK, backend, read_mark

#: a worker that was killed has let go of its lock by then
LOCK_PATIENCE_S = 5.0
#: with less than this free, no run would get to its first checkpoint
LEAST_FREE_BYTES = 100 << 20
#: what a worker writes into
WRITTEN = (".", "runs", "datasets", "tokenizers", "cache", "logs")
#: the commands that join, as a sentence calls them
ROLES = {"worker": "worker", "inference": "model server"}
USE_POSTGRESQL = "Set STUDIO_DATABASE_URL to the studio's PostgreSQL, postgresql://USER:PASSWORD@HOST/NAME."
ONE_DIRECTORY = "Every machine mounts the one directory of the installation at the same path; " \
                "docs/running-elsewhere.md says how."


class JoinError(MiniMindError):
    """This machine cannot take part as it is."""

    code = "JOIN"


def check(role: str) -> None:
    """Raise ``JoinError`` where this machine's ``role`` does not fit the installation."""
    settings = get_settings()
    if started_by_up(settings):
        return
    if backend(settings) == "sqlite":
        _check_sqlite(role, settings)
    installation = _read_installation(role, settings)
    if installation.home_host not in (None, settings.host_id):
        raise JoinError(f"The database of this studio is an SQLite file on the machine {installation.home_host}, and "
                        f"this machine is called {settings.host_id}: SQLite serves one machine.", hint=USE_POSTGRESQL)
    _check_version(installation)
    _check_directory(settings, installation.uid)
    _check_paths(settings)
    _try_to_write(settings)


def started_by_up(settings: Settings | None = None) -> bool:
    """Whether the parent of this process is the ``./studio up`` that holds the data directory."""
    try:
        with open((settings or get_settings()).data_dir / "studio.lock") as lock:
            if lock.read().strip() != str(os.getppid()):
                return False
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False  # it was let go of: the number is that of an earlier start, now used for something else


def problem_now(*, by_up: bool) -> str | None:
    """Why this worker should take nothing new, as a sentence; None where there is no reason.

    Asked with each heartbeat: the web process may have been upgraded, the directory unmounted. ``SQLAlchemyError``
    where the database is away.
    """
    with reading() as session:
        installation = session.get(Installation, 1)
    if installation is None:
        return None
    try:
        if not by_up:
            _check_version(installation, running=True)
        if installation.code_version is not None:  # else no web process has marked the directory yet
            _check_directory(get_settings(), installation.uid)
    except JoinError as error:
        return str(error)
    return _full_disk(get_settings().data_dir)


def _full_disk(place: Path) -> str | None:
    """What would begin now would fail at once, one run after the other."""
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return f"The run directory {place} cannot be used: {error.strerror}."
    if free < LEAST_FREE_BYTES:
        return f"The disk of {place} is full: nothing new begins on this machine until there is space."
    return None


def look_for_broker(role: str) -> None:
    """It only rings: one that is away is said, and no reason not to begin."""
    settings = get_settings()
    try:
        answers = broker.answers(settings.broker_url)
    except ValueError:
        raise JoinError("STUDIO_REDIS_URL is not the address of a Redis.",
                        hint="It looks like redis://:PASSWORD@HOST:6379/0.") from None
    if not answers:
        print(f"studio: the broker at {_place(settings.broker_url)} does not answer. The {ROLES[role]} begins all the "
              f"same and {'looks for work by itself' if role == 'worker' else 'waits for it'}; check STUDIO_REDIS_URL "
              "if it stays away.", file=sys.stderr, flush=True)


# -- the database -------------------------------------------------------------------------------------------------


def _check_sqlite(role: str, settings: Settings) -> None:
    path = Path(make_url(settings.sqlalchemy_url).database or "")
    if not path.is_file():
        raise JoinError(f"There is no database at {path}: SQLite serves one machine, the one on which ./studio up or "
                        "./studio web was started.", hint=USE_POSTGRESQL)
    if settings.redis_url:
        raise JoinError(f"SQLite serves one machine, and a {ROLES[role]} that is given STUDIO_REDIS_URL joins "
                        "from another one.", hint=f"{USE_POSTGRESQL} On one machine, ./studio up starts everything.")


def _read_installation(role: str, settings: Settings) -> Installation:
    place = _place(settings.sqlalchemy_url)
    try:
        state = migrate.schema_state()
        if state in ("none", "older"):
            raise JoinError(f"The database {place} has {'no' if state == 'none' else 'an older'} schema.",
                            hint=f"Start ./studio web of this version first; it prepares the database for the "
                                 f"{ROLES[role]}.")
        if state == "newer":
            raise JoinError(f"The schema of the database {place} is of another version of the studio than this "
                            "machine's code.",
                            hint="Bring this checkout to the version of the web process and try again.")
        with reading() as session:
            installation = session.get(Installation, 1)
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise JoinError(f"The database {place} cannot be used: {said.rstrip('.')}.",
                        hint="Check STUDIO_DATABASE_URL, and that this machine may reach the server.") from None
    if installation is None or installation.code_version is None:
        raise JoinError(f"No web process has opened the database {place} yet.", hint="Start ./studio web first.")
    return installation


def _place(url: str) -> str:
    """Where a server is, without who asks and the password."""
    parsed = make_url(url)
    if parsed.host is None:
        return f"/{(parsed.database or '').lstrip('/')}"
    return parsed.host + (f":{parsed.port}" if parsed.port else "") + (f"/{parsed.database}" if parsed.database else "")


def _check_version(installation: Installation, *, running: bool = False) -> None:
    theirs, ours = installation.code_version, code_version()
    if theirs in (None, ours):
        return
    if running:
        raise JoinError(f"The studio's web process now runs version {theirs} and this worker still {ours}: its runs go "
                        "on, and it takes no new ones.",
                        hint="Bring this machine's checkout to the same version and start the worker again.")
    raise JoinError(f"The studio's web process runs version {theirs}, the code on this machine is {ours}: all machines "
                    "must run the same.", hint="Bring this checkout to the version of the web process and try again.")


# -- the directory ------------------------------------------------------------------------------------------------


def _check_directory(settings: Settings, uid: str) -> None:
    place = settings.data_dir
    try:
        mark = read_mark(place)
    except OSError as error:
        raise JoinError(f"The run directory {place} cannot be read: {error.strerror}.",
                        hint="Its files belong to the user of the web process; run all roles as one user.") from None
    if mark is None:
        raise JoinError(f"{place} is not the run directory of this studio: there is no {MARK} in it.",
                        field="data_dir", hint=ONE_DIRECTORY)
    if mark.get("uid") != uid:
        raise JoinError(f"{place} is the run directory of another studio than the one of this database.",
                        field="data_dir", hint=ONE_DIRECTORY)
    if mark.get("data_dir") != str(place):
        raise JoinError(f"The run directory is mounted at {place} here and at {mark.get('data_dir')} for the web "
                        "process; paths stand in the database.", field="data_dir", hint=ONE_DIRECTORY)


def _check_paths(settings: Settings) -> None:
    """A checkpoint that the database speaks of must be where it says, also here."""
    with reading() as session:
        path = session.scalar(select(Checkpoint.path).where(Checkpoint.state == "ready")
                              .order_by(Checkpoint.created_at.desc()).limit(1))
    if path is None:
        return
    if not Path(path).is_relative_to(settings.data_dir):
        raise JoinError(f"The newest checkpoint lies at {path}, which is outside of the run directory "
                        f"{settings.data_dir}.", field="data_dir", hint=ONE_DIRECTORY)
    try:
        os.stat(path)
    except OSError as error:
        raise JoinError(f"The newest checkpoint {path} cannot be found on this machine: {error.strerror}.",
                        field="data_dir", hint=ONE_DIRECTORY) from None


def _try_to_write(settings: Settings) -> None:
    for name in WRITTEN:
        probe = settings.data_dir / name / f".probe-{secrets.token_hex(4)}"
        try:
            probe.parent.mkdir(mode=0o700, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise JoinError(f"{probe.parent} cannot be written: {error.strerror}.", field="data_dir",
                            hint="Mount the run directory writable, and run all roles as one user.") from None


# -- one worker a host --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_worker() -> Iterator[None]:
    """This process is the one worker of its host while the block lasts; raises ``JoinError`` where another is."""
    settings = get_settings()
    lock = _lock(settings.data_dir, settings.host_id)
    try:
        with contextlib.suppress(SQLAlchemyError):  # away: the worker waits for it, and its claims with it
            _refuse_namesake(settings.host_id)
        yield
    finally:
        lock.close()


def _lock(data_dir: Path, host_id: str) -> Any:
    """The open lock file; the lock ends with the process. Where the file system knows no locks there is none."""
    file = open(data_dir / f"worker-{re.sub(r'[^A-Za-z0-9_.-]', '-', host_id)}.lock", "a+")
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip()
                file.close()
                raise JoinError(f"Another worker of the host {host_id}{f' ({holder})' if holder else ''} already uses "
                                f"{data_dir}: one host has one worker.",
                                hint="Stop it first. If it is another machine's, give each a name of its own with "
                                     "STUDIO_HOST_ID.") from None
            time.sleep(0.1)
        except OSError:
            return file
    file.seek(0)
    file.truncate()
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _refuse_namesake(host_id: str) -> None:
    """Two machines with one name would settle each other's runs. One that was only started again is told from
    another one by its heartbeat: that of the last boot stands still."""
    seen = None
    while True:
        with reading() as session:
            host, at = session.get(Host, host_id), now(session)
        if host is None or host.worker_pid is None or host.boot_id == processes.boot_id() \
                or at - host.last_seen_at > get_timing().host_silent_s:
            return
        if seen is not None and host.last_seen_at > seen:
            raise JoinError(f"Another machine ({host.name}) takes part under the name {host_id} just now.",
                            hint="Give this one a name of its own with STUDIO_HOST_ID.")
        seen = host.last_seen_at
        time.sleep(min(1.0, get_timing().heartbeat_every_s))
