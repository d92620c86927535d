"""What crashes can leave in a data directory, found and mended: the second half of ``./studio doctor``.

A studio that runs mends nearly all of this by itself; here it is looked at from outside, also while nothing runs.
Nothing that is in use is touched, nothing that somebody could miss is deleted: it goes to ``D/trash``. Each finding
says what it is, where, and what to do about it, or carries what does it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core import migrate
from app.core.db import now, reading
from app.core.models import LEASED_STATES, Dataset, Host, Installation, Job, Run, TokenizerRow
from app.core.settings import Settings, get_settings
from app.core.timing import get_timing
from minimind.errors import MiniMindError
from minimind.retention import leftovers
from minimind.run_dir import RunDir
from worker import device_lock, gpus, processes
from worker.database import read_mark

#: what is younger may be in the making
YOUNG_S = 3600.0
#: states of a run that somebody works on
HELD = (*LEASED_STATES, "recovering")
#: a runner still tidies up for a moment after its verdict
JUST_ENDED_S = 60.0
HALF_MADE = re.compile(r"^\.(?P<id>.+)\.(importing|exporting|training|tmp)$")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. ``level``: ``bad`` keeps something from working, ``note`` does not.

    ``repair`` does what ``advice`` says and returns what was done, as a sentence; None where only its owner can.
    ``in_use``: why it is left alone now.
    """

    level: str
    what: str
    advice: str
    repair: Callable[[], str] | None = None
    in_use: str = ""


@dataclass
class Place:
    """The data directory that is looked at, and who works in it now."""

    settings: Settings
    has_rows: bool = False
    #: a sentence about the studio or worker that lives here; empty where none does
    lives: str = ""
    #: runs that somebody holds, jobs that wait or are done, as the rows say
    held_runs: set[str] = field(default_factory=set)
    open_jobs: list[Job] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir

    def is_young(self, path: Path) -> bool:
        try:
            return time.time() - path.lstat().st_mtime < YOUNG_S
        except OSError:
            return True  # gone already


def look() -> Iterator[tuple[str, Finding]]:
    """``(name of the check, finding)`` of everything that is wrong in the configured data directory."""
    from worker import repair_rows

    place = Place(get_settings())
    if not place.data_dir.is_dir():
        return
    try:
        schema = schema_state(place.settings)
        place.has_rows = schema == "current"
        if place.has_rows and not _is_ours(place):
            place.has_rows = False
            yield "rows", Finding("bad", f"{place.data_dir} belongs to another installation than the database that was "
                                         "asked, so what belongs to what is not looked at",
                                  "Set STUDIO_DATABASE_URL as for the studio and try again.")
        elif place.has_rows:
            _read_rows(place)
        elif schema != "none":
            yield "rows", Finding("note", f"the database was made by {'an older' if schema == 'older' else 'another'} "
                                          "version, so what belongs to what is not looked at",
                                  "Start the studio once: it brings the database up to date.")
    except SQLAlchemyError as error:
        place.has_rows = False
        yield "rows", Finding("bad", f"the database does not answer: {str(error).splitlines()[0]}",
                              "Start it. Without it nobody can say what in the data directory is in use.")
    place.lives = who_lives(place)
    checks = [("locks", locks), ("sockets", sockets)]
    if place.has_rows:
        checks += [("processes", orphan_processes), ("rows", repair_rows.zombies), ("rows", repair_rows.lost_jobs),
                   ("devices", repair_rows.device_leases), ("devices", device_locks),
                   ("files", orphan_directories), ("files", half_made_checkpoints), ("files", half_made_imports),
                   ("files", uploads), ("files", repair_rows.rows_without_files),
                   ("saves", repair_rows.damaged_checkpoints), ("saves", put_aside)]
    for name, check in checks:
        try:
            for finding in check(place):
                yield name, finding
        except MiniMindError as error:
            yield name, Finding("bad", error.message, error.hint or "")


def schema_state(settings: Settings) -> str:
    """``current`` where there is a database of this version to ask; one is not made by looking."""
    if settings.sqlalchemy_url.startswith("sqlite") and not settings.data_dir.joinpath("studio.db").exists():
        return "none"
    return migrate.schema_state()


def _read_rows(place: Place) -> None:
    with reading() as session:
        place.held_runs = set(session.scalars(select(Run.id).where(Run.state.in_(HELD))))
        place.open_jobs = list(session.scalars(select(Job).where(Job.state.in_(("queued", "running")))))


