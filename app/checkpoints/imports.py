"""Models and adapters of others: files are taken in here, a job makes a run and a checkpoint of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from app.core.db import Session
from app.core.errors import Invalid, Problems
from app.core.models import Checkpoint, Job, TokenizerRow, new_id
from app.core.queue import enqueue_job
from app.core.rest import Name, find
from app.core.settings import get_settings
from app.core.upload import Upload

KIND = "checkpoint_import"
#: a file that is a model by itself, and may have any name
ALONE = (".pth", ".pt", ".gguf")
ARCHIVES = (".zip", ".tar")
SUFFIXES = (".json", ".safetensors", ".bin", ".jinja", ".txt", ".md", *ALONE, *ARCHIVES)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}")


class ImportFields(BaseModel):
    """Beside the files. ``base_checkpoint_id``: the model that an adapter belongs to. ``tokenizer_id``: for weights
    that come without one."""

    name: Name | None = None
    base_checkpoint_id: Annotated[str, Field(max_length=64)] | None = None
    tokenizer_id: Annotated[str, Field(max_length=64)] | None = None


def check(session: Session, asked: ImportFields, upload: Upload) -> None:
    """Raises ``Invalid`` with what is wrong before anything is read."""
    problems = Problems()
    if not upload.files:
        problems.say("file", "There is no file.", "Send the files as parts named file.")
    names = [file.filename for file in upload.files.values()]
    for name in names:
        if not name.lower().endswith(SUFFIXES):
            problems.say("file", f"{name} is no file of a model or an adapter.",
                         f"Files that are read: {', '.join(SUFFIXES)}.")
    stored = [stored_name(name) for name in names]
    twice = sorted({name for name, place in zip(names, stored, strict=True) if stored.count(place) > 1})
    if twice:
        problems.say("file", f"These files take each other's place: {', '.join(twice)}.", "Import one model at a time.")
    if asked.base_checkpoint_id:
        base = find(session, Checkpoint, asked.base_checkpoint_id)
        if base is None or base.state != "ready":
            problems.say("base_checkpoint_id", "There is no usable checkpoint of this id.",
                         "GET /api/v1/checkpoints lists those that are.")
    if asked.tokenizer_id:
        tokenizer = find(session, TokenizerRow, asked.tokenizer_id)
        if tokenizer is None or tokenizer.state != "ready":
            problems.say("tokenizer_id", "There is no usable tokenizer of this id.",
                         "GET /api/v1/tokenizers lists those that are.")
    if problems:
        raise Invalid.of(problems)


def create(session: Session, user_id: str, asked: ImportFields, upload: Upload) -> Job:
    """Queue the import of files that were received. Raises ``Invalid``; then the files stay where they are."""
    check(session, asked, upload)
    run_id = new_id()
    directory = get_settings().uploads_dir / f"{run_id}.import"
    first = next(iter(upload.files.values())).filename
    payload = {"run_id": run_id, "name": asked.name or Path(first).stem[:200] or "import", "aside": str(directory),
               "shown": first, "base_checkpoint_id": asked.base_checkpoint_id or None,
               "tokenizer_id": asked.tokenizer_id or None}
    job = enqueue_job(session, KIND, payload, user_id=user_id)
    directory.mkdir(parents=True)
    for file in upload.files.values():
        file.path.rename(directory / stored_name(file.filename))
    return job


def stored_name(shown: str) -> str:
    """What a file is called on our disk: others look for some names, and a weights file may have any."""
    suffix = Path(shown).suffix.lower()
    if suffix in (*ALONE, *ARCHIVES) or not _NAME.fullmatch(shown):
        return f"weights{suffix}"
    return Path(shown).stem + suffix
