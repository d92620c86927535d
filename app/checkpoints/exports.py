"""Checkpoints for other programs. An export is its job: it has the same id, and a worker does the work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from app.checkpoints.adapters import STAGE, facts_of, misfit
from app.core.db import Session
from app.core.errors import Conflict, Invalid, NotFound
from app.core.models import Checkpoint, Job
from app.core.queue import enqueue_job
from app.core.rest import Paging, RequestBody, find, get_or_404, is_id, newest_first, rfc3339
from app.core.settings import get_settings

KIND = "checkpoint_export"
Format = Literal["hf", "gguf", "pth", "merged", "peft", "minimind_lora"]
Quantization = Literal["f32", "f16", "q8_0"]
Dtype = Literal["float32", "bfloat16", "float16"]
#: what can be made of adapters alone
OF_ADAPTERS = ("peft", "minimind_lora")
#: exports that are looked at for one that is there already
LOOKED_AT = 500
#: what the name of a file ends with; of a folder nothing
_SUFFIXES = {"gguf": ".gguf", "pth": ".pth", "minimind_lora": ".pth"}
_STATES = {"queued": "running", "running": "running", "completed": "ready"}


class ExportCreate(RequestBody):
    """``hf``: a Hugging Face folder with a model card; ``gguf``: a file for llama.cpp and ollama; ``pth``: upstream
    MiniMind's file. Of the stage lora these are the base with the adapter in it, which is ``merged`` (as a folder);
    ``peft`` and ``minimind_lora`` are the adapter alone."""

    format: Format
    quantization: Quantization | None = Field(None, description="gguf alone: how a weight is stored. Default: f16.")
    dtype: Dtype | None = Field(None, description="hf and merged alone: type of the weights. Default: float32.")
    base_checkpoint_id: str | None = Field(None, max_length=64, description=(
        "For an adapter that becomes part of a model: another model than its own base."))


class Command(BaseModel):
    tool: str
    text: str


class ExportOut(BaseModel):
    """``path`` is a directory for ``hf``, ``merged`` and ``peft``, a file for ``gguf``, ``pth`` and ``minimind_lora``;
    null until the state is ``ready``. ``name``: the file's or the folder's. ``seconds``: what making it took.
    ``progress`` is the job's ``{done, total, unit, message}``. ``commands``: what to
    type where the file was put, ``[{tool, text}]``. ``modelfile``: ollama's, of a ``gguf`` file."""

    id: str
    checkpoint_id: str
    format: Format
    name: str
    state: Literal["running", "ready", "failed"]
    path: str | None
    bytes: int | None
    error: dict | None
    base_checkpoint_id: str | None
    quantization: Quantization | None
    dtype: Dtype | None
    commands: list[Command]
    modelfile: str | None
    progress: dict
    seconds: float | None
    created_at: str

    @classmethod
    def of(cls, job: Job) -> ExportOut:
        made = job.result or {}
        return cls(id=job.id, checkpoint_id=job.payload["checkpoint_id"], format=job.payload["format"],
                   name=file_name(job),
                   state=_STATES.get(job.state, "failed"), path=made.get("path"), bytes=made.get("bytes"),
                   error=job.error, quantization=job.payload.get("quantization"), dtype=job.payload.get("dtype"),
                   commands=made.get("commands") or [], modelfile=made.get("modelfile"),
                   base_checkpoint_id=job.payload["base_checkpoint_id"], progress=job.progress,
                   seconds=job.ended_at - job.started_at if made and job.started_at and job.ended_at else None,
                   created_at=rfc3339(job.created_at))


def file_name(job: Job) -> str:
    """What the export is called on the disk of whoever downloads it; of a folder, without ``.zip``."""
    return job.payload["name"] + _SUFFIXES.get(job.payload["format"], "")


def list_exports(session: Session, paging: Paging, checkpoint_id: str | None = None) -> tuple[list[Job], str | None]:
    """Newest first, those that are being made and those that failed too."""
    query = select(Job).where(Job.kind == KIND)
    if checkpoint_id is not None:
        query = query.where(Job.payload["checkpoint_id"].as_string() == checkpoint_id)
    return newest_first(session, query, Job, paging)