def who_lives(place: Place) -> str:
    """Who works on the data directory now, as a sentence: from the locks that processes hold, and from the host's sign
    of life."""
    for path in (place.data_dir / "studio.lock", *sorted(place.data_dir.glob("worker-*.lock"))):
        if is_held(path):
            kind = "studio" if path.name == "studio.lock" else "worker"
            return f"A {kind} runs on this data directory (process {_pid_in(path) or 'unknown'})."
    if place.has_rows:
        with reading() as session:
            host = session.get(Host, place.settings.host_id)
            if host is not None and host.worker_pid and psutil.pid_exists(host.worker_pid) \
                    and host.last_seen_at + get_timing().host_silent_s > now(session):
                return f"A worker runs on this data directory (process {host.worker_pid})."
    return ""


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_ours(place: Place) -> bool:
    """Whether the rows that were read are those of this directory: one may have moved to another database since."""
    mark = read_mark(place.data_dir)
    with reading() as session:
        uid = session.scalar(select(Installation.uid))
    return mark is None or mark.get("uid") == uid


def _pid_in(path: Path) -> int | None:
    """The process of this machine that a lock file names; None where it names none, or one of another machine."""
    try:
        match = re.fullmatch(r"(?:pid )?(\d+)(?: on (.*))?", path.read_text().strip())
    except (OSError, ValueError):
        return None
    return int(match[1]) if match and match[2] in (None, socket.gethostname()) else None


