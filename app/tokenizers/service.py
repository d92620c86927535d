"""Tokenizers: learnt from a dataset by a job, or taken in as files."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.core.db import Session, now
from app.core.errors import Invalid
from app.core.models import Dataset, TokenizerRow, new_id
from app.core.queue import enqueue_job
from app.core.rest import hold
from app.core.settings import get_settings
from app.core.upload import Upload
from app.tokenizers.schemas import TokenizerTrain
from minimind.run_dir import fsync_dir
from minimind.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer


def train(session: Session, user_id: str, asked: TokenizerTrain) -> TokenizerRow:
    """Queue the training of a vocabulary. Raises ``Invalid``."""
    dataset = hold(session, Dataset, asked.dataset_id)
    if dataset is None:
        raise Invalid("There is no dataset of this id.", field="dataset_id", hint="GET /api/v1/datasets lists them.")
    if dataset.state != "ready":
        raise Invalid(f"The dataset {dataset.name} is {dataset.state}.", field="dataset_id",
                      hint="Wait until it is ready." if dataset.state == "importing" else "Import it again.")
    id = new_id()
    job = enqueue_job(session, "tokenizer_train", user_id=user_id, payload={
        "tokenizer_id": id, "dataset_id": dataset.id, "vocab_size": asked.vocab_size})
    row = TokenizerRow(id=id, name=asked.name or f"{dataset.name} {asked.vocab_size}"[:200], user_id=user_id,
                       state="training", job_id=job.id, created_at=now(session),
                       source={"kind": "dataset", "dataset_id": dataset.id, "vocab_size": asked.vocab_size})
    session.add(row)
    session.flush()
    return row


def read_upload(upload: Upload) -> tuple[Tokenizer, Path]:
    """The tokenizer in the uploaded files, and the directory they now lie in. Raises ``MiniMindError``.

    Only the two files we know are read, by a parser that runs nothing.
    """
    directory = get_settings().uploads_dir / f"tokenizer-{new_id()}"
    directory.mkdir(parents=True)
    try:
        upload.files["file"].path.rename(directory / TOKENIZER_FILE)
        if "config" in upload.files:
            upload.files["config"].path.rename(directory / CONFIG_FILE)
        return Tokenizer.load(directory), directory
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, ValueError):  # names of our directories are no use to a client
            raise _without_place(error, directory) from None
        raise


def _without_place(error: ValueError, directory: Path) -> Invalid:
    message = str(getattr(error, "message", error)).replace(f"{directory}/", "").replace(str(directory), "the upload")
    return Invalid(message, field="file", hint=getattr(error, "hint", None))


def keep(session: Session, user_id: str, name: str, tokenizer: Tokenizer, directory: Path) -> TokenizerRow:
    """Move the files to their place and add the row; a rollback takes both back."""
    id = new_id()
    home = get_settings().tokenizers_dir / id
    home.parent.mkdir(parents=True, exist_ok=True)
    row = TokenizerRow(id=id, name=name, user_id=user_id, state="ready", path=str(home), source={"kind": "upload"},
                       fingerprint=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size, created_at=now(session))
    session.add(row)
    session.flush()
    directory.rename(home)
    fsync_dir(home.parent)
    return row
