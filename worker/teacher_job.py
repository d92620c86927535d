"""The job ``teacher_answers``: a teacher answers questions into ``D/datasets/{id}/``.

It may last for hours and cost money, so what was answered outlives a killed process: each attempt keeps a journal in
the job's ``aside`` directory and begins with what the one before had. (Each has a file of its own: one that was given
up but still lives can do no harm.) ``app.core.queue.end_job`` removes the directory of a job that failed or was
cancelled.

A checkpoint is loaded by this process itself, on the CPU, with half of the cores. Asking the inference process would
save its memory, but there people wait who chat, its replies end with the broker, and a host may have none; here the
job's lease and cancellation hold for the model too. A GPU is not used: jobs hold no device.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.core import secrets
from app.core.db import reading
from app.core.inputs import stamp_of
from app.core.job_files import places
from app.core.logging import get_logger
from app.core.models import Checkpoint, Dataset, Job
from minimind.data import starter
from minimind.data.layouts import scan
from minimind.errors import CheckpointError, DataError
from minimind.run_dir import fsync_dir
from minimind.teach.address import parse_address
from minimind.teach.endpoint import Endpoint
from minimind.teach.journal import Journal
from minimind.teach.loop import Progress, answer_all, check_any, count_questions, said_of_left_out
from minimind.teach.questions import read_questions
from minimind.teach.teachers import Teacher, TeacherError
from worker.engines import cores_for_inference
from worker.jobs import Work

log = get_logger(__name__)

#: an endpoint that fails is tried again for so long before the job is given up with all its answers
PATIENCE_S = 900.0


def write_answers(work: Work) -> None:
    """Ask what has no answer yet, then make the dataset."""
    asked, (aside, home) = work.payload, places(work.kind, work.payload)
    shutil.rmtree(home, ignore_errors=True)  # of an attempt that was killed before it could say that it is done
    aside.mkdir(parents=True, exist_ok=True)
    questions, limit, system = _questions(work, aside), asked["limit"], asked["system"]
    path = _take_over(aside, work.attempt)
    teacher = _teacher(work, has_answered=path.exists())
    options = {**teacher.identity(), **{k: asked[k] for k in ("system", "temperature", "max_tokens", "seed")}}
    with Journal(path, options) as journal:
        total = count_questions(questions, journal, limit)

        def say(progress: Progress) -> None:
            try:
                work.say(progress.done, progress.total, "rows", ", ".join(["Asking the teacher", *progress.remarks()]))
            except SQLAlchemyError as error:  # the teacher goes on answering; the next look is soon
                log.warning("database_away", error=str(error).splitlines()[0])

        try:
            answer_all(questions, teacher, journal, total=total, limit=limit, system=system,
                       concurrency=asked["concurrency"], say=say)
        except TeacherError as error:
            if error.field == "key":  # the core knows its own ways to give one
                error.hint = "Give a valid one (page Datasets, or PUT /api/v1/secrets/teacher), and try again."
            raise
        work.say(total, total, "rows", "Writing the dataset", force=True)
        check_any(journal)
        final = aside / "data.jsonl"
        journal.write_rows(final, read_questions(questions, limit), system=system if asked["keep_system"] else "")
        remark = said_of_left_out(journal)
    _finish(work, final, aside, home, remark)


def _finish(work: Work, final: Path, aside: Path, home: Path, remark: str) -> None:
    found = scan(final, "conversations")
    with open(final, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    ready = aside / "ready"  # the answers stay behind: another attempt needs them until the rows are in their place
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    final = final.rename(ready / final.name)
    fsync_dir(ready)
    work.say(found.rows, found.rows, "rows", "Writing the dataset", force=True)
    ready.rename(home)
    fsync_dir(home.parent)

    def finish(session: Any) -> dict:
        row = session.get(Dataset, work.payload["dataset_id"])
        row.state, row.layout, row.rows, row.error = "ready", found.layout, found.rows, None
        row.bytes, row.sha256 = (home / final.name).stat().st_size, digest
        row.warnings = [*found.warnings, *([remark] if remark else [])]
        row.path, row.stamp = str(home / final.name), stamp_of(home / final.name)
        return {"dataset_id": row.id, "rows": found.rows}

    work.end("completed", finish=finish)
    shutil.rmtree(aside, ignore_errors=True)


def _questions(work: Work, aside: Path) -> Path:
    """The file of questions: a dataset's, or the starter's, written anew as the same bytes."""
    dataset_id, wanted = work.payload["questions_dataset_id"], work.payload["starter"]
    if dataset_id is None:
        return starter.write("questions", aside / "questions.jsonl",
                             **{k: v for k, v in wanted.items() if v is not None})
    with reading() as session:
        dataset = session.get(Dataset, dataset_id)
        if dataset is None or dataset.state != "ready" or not dataset.path:
            raise DataError("The dataset of the questions is not there any more.", field="questions_dataset_id",
                            hint="Import it again.")
        return Path(dataset.path)


def _take_over(aside: Path, attempt: int) -> Path:
    """This attempt's journal, beginning with what the attempts before have answered."""
    mine = aside / f"answers-a{attempt}.jsonl"
    earlier = max((p for p in aside.glob("answers-a*.jsonl") if p != mine),
                  key=lambda p: int(p.stem.removeprefix("answers-a")), default=None)
    if earlier is not None and not mine.exists():
        copy = mine.with_suffix(".tmp")
        shutil.copyfile(earlier, copy)
        os.replace(copy, mine)
        fsync_dir(aside)
    return mine


def _teacher(work: Work, *, has_answered: bool) -> Teacher:
    asked = work.payload
    options = {k: asked[k] for k in ("temperature", "max_tokens", "seed")}
    with reading() as session:
        owner = session.get(Job, work.job_id).user_id
        row = session.get(Checkpoint, asked["checkpoint_id"]) if asked["checkpoint_id"] else None
        place = row.path if row is not None and row.state == "ready" else None
    if asked["endpoint"] is not None:
        url, model = asked["endpoint"]["url"], asked["endpoint"]["model"]
        return Endpoint(url, model, secrets.key_for(owner, parse_address(url).origin), **options,
                        patience_s=PATIENCE_S, has_answered=has_answered)
    if place is None:
        raise CheckpointError("The checkpoint of the teacher is not there any more.", field="checkpoint_id",
                              hint="Choose another one.")
    work.say(0, None, "rows", "Loading the teacher", force=True)
    import torch

    from minimind.teach.local import LocalTeacher

    torch.set_num_threads(cores_for_inference())
    return LocalTeacher(place, **options)
