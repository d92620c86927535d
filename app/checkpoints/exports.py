"""Checkpoints for other programs. An export is its job: it has the same id, and a worker does the work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from sqlalchemy import select

from app.checkpoints.adapters import STAGE, facts_of, misfit
from app.core.db import Session
from app.core.errors import Conflict, Invalid, NotFound
from app.core.models import Checkpoint, Job
from app.core.queue import enqueue_job
from app.core.rest import RequestBody, find, get_or_404, is_id, rfc3339
from app.core.settings import get_settings

KIND = "checkpoint_export"
Format = Literal["hf", "gguf", "pth", "merged", "peft", "minimind_lora"]
#: what can be made of adapters alone
OF_ADAPTERS = ("peft", "minimind_lora")
#: exports that are looked at for one that is there already
LOOKED_AT = 500
_STATES = {"queued": "running", "running": "running", "completed": "ready"}


class ExportCreate(RequestBody):
    """``hf``: a Hugging Face folder; ``pth``: upstream MiniMind's file. Of the stage lora both are the base with the
    adapter in it, which is ``merged`` (as a folder); ``peft`` and ``minimind_lora`` are the adapter alone."""

    format: Format
    base_checkpoint_id: str | None = Field(None, max_length=64, description=(
        "For an adapter that becomes part of a model: another model than its own base."))


class ExportOut(BaseModel):
    """``path`` is a directory for ``hf``, ``merged`` and ``peft``, a file for ``pth`` and ``minimind_lora``; null until
    the state is ``ready``. ``progress`` is the job's ``{done, total, unit, message}``."""

    id: str
    checkpoint_id: str
    format: Format
    state: Literal["running", "ready", "failed"]
    path: str | None
    bytes: int | None
    error: dict | None
    base_checkpoint_id: str | None
    progress: dict
    created_at: str

    @classmethod
    def of(cls, job: Job) -> ExportOut:
        made = job.result or {}
        return cls(id=job.id, checkpoint_id=job.payload["checkpoint_id"], format=job.payload["format"],
                   state=_STATES.get(job.state, "failed"), path=made.get("path"), bytes=made.get("bytes"),
                   error=job.error, base_checkpoint_id=job.payload["base_checkpoint_id"], progress=job.progress,
                   created_at=rfc3339(job.created_at))


def create(session: Session, user_id: str, checkpoint_id: str, asked: ExportCreate) -> Job:
    """Queue the export; the same one that is made or being made already stands for it. Raises ``Invalid``."""
    row = get_or_404(session, Checkpoint, checkpoint_id, "checkpoint")
    session.refresh(row, with_for_update=True)  # who asks for the same at the same time finds this job
    _check_is_ready(row)
    base = _checked(session, row, asked)
    said = {"checkpoint_id": row.id, "base_checkpoint_id": base.id if base else None, "format": asked.format}
    for job in session.scalars(select(Job).where(Job.kind == KIND, Job.state.in_(tuple(_STATES)))
                               .order_by(Job.created_at.desc()).limit(LOOKED_AT)):
        if said.items() <= job.payload.items() and (job.result is None or Path(job.result["path"]).exists()):
            return job
    stands_on = find(session, Checkpoint, row.run.base_checkpoint_id)
    payload = said | {"name": _file_name(row), "base_name": _file_name(stands_on) if stands_on else "base"}
    job = enqueue_job(session, KIND, payload, user_id=user_id)
    job.payload = {**payload, "export_id": job.id}
    session.flush()
    return job


def _check_is_ready(row: Checkpoint) -> None:
    if row.state == "deleted":
        raise NotFound(f"The checkpoint {row.id} is deleted.", hint="Choose another one of the run.")
    if row.state != "ready":
        raise Conflict(f"The checkpoint {row.id} is damaged: {row.problem}", hint="Choose another one of the run.")


def _checked(session: Session, row: Checkpoint, asked: ExportCreate) -> Checkpoint | None:
    """The base that the adapter becomes part of, where another one than its own is asked for."""
    facts = facts_of(row)
    is_adapter = row.stage == STAGE if facts is None else facts.is_adapter
    if asked.format == "gguf":
        raise Invalid("Exporting to GGUF is not built yet.", field="format",
                      hint="Export a Hugging Face folder (hf): llama.cpp converts it.")
    if asked.format in OF_ADAPTERS and not is_adapter:
        raise Invalid(f"This checkpoint is a whole model, and {asked.format} is a format for adapters.", field="format",
                      hint="Use hf or pth.")
    if asked.base_checkpoint_id is None:
        return None
    base = find(session, Checkpoint, asked.base_checkpoint_id)
    problem = None
    if not is_adapter or asked.format in OF_ADAPTERS:
        problem = "A base belongs to an adapter that becomes part of a model."
    elif base is None or base.state != "ready":
        problem = "There is no usable checkpoint of this id."
    else:
        problem = misfit(base, row)
    if problem is not None:
        raise Invalid(problem, field="base_checkpoint_id", hint="Leave it out for the adapter's own base.")
    return base


def _file_name(row: Checkpoint) -> str:
    """A name that every file system takes: of the run and the step."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", row.run.name).strip("-.")[:60] or row.stage
    return f"{name}-step-{row.step}"


def get(session: Session, id: str) -> Job:
    """Raises ``NotFound``."""
    job = session.get(Job, id) if is_id(id) else None
    if job is None or job.kind != KIND:
        raise NotFound(f"There is no export {id[:40]!r}.", hint="POST /api/v1/checkpoints/ID/export makes one.")
    return job


def made_by(job: Job) -> Path:
    """File or directory of a finished export. Raises ``Conflict`` or ``NotFound``."""
    if job.state != "completed":
        raise Conflict(f"The export is {_STATES.get(job.state, 'failed')}.", field="state",
                       hint="Wait until its state is ready." if job.state in _STATES else "Make it again.")
    path = Path(job.result["path"])
    if not path.exists():
        raise NotFound("The files of this export are no longer there.", hint="Make it again.")
    return path


def remove(session: Session, job: Job) -> None:
    """Forget an export and its files. Raises ``Conflict`` while it is being made."""
    session.refresh(job, with_for_update=True)
    if job.state in ("queued", "running"):
        raise Conflict("This export is being made.", field="state", hint=f"Cancel its job {job.id} first.")
    session.delete(job)
    home = get_settings().exports_dir / job.id
    session.after_commit(lambda: shutil.rmtree(home, ignore_errors=True))
