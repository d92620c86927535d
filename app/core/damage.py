"""Is a checkpoint still what was saved? Asked wherever one is about to be read.

One that is not is *condemned*: its row says ``corrupt`` and why, its run hears of it, and its directory gets another
name, under which nothing finds it and its owner can look at it.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.db import Session, reading, transaction
from app.core.logging import get_logger
from app.core.models import Checkpoint, Run
from app.core.settings import get_settings
from app.core.states import append_event
from minimind.errors import CheckpointError
from minimind.manifest import MANIFEST_FILE, Manifest, damage_of
from minimind.run_dir import put_aside

log = get_logger(__name__)

CODE = "CHECKPOINT_CORRUPT"
_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_KNOWN = 1000
#: directories that were found whole by this process, with the sizes and times that their files had then
_known: dict[str, tuple] = {}


def problem_of(directory: Path) -> str | None:
    """What is wrong with a checkpoint's directory, as a sentence; None for a whole one. Its bytes are read once: a
    file whose size and time have not moved since is believed."""
    before = _stamps(directory)
    if before is not None and _known.get(str(directory)) == before:
        return None
    problem = damage_of(directory)
    if problem is None and before is not None:
        while len(_known) >= _MAX_KNOWN:
            _known.pop(next(iter(_known)))
        _known[str(directory)] = before
    return problem


def _stamps(directory: Path) -> tuple | None:
    try:
        names = [MANIFEST_FILE, *sorted(Manifest.read(directory).files)]
        seen = [(name, (directory / name).stat()) for name in names]
    except (CheckpointError, OSError):
        return None
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in seen)


def look(checkpoint_id: str | None) -> str | None:
    """Compare a checkpoint with its hashes and condemn it where it differs; the problem, as a sentence.

    Reads files and writes rows: not inside a transaction. None also for one that is not there at all.
    """
    if checkpoint_id is None or not _ID.fullmatch(checkpoint_id):
        return None  # never sent to the database
    with reading() as session:
        row = session.get(Checkpoint, checkpoint_id)
    if row is None or row.state == "deleted":
        return None
    if row.state == "corrupt":
        return row.problem
    directory = Path(row.path)
    if not directory.is_dir():  # deleted by hand, or on a disk that is away: nothing can be said of its content
        return None
    problem = problem_of(directory)
    if problem is None:
        return None
    with transaction() as session:
        found = condemn(session, row.run_id, row.step, row.attempt, problem)
    return problem if found else None


def look_at_path(directory: Path) -> None:
    """As ``look``, of a checkpoint that could not be loaded. For a process that may not know the database."""
    url = get_settings().sqlalchemy_url
    if url.startswith("sqlite") and not get_settings().data_dir.joinpath("studio.db").exists():
        return
    try:
        with reading() as session:
            found = session.scalar(select(Checkpoint.id).where(Checkpoint.path == str(directory)))
        if found is not None:
            look(found)
    except SQLAlchemyError as error:
        log.warning("database_away", error=str(error).splitlines()[0])


def condemn(session: Session, run_id: str, step: int, attempt: int, problem: str) -> Checkpoint | None:
    """Mark the checkpoint, tell its run and rename its directory; the row, or None where it is not ``ready``."""
    if session.get(Run, run_id, with_for_update=True, populate_existing=True) is None:
        return None
    row = session.scalar(select(Checkpoint).where(
        Checkpoint.run_id == run_id, Checkpoint.step == step, Checkpoint.attempt == attempt)
        .execution_options(populate_existing=True))
    if row is None or row.state != "ready":
        return None
    log.error("checkpoint_corrupt", run_id=run_id, path=row.path, problem=problem)
    row.state, row.problem = "corrupt", problem
    session.flush()
    try:
        row.path = str(put_aside(Path(row.path), "corrupt") or row.path)
    except OSError as error:  # its row keeps everybody away; the next attempt of the run renames it
        log.error("checkpoint_not_put_aside", path=row.path, error=str(error))
    append_event(session, f"run:{run_id}", "warning", attempt=attempt, step=step, tokens=row.tokens, data={
        "code": CODE, "checkpoint_id": row.id, "path": row.path,
        "message": f"The checkpoint of step {step:,} is damaged and is not used any more: {problem} Its files are kept "
                   f"as {Path(row.path).name}."})
    session.flush()
    return row