def to_trash(place: Place, path: Path) -> str:
    """Move ``path`` to ``D/trash``; what was done, as a sentence."""
    trash = place.data_dir / "trash"
    trash.mkdir(mode=0o700, exist_ok=True)
    target = trash / f"{path.parent.name}-{path.name.lstrip('.')}-{time.strftime('%Y%m%d-%H%M%S')}"
    path.rename(target)
    return f"Moved to {target}; delete it once you do not miss it."


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a directory; what a live process removes meanwhile counts nothing."""
    def size(file: str | Path) -> int:
        try:
            return os.lstat(file).st_size
        except FileNotFoundError:
            return 0

    if not path.is_dir():
        return size(path)
    return sum(size(os.path.join(place, name)) for place, _, names in os.walk(path) for name in names)


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


# -- locks and sockets --------------------------------------------------------------------------------------------


def locks(place: Place) -> Iterator[Finding]:
    """A lock ends with its holder, so a file that a killed one has left keeps nobody out; its pid only misleads."""
    for path in (place.data_dir / "studio.lock", *sorted(place.data_dir.glob("worker-*.lock"))):
        pid = _pid_in(path)
        if pid is not None and not is_held(path) and not psutil.pid_exists(pid):
            yield Finding("note", f"{path.name} names the process {pid}, which has ended; nobody holds the lock",
                          "Harmless: the next start takes it.", lambda path=path: _empty(path))


def _empty(path: Path) -> str:
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
    return "Emptied it."


def sockets(place: Place) -> Iterator[Finding]:
    for path in _socket_paths(place):
        if path.is_socket() and not _answers(path):
            yield Finding("note", f"nobody listens at the broker's socket {path}",
                          "Left by a broker that was killed; the next start replaces it.",
                          lambda path=path: _unlink(path), in_use=place.lives)


def _socket_paths(place: Place) -> list[Path]:
    found = {place.data_dir / "broker" / "valkey.sock"}
    config = place.data_dir / "broker" / "valkey.conf"
    if config.is_file():
        told = re.search(r'^unixsocket "(.+)"$', config.read_text(), re.MULTILINE)
        if told:
            found.add(Path(told[1].replace('\\"', '"').replace("\\\\", "\\")))
    return sorted(found)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy, or not ours to look into
    return True


def _unlink(path: Path) -> str:
    path.unlink(missing_ok=True)
    return "Removed it."


# -- processes ----------------------------------------------------------------------------------------------------


def orphan_processes(place: Place) -> Iterator[Finding]:
    """Processes of this data directory that work for an attempt which is over."""
    from app.core.models import Attempt

    by_mark: dict[str, list[int]] = {}
    for pid, mark in processes.marked_in(place.data_dir).items():
        by_mark.setdefault(mark, []).append(pid)
    for mark, pids in sorted(by_mark.items()):
        run_id, _, number = mark.rpartition("/")
        with reading() as session:
            attempt = session.get(Attempt, (run_id, int(number))) if number.isdigit() else None
            at = now(session)
        if attempt is not None and (attempt.state != "closed" or (attempt.ended_at or 0) + JUST_ENDED_S > at):
            continue
        listed = ", ".join(map(str, sorted(pids)))
        yield Finding("bad", f"processes {listed} still work for attempt {number} of the run {run_id}, which is over",
                      f"End them: kill -9 {listed.replace(',', '')}", lambda mark=mark: _kill(mark))


def _kill(mark: str) -> str:
    if not processes.kill_marked(mark):
        raise MiniMindError(f"They could not be ended: {processes.marked(mark)}.", hint="Restart the machine.")
    return "Ended them."


def device_locks(place: Place) -> Iterator[Finding]:
    """GPU locks that are held for a run of ours which is over; what holds them is an orphan (see above)."""
    devices = [gpu["id"] for gpu in gpus.gpus()]
    for device, holder in device_lock.in_use(devices).items() if devices else ():
        with reading() as session:
            run = session.get(Run, holder.run_id) if holder.run_id else None
        if run is not None and run.id not in place.held_runs:
            yield Finding("bad", f"{device} is locked by {holder}, and that run is {run.state}",
                          "The lock ends with the processes that hold it; end them.")


# -- files --------------------------------------------------------------------------------------------------------


def orphan_directories(place: Place) -> Iterator[Finding]:
    """Directories of runs, data sets, tokenizers and exports that no row knows."""
    for home, model in ((place.settings.runs_dir, Run), (place.settings.datasets_dir, Dataset),
                        (place.settings.tokenizers_dir, TokenizerRow), (place.settings.exports_dir, Job)):
        if not home.is_dir():
            continue
        with reading() as session:
            known = set(session.scalars(select(model.id)))
        for path in sorted(home.iterdir()):
            if path.name in known or path.name.startswith(".") or not path.is_dir() or place.is_young(path):
                continue
            yield Finding("note", f"{path} belongs to nothing in the database ({megabytes(size_of(path))})",
                          "Left by something that was deleted, or by another database. --repair moves it to the trash.",
                          lambda path=path: to_trash(place, path))


def half_made_checkpoints(place: Place) -> Iterator[Finding]:
    """What killed trainers were writing or deleting."""
    for run in sorted(place.settings.runs_dir.glob("*")) if place.settings.runs_dir.is_dir() else ():
        for path in leftovers(RunDir(run).checkpoints):
            yield Finding("note", f"{path} is half a checkpoint ({megabytes(size_of(path))})",
                          "Left by a trainer that was killed; the next attempt of the run removes it.",
                          lambda run=run, path=path: _remove_half_a_checkpoint(run.name, path),
                          in_use="Its run is being trained." if run.name in place.held_runs else "")


def _remove_half_a_checkpoint(run_id: str, path: Path) -> str:
    """Asks again: since the rows were read, the run may have been taken up, or what was half may have become whole."""
    with reading() as session:
        is_held = session.scalar(select(Run.id).where(Run.id == run_id, Run.state.in_(HELD)))
    if is_held:
        return "Left alone: its run is being trained by now."
    if path not in leftovers(path.parent):
        return "Nothing to do: it is whole or gone by now."
    return _remove(path)


def half_made_imports(place: Place) -> Iterator[Finding]:
    """What killed jobs were making: imports, vocabularies, exports."""
    working = {str(v) for job in place.open_jobs for v in job.payload.values()}
    settings = place.settings
    for home in (settings.datasets_dir, settings.tokenizers_dir, settings.runs_dir, settings.exports_dir):
        for path in sorted(home.glob(".*")) if home.is_dir() else ():
            half = HALF_MADE.match(path.name)
            if half is None:
                continue
            busy = half["id"] in working or half["id"] in place.held_runs
            what = "export" if half[2] == "exporting" else "import"
            yield Finding("note", f"{path} is half an {what} ({megabytes(size_of(path))})",
                          "Left by a job that was killed.", lambda path=path: _remove(path),
                          in_use="Its job has not ended." if busy else "It is new." if place.is_young(path) else "")


def uploads(place: Place) -> Iterator[Finding]:
    wanted = {job.payload.get(key) for job in place.open_jobs for key in ("upload_path", "aside")}
    home = place.settings.uploads_dir
    for path in sorted(home.iterdir()) if home.is_dir() else ():
        if str(path) not in wanted and not place.is_young(path):
            yield Finding("note", f"{path} was uploaded and is waited for by no job ({megabytes(size_of(path))})",
                          "Left by a web process that was killed; a running one removes it after a day.",
                          lambda path=path: _remove(path))


def put_aside(place: Place) -> Iterator[Finding]:
    """Damaged checkpoints that were kept for their owner."""
    found = sorted(p for kind in ("corrupt", "stale") for p in place.settings.runs_dir.glob(f"*/checkpoints/.{kind}-*"))
    if found:
        yield Finding("note", f"{len(found)} damaged or late checkpoints are kept aside, "
                              f"{megabytes(sum(map(size_of, found)))}: {found[0]}{' ...' if len(found) > 1 else ''}",
                      "Nothing uses them. Look at them if you like, then delete them.")


def _remove(path: Path) -> str:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return "Removed it."
