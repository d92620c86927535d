"""From a run's row to what its trainer reads: ``run.json``, the attempt's directory, argv and environment."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from app.core import inputs
from app.core.db import Session
from app.core.devices import world_size
from app.core.models import Checkpoint, Dataset, DeviceLease, Run, TokenizerRow
from app.core.settings import Settings
from minimind.config import parse_config, stage_class
from minimind.errors import DiskFullError, MiniMindError
from minimind.run_dir import RunDir, write_json
from worker.launcher import rank_command, rank_environment


@dataclass(frozen=True)
class Launch:
    """Everything needed to start the ranks of one attempt."""

    command: list[str]
    environment: dict[str, str]
    world_size: int
    #: in the order in which the ranks see them
    devices: tuple[str, ...]


def prepare(session: Session, run: Run, run_dir: RunDir, settings: Settings) -> Launch:
    """Write what the trainer of the run's present attempt reads. Raises ``MiniMindError`` where something that
    the run needs is gone."""
    devices = tuple(sorted(session.scalars(select(DeviceLease.device).where(DeviceLease.run_id == run.id)),
                           key=lambda d: int(d.partition(":")[2])))
    ranks = 1 if run.stage == "tokenizer" else world_size(run.devices)
    device = "cuda" if devices and devices[0].startswith("cuda:") else "cpu"
    _refuse_what_is_gone(session, run)
    tokenizer_id = run.tokenizer_id or run.config.get("tokenizer")  # None: the base's, else one is trained
    values = {**run.config, "data_path": session.get(Dataset, run.dataset_id).path if run.dataset_id else None,
              "tokenizer": session.get(TokenizerRow, tokenizer_id).path if tokenizer_id else None}
    if "device" in stage_class(run.stage).model_fields:  # learning a vocabulary needs none
        values["device"] = device
    base = session.get(Checkpoint, run.base_checkpoint_id) if run.base_checkpoint_id is not None else None
    if base is not None and run.stage != "tokenizer":  # one that is gone is read no more: `inputs.problem` knows
        values["from_weight"] = base.path
    if run.teacher_checkpoint_id is not None:
        values["teacher_weight"] = session.get(Checkpoint, run.teacher_checkpoint_id).path
        if run.base_checkpoint_id is None and tokenizer_id is None:  # a checkpoint's directory holds its tokenizer
            values["tokenizer"] = values["teacher_weight"]
    config = parse_config(run.stage, values)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    write_json(run_dir.config, {"stage": run.stage, **config.model_dump(mode="json")})
    run_dir.make_attempt(run.attempt)
    return Launch(
        rank_command(run.stage, run_dir.path, run.attempt, world_size=ranks, allow_changes=run.allow_changes,
                     cache_dir=settings.cache_dir),
        rank_environment(settings, run.id, run.attempt, devices, ranks), ranks, devices)


def _refuse_what_is_gone(session: Session, run: Run) -> None:
    """The claim has asked the same; what went in the moment between is said here."""
    wrong = inputs.problem(session, run)
    if wrong is not None:
        error = MiniMindError(wrong["message"], field=wrong["field"], hint=wrong["hint"])
        error.code = wrong["class"]
        raise error


def disk_error(error: OSError, place: Path) -> MiniMindError:
    """What a user should hear of a file that could not be read or written under ``place``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"The disk of {place} is full.",
                             hint="Free some space and try again; nothing half-made was left behind.")
    return MiniMindError(f"A file under {place} could not be read or written: {error.strerror}.",
                         hint="Check the data directory's permissions and disk, and try again.")