def checkpoints_of(session: Session, jobs: list[Job]) -> dict[str, Checkpoint]:
    """The checkpoints that were exported, by id, with their runs; those that are no longer known are left out."""
    ids = {job.payload["checkpoint_id"] for job in jobs}
    rows = session.scalars(select(Checkpoint).where(Checkpoint.id.in_(ids)).options(joinedload(Checkpoint.run)))
    return {row.id: row for row in rows}


def create(session: Session, user_id: str, checkpoint_id: str, asked: ExportCreate) -> Job:
    """Queue the export; the same one that is made or being made already stands for it. Raises ``Invalid``."""
    row = get_or_404(session, Checkpoint, checkpoint_id, "checkpoint")
    session.refresh(row, with_for_update=True)  # who asks for the same at the same time finds this job
    _check_is_ready(row)
    base = _checked(session, row, asked)
    said = {"checkpoint_id": row.id, "base_checkpoint_id": base.id if base else None, "format": asked.format}
    said |= _details(asked)
    for job in session.scalars(select(Job).where(Job.kind == KIND, Job.state.in_(tuple(_STATES)), ~Job.cancel_wanted)
                               .order_by(Job.created_at.desc()).limit(LOOKED_AT)):
        if said.items() <= _asked(job).items() and (job.result is None or Path(job.result["path"]).exists()):
            return job
    stands_on = find(session, Checkpoint, row.run.base_checkpoint_id)
    # two files of one checkpoint may lie in one folder, each with its Modelfile
    name = _file_name(row) + (f"-{said['quantization']}" if said["quantization"] else "")
    payload = said | {"name": name, "base_name": _file_name(stands_on) if stands_on else "base"}
    job = enqueue_job(session, KIND, payload, user_id=user_id)
    job.payload = {**payload, "export_id": job.id}
    session.flush()
    return job


def _details(asked: ExportCreate) -> dict:
    """How the weights are stored. Raises ``Invalid`` where a format has no such choice."""
    for name, formats in (("quantization", ("gguf",)), ("dtype", ("hf", "merged"))):
        if getattr(asked, name) is not None and asked.format not in formats:
            raise Invalid(f"{name} belongs to the format {' and '.join(formats)}.", field=name, hint="Leave it out.")
    return {"quantization": (asked.quantization or "f16") if asked.format == "gguf" else None,
            "dtype": (asked.dtype or "float32") if asked.format in ("hf", "merged") else None}


def _asked(job: Job) -> dict:
    """The payload of a job, also of one from before there was a choice of types."""
    return {"quantization": None, "dtype": "float32" if job.payload["format"] in ("hf", "merged") else None,
            **job.payload}


def _check_is_ready(row: Checkpoint) -> None:
    if row.state == "deleted":
        raise NotFound(f"The checkpoint {row.id} is deleted.", hint="Choose another one of the run.")
    if row.state != "ready":
        raise Conflict(f"The checkpoint {row.id} is damaged: {row.problem}", hint="Choose another one of the run.")


def _checked(session: Session, row: Checkpoint, asked: ExportCreate) -> Checkpoint | None:
    """The base that the adapter becomes part of, where another one than its own is asked for."""
    facts = facts_of(row)
    is_adapter = row.stage == STAGE if facts is None else facts.is_adapter
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


def modelfile_of(job: Job) -> tuple[str, str]:
    """Name and text of ollama's Modelfile. Raises ``NotFound`` for what ollama does not read."""
    text = (job.result or {}).get("modelfile")
    if text is None:
        raise NotFound("This export has no Modelfile.", hint="Exports of the format gguf have one, once they are made.")
    return f"{job.payload['name']}.Modelfile", text


def remove(session: Session, job: Job) -> None:
    """Forget an export and its files. Raises ``Conflict`` while it is being made."""
    session.refresh(job, with_for_update=True)
    if job.state in ("queued", "running"):
        raise Conflict("This export is being made.", field="state", hint=f"Cancel its job {job.id} first.")
    session.delete(job)
    home = get_settings().exports_dir / job.id
    session.after_commit(lambda: shutil.rmtree(home, ignore_errors=True))
