"""The job ``checkpoint_export``: a checkpoint for other programs, in ``D/exports/{id}/``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from app.core import damage
from app.core.db import reading
from app.core.job_files import places, remove_half_made
from app.core.models import Checkpoint, Dataset, Run, TokenizerRow
from minimind.errors import CheckpointError
from minimind.run_dir import fsync_dir
from worker.jobs import Lost, Work

if TYPE_CHECKING:
    from minimind.formats.export import Made
    from minimind.formats.origins import Named


def export(work: Work) -> None:
    """Write it aside, then rename it into place."""
    asked = work.payload
    checkpoint, base = _place(asked["checkpoint_id"]), None
    if asked["base_checkpoint_id"] is not None:
        base = _place(asked["base_checkpoint_id"])
    aside, home = places(work.kind, asked)
    remove_half_made(work.kind, asked)
    aside.mkdir(parents=True)
    work.say(0, 1, "files", "Reading the checkpoint", force=True)
    try:
        made = _written(work, aside, checkpoint, base)
        work.say(1, 1, "files", "Putting it away", force=True)
        size = _settle(made.path)
        aside.rename(home)
        fsync_dir(home.parent)
        result = {"path": str(home / made.path.name), "bytes": size, "checkpoint_id": asked["checkpoint_id"],
                  "format": asked["format"], "commands": made.commands, "modelfile": made.modelfile}
        work.end("completed", finish=lambda session: result)
    except Lost:
        raise  # these places are somebody else's now
    except CheckpointError:
        remove_half_made(work.kind, asked)
        for id in (asked["checkpoint_id"], asked["base_checkpoint_id"]):
            damage.look(id)  # a damaged one is offered to nobody any more
        raise
    except BaseException:
        remove_half_made(work.kind, asked)
        raise


def _written(work: Work, aside: Path, checkpoint: Path, base: Path | None) -> Made:
    # torch is imported here: a job that fails early does not wait for it
    from minimind.formats.export import Wanted, write_export
    from minimind.formats.origins import story_of

    asked = work.payload
    wanted = Wanted(asked["format"], asked.get("quantization") or "f16", asked.get("dtype") or "float32", base,
                    base_name=asked["base_name"], story=story_of(checkpoint, _named))
    return write_export(aside, asked["name"], checkpoint, wanted,
                        lambda done, total: work.say(done, total, "bytes", "Writing the weights"))


def _named(directory: Path) -> Named:
    """What the studio calls a run and its data; of a directory that is none of its runs, nothing."""
    from minimind.formats.origins import DataSource, Named

    with reading() as session:
        run = session.get(Run, directory.name)
        if run is None:
            return Named("another run")
        data = session.get(Dataset, run.dataset_id) if run.dataset_id else None
        tokenizer_id = run.tokenizer_id or run.config.get("tokenizer")
        tokenizer = session.get(TokenizerRow, tokenizer_id) if tokenizer_id else None
        license = data.source.get("license") if data is not None else None
        return Named(run.name,
                     (DataSource(data.name, data.rows, data.bytes, license if isinstance(license, str) else None),)
                     if data is not None else (), tokenizer.name if tokenizer is not None else None)


def _place(checkpoint_id: str) -> Path:
    with reading() as session:
        row = session.get(Checkpoint, checkpoint_id)
        if row is None or row.state != "ready":
            raise CheckpointError(f"The checkpoint {checkpoint_id} is not there any more.", field="checkpoint_id",
                                  hint="Choose another one.")
        return Path(row.path)


def _settle(made: Path) -> int:
    """Everything on the disk; its size in bytes."""
    files = [made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    for directory in {path.parent for path in files} | {made.parent}:
        fsync_dir(directory)
    return sum(path.stat().st_size for path in files)
