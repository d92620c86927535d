"""The job ``checkpoint_export``: a checkpoint for other programs, in ``D/exports/{id}/``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.core import damage
from app.core.db import reading
from app.core.job_files import places, remove_half_made
from app.core.models import Checkpoint
from minimind.errors import CheckpointError
from minimind.run_dir import fsync_dir
from worker.jobs import Lost, Work


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
        made = WRITERS[asked["format"]](aside / asked["name"], checkpoint, base, asked["base_name"])
        work.say(0, 1, "files", "Putting it away", force=True)
        size = _settle(made)
        aside.rename(home)
        fsync_dir(home.parent)
        result = {"path": str(home / made.name), "bytes": size, "checkpoint_id": asked["checkpoint_id"],
                  "format": asked["format"]}
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


# -- formats (torch is imported where it is needed: a job that fails early does not wait for it) -----------------------


def _whole(checkpoint: Path, base: Path | None) -> tuple[Any, dict]:
    """Shape and weights of a model; of an adapter with its own or another base, with the adapter in the matrices."""
    from minimind.formats.adapters import read_adapter
    from minimind.formats.source import load_weights_from
    from minimind.lora import check_adapter, merged

    source = load_weights_from(checkpoint if base is None else base)
    if base is None:
        return source.config, source.weights
    adapter, weights = read_adapter(checkpoint)
    check_adapter(weights, adapter, source.config, checkpoint)
    return source.config, merged(source.weights, adapter, weights)


def _huggingface(target: Path, checkpoint: Path, base: Path | None, base_name: str) -> Path:
    from minimind.formats.huggingface import save_huggingface
    from minimind.tokenizer import Tokenizer

    return save_huggingface(target, *_whole(checkpoint, base), Tokenizer.load(base or checkpoint))


def _pth(target: Path, checkpoint: Path, base: Path | None, base_name: str) -> Path:
    from minimind.formats.pth import save_pth

    return save_pth(target.with_name(f"{target.name}.pth"), *_whole(checkpoint, base))


def _peft(target: Path, checkpoint: Path, base: Path | None, base_name: str) -> Path:
    from minimind.formats.adapter_files import write_peft
    from minimind.formats.adapters import read_adapter

    return write_peft(target, *read_adapter(checkpoint), base_name)


def _minimind_lora(target: Path, checkpoint: Path, base: Path | None, base_name: str) -> Path:
    from minimind.formats.adapters import read_adapter, save_upstream

    return save_upstream(target.with_name(f"{target.name}.pth"), *read_adapter(checkpoint))


WRITERS: dict[str, Callable[[Path, Path, Path | None, str], Path]] = {
    "hf": _huggingface, "merged": _huggingface, "pth": _pth, "peft": _peft, "minimind_lora": _minimind_lora}
