"""Is what a run stands on still there, and still the same? Asked before a device is taken.

A run can wait for days. Meanwhile its data set, its base checkpoint or its tokenizer can be deleted or changed by
somebody at the disk. That is said where the run would start or is resumed, in a sentence, instead of after a machine
has read its data for an hour.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlalchemy import select

from app.core.db import Session, reading, transaction
from app.core.models import Checkpoint, Dataset, Run, TokenizerRow
from minimind.manifest import MANIFEST_FILE, MANIFEST_VERSION
from minimind.run_dir import read_json

_BLOCK_BYTES = 4 << 20
#: in front of the stamp of a file that was hashed and is another one
CHANGED = "changed "


def stamp_of(path: Path) -> str:
    """``bytes:mtime_ns``: a file that still has the stamp of its hash need not be hashed again. Raises ``OSError``."""
    seen = path.stat()
    return f"{seen.st_size}:{seen.st_mtime_ns}"


def is_unsure(session: Session, run: Run) -> str | None:
    """The id of the data set whose file must be hashed before anything can be said of ``run``; None for none."""
    dataset = session.get(Dataset, run.dataset_id) if run.dataset_id and not run.allow_changes else None
    if dataset is None or dataset.sha256 is None or not dataset.path:
        return None
    try:
        return dataset.id if stamp_of(Path(dataset.path)) != (dataset.stamp or "").removeprefix(CHANGED) else None
    except OSError:
        return None  # it is gone: `problem` says so


def look_again(dataset_id: str) -> None:
    """Hash the file of a data set. One that is what it was gets its new stamp; of one that is not, the row says so,
    and ``problem`` refuses it. Takes as long as reading the file, and holds no transaction meanwhile."""
    with reading() as session:
        dataset = session.get(Dataset, dataset_id)
    if dataset is None or not dataset.path:
        return
    path = Path(dataset.path)
    try:
        stamp, digest = stamp_of(path), hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError:
        return  # gone, or not readable now: `problem` or the trainer says so
    with transaction() as session:
        row = session.get(Dataset, dataset_id, with_for_update=True)
        if row is not None and row.path == dataset.path:
            row.stamp = stamp if digest.hexdigest() == row.sha256 else CHANGED + stamp


def problem(session: Session, run: Run) -> dict | None:
    """``{class, message, hint, field}`` of the first thing that keeps ``run`` from starting, or None. Quick."""
    return (_dataset(session, run)
            or _base(session, run)
            or _checkpoint(session, "teacher_checkpoint_id", "teacher", run.teacher_checkpoint_id)
            or _tokenizer(session, run))


def _dataset(session: Session, run: Run) -> dict | None:
    if run.dataset_id is None:
        return None
    dataset = session.get(Dataset, run.dataset_id)
    name = dataset.name if dataset is not None else run.dataset_id
    if dataset is None or dataset.state != "ready" or not dataset.path or not Path(dataset.path).is_file():
        return _said("DATA", "dataset_id", f"The dataset {name!r} of this run is not there any more.",
                     "Import it again and start a new run with it.")
    if not run.allow_changes and (dataset.stamp or "").startswith(CHANGED):
        try:
            if stamp_of(Path(dataset.path)) == dataset.stamp.removeprefix(CHANGED):
                return _said("DATA", "dataset_id", f"The file of the dataset {name!r} was changed after it was "
                                                   f"imported: {dataset.path}.",
                             "Import it again and start a new run with it, or resume with allow_changes.")
        except OSError:
            return None  # it went between two looks; the next one says so
    return None


def _base(session: Session, run: Run) -> dict | None:
    """A run that goes on from a checkpoint of its own reads its base no more: the weights are in it, a lora run keeps
    them beside it, and a dpo run keeps what the base thought."""
    wrong = _checkpoint(session, "base_checkpoint_id", "base checkpoint", run.base_checkpoint_id)
    return None if wrong is not None and _has_saved(session, run) else wrong


def _has_saved(session: Session, run: Run) -> bool:
    own = select(Checkpoint.path).where(Checkpoint.run_id == run.id, Checkpoint.state == "ready")
    return any(Path(path, MANIFEST_FILE).is_file() for path in session.scalars(own))


def _checkpoint(session: Session, field: str, what: str, id: str | None) -> dict | None:
    """``what`` the checkpoint is to the run: its base, or its teacher."""
    if id is None:
        return None
    row = session.get(Checkpoint, id)
    hint = "Choose another one and start a new run with it."
    if row is not None and row.state == "corrupt":
        return _said("CHECKPOINT", field, f"The {what} of this run is damaged: "
                                          f"{row.problem or 'its files are not what they were'}", hint)
    if row is None or row.state != "ready" or not Path(row.path, MANIFEST_FILE).is_file():
        return _said("CHECKPOINT", field, f"The {what} {id!r} of this run is not there any more.", hint)
    manifest = read_json(Path(row.path, MANIFEST_FILE))
    written = manifest.get("version") if isinstance(manifest, dict) else None
    if written != MANIFEST_VERSION:
        return _said("CHECKPOINT", field, f"The {what} of this run was written by another version of the program "
                                          f"(manifest version {written!r}; this one reads {MANIFEST_VERSION}).",
                     "Use the version that wrote it.")
    return None


def _tokenizer(session: Session, run: Run) -> dict | None:
    id = run.tokenizer_id or run.config.get("tokenizer")
    if id is None:
        return None
    row = session.get(TokenizerRow, id)
    if row is None or row.state != "ready" or not row.path or not Path(row.path).is_dir():
        return _said("CONFIG", "config.tokenizer", f"The tokenizer {(row.name if row else id)!r} of this run is not "
                                                   "there any more.", "GET /api/v1/tokenizers lists those that are.")
    return None


def _said(kind: str, field: str, message: str, hint: str) -> dict:
    return {"class": kind, "message": message, "hint": hint, "field": field}
