"""Long work that is not a run, in a process of its own: ``python -m worker.jobs JOB_ID ATTEMPT``.

What a job makes is built aside and renamed into place, so that it is there whole or not at all; a job that fails,
is cancelled or is killed leaves nothing half-made (what a killed one left, its second try removes).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from app.core import channels, logging
from app.core.db import reading, transaction
from app.core.inputs import stamp_of
from app.core.job_files import places, remove_half_made
from app.core.models import Dataset, Job, TokenizerRow
from app.core.queue import end_job, renew_job
from app.core.settings import get_settings
from app.core.timing import get_timing
from minimind.data import foreign, starter
from minimind.data.layouts import LAYOUTS, SUFFIXES, iter_rows, scan
from minimind.errors import DataError, MiniMindError, class_of_words
from minimind.lifeline import die_as_told
from minimind.run_dir import fsync_dir
from minimind.tokenizer import Tokenizer
from worker.prepare import disk_error

log = logging.get_logger(__name__)

PROGRESS_EVERY_S = 0.5
ROWS_BETWEEN_LOOKS = 1000


class Cancelled(Exception):
    """The user does not want the job any more."""


class Lost(Exception):
    """The job was given to somebody else (or has ended): this process must change nothing."""


class Work:
    """One attempt at one job: its row, its progress, its cancellation."""

    def __init__(self, job_id: str, attempt: int):
        self.job_id = job_id
        self.attempt = attempt
        self._said_at = 0.0
        with reading() as session:
            job = session.get(Job, job_id)
            if job is None or job.state != "running" or job.attempt != attempt:
                raise Lost(f"job {job_id} is not at attempt {attempt}")
            self.kind, self.payload = job.kind, dict(job.payload)

    def say(self, done: int, total: int | None, unit: str, message: str = "", *, force: bool = False) -> None:
        """Progress, at most twice a second; raises ``Cancelled`` or ``Lost`` where the job should end."""
        if not force and time.monotonic() - self._said_at < PROGRESS_EVERY_S:
            return
        self._said_at = time.monotonic()
        with transaction() as session:
            wanted = session.execute(
                update(Job).where(Job.id == self.job_id, Job.attempt == self.attempt, Job.state == "running")
                .values(progress={"done": done, "total": total, "unit": unit, "message": message})
                .returning(Job.cancel_wanted), execution_options={"synchronize_session": False}).scalar()
        if wanted is None:
            raise Lost(f"job {self.job_id} has moved on")
        if wanted:
            raise Cancelled

    def end(self, state: str, *, error: dict | None = None, finish: Callable[[Any], dict] | None = None) -> None:
        """End the job, and in the same transaction say in ``finish(session)`` what was made."""
        with transaction() as session:
            job = session.get(Job, self.job_id, with_for_update=True, populate_existing=True)
            if job.state != "running" or job.attempt != self.attempt:
                raise Lost(f"job {self.job_id} has moved on")
            result = finish(session) if finish else None
            end_job(session, job, state, error=error, result=result)


# -- dataset_import -----------------------------------------------------------------------------------------------


def dataset_import(work: Work) -> None:
    """Check every row, then move the file to ``D/datasets/{id}/``; or write the starter corpus there."""
    dataset_id = work.payload["dataset_id"]
    with reading() as session:
        dataset = session.get(Dataset, dataset_id)
        if dataset is None:
            raise Cancelled
        shown = str(dataset.source.get("filename") or "the file")
    aside, home = places(work.kind, work.payload)
    remove_half_made(work.kind, work.payload)
    aside.mkdir(parents=True)
    try:
        layout = work.payload.get("layout") or "auto"
        if work.payload.get("starter") is not None:
            part = work.payload["starter"]["part"]
            staged, layout = aside / "data.jsonl", starter.LAYOUT_OF_PART.get(part, "text")
            _write_starter(work, staged)
        else:
            staged = _stage(Path(work.payload["upload_path"]), aside, shown)
        detected, said = {}, []
        mapping = work.payload.get("mapping") or {}
        if layout in foreign.LAYOUTS and (layout not in LAYOUTS or "text" in mapping):
            mapping = {"layout": layout, **mapping}
        if work.payload.get("starter") is None and staged.stat().st_size and (mapping or foreign.is_foreign(staged)):
            staged, layout, detected, said = _convert(work, staged, aside / "converted.jsonl", shown, layout, mapping)
        try:
            found = scan(staged, layout, progress=lambda done, total: work.say(done, total, "bytes", "Checking"))
        except DataError as error:
            error.message = error.message.replace(staged.name, shown, 1)
            raise
        digest = _sha256(work, staged)
        final = aside / ("data.txt" if found.layout == "txt" else "data.jsonl")
        staged.rename(final)
        _settle_on_disk(final, aside, home)

        def finish(session: Any) -> dict:
            row = session.get(Dataset, dataset_id)
            row.state, row.layout, row.rows, row.error = "ready", found.layout, found.rows, None
            row.bytes, row.sha256 = (home / final.name).stat().st_size, digest
            row.warnings = [*said, *found.warnings]
            if detected:
                row.source = {**row.source, "detected": detected}
            row.path, row.stamp = str(home / final.name), stamp_of(home / final.name)
            return {"dataset_id": dataset_id, "rows": found.rows}

        work.end("completed", finish=finish)
    except Lost:
        raise  # these places are somebody else's now
    except BaseException:
        remove_half_made(work.kind, work.payload)
        raise


def _stage(upload: Path, aside: Path, shown: str) -> Path:
    """The upload under a name whose ending says what it is; the upload itself stays until the job has ended."""
    if not upload.is_file():
        raise DataError("The uploaded file is not there any more.", hint="Upload it again.")
    suffix = Path(shown).suffix.lower()
    staged = aside / f"data{suffix if suffix in SUFFIXES else '.upload'}"
    try:
        os.link(upload, staged)
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(upload, staged)
    return staged


def _convert(work: Work, staged: Path, target: Path, shown: str, layout: str,
             mapping: dict) -> tuple[Path, str, dict, list[str]]:
    """Rows of a foreign file in ``target``, in place of the file: ``(file, its layout, what was found, warnings)``."""
    with foreign.Source(staged, shown=shown, mapping=mapping) as source:
        if layout in LAYOUTS:
            source.require(layout)
        canonical = "text" if source.canonical == "txt" else source.canonical
        foreign.write_canonical(source, target, lambda done, total: work.say(done, total, "bytes", "Converting"))
        part, report = source.parts[0], source.report
        detected = {"layout": source.layout, "container": part.container, "encoding": part.encoding,
                    "mapping": part.mapping, "rows_read": report.seen, "left_out": report.left_out + report.alone}
    staged.unlink()
    return target, canonical, detected, report.warnings


def _write_starter(work: Work, path: Path) -> None:
    wanted = {k: v for k, v in work.payload["starter"].items() if k in ("minutes", "languages", "seed")
              and v is not None}
    rows = starter.generate(work.payload["starter"]["part"], **wanted)
    with open(path, "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if number % ROWS_BETWEEN_LOOKS == 0:
                work.say(number, None, "rows", "Writing the starter corpus")


def _sha256(work: Work, path: Path) -> str:
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with open(path, "rb") as file:
        while block := file.read(4 << 20):
            digest.update(block)
            done += len(block)
            work.say(done, total, "bytes", "Computing the checksum")
    return digest.hexdigest()


def _settle_on_disk(file: Path, aside: Path, home: Path) -> None:
    """Durably: file, directory, name."""
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
    fsync_dir(aside)
    aside.rename(home)
    fsync_dir(home.parent)


# -- tokenizer_train ----------------------------------------------------------------------------------------------


def tokenizer_train(work: Work) -> None:
    """Learn a vocabulary from a dataset into ``D/tokenizers/{id}/``."""
    tokenizer_id = work.payload["tokenizer_id"]
    with reading() as session:
        dataset = session.get(Dataset, work.payload["dataset_id"])
        if dataset is None or dataset.state != "ready" or not dataset.path:
            raise DataError("The dataset of this tokenizer is not there any more.", field="dataset_id",
                            hint="Import it again.")
        path, layout, rows = dataset.path, dataset.layout, dataset.rows
    aside, home = places(work.kind, work.payload)
    remove_half_made(work.kind, work.payload)
    try:
        made = Tokenizer.train(_texts(work, path, layout, rows), int(work.payload["vocab_size"]))
        work.say(rows or 0, rows, "rows", "Saving", force=True)
        made.save(aside)
        fsync_dir(aside)
        aside.rename(home)
        fsync_dir(home.parent)

        def finish(session: Any) -> dict:
            row = session.get(TokenizerRow, tokenizer_id)
            row.state, row.error, row.path = "ready", None, str(home)
            row.fingerprint, row.vocab_size = made.fingerprint, made.vocab_size
            return {"tokenizer_id": tokenizer_id, "vocab_size": made.vocab_size}

        work.end("completed", finish=finish)
    except Lost:
        raise  # these places are somebody else's now
    except BaseException:
        remove_half_made(work.kind, work.payload)
        raise


def _texts(work: Work, path: str, layout: str, rows: int | None) -> Iterator[str]:
    for number, (_, row) in enumerate(iter_rows(path, layout)):
        if number % ROWS_BETWEEN_LOOKS == 0:
            work.say(number, rows, "rows", "Reading")
        if text := row.get("text") or row.get("question"):
            yield text
        for key in ("conversations", "chosen", "rejected"):
            for message in row.get(key) or ():
                yield message.get("content") or ""


# -- the process --------------------------------------------------------------------------------------------------


def teacher_answers(work: Work) -> None:
    """Ask a teacher, into a dataset of conversations."""
    from worker.teacher_job import write_answers  # which imports this module

    write_answers(work)


def checkpoint_export(work: Work) -> None:
    """Write a checkpoint for other programs."""
    from worker.export_job import export

    export(work)


def checkpoint_import(work: Work) -> None:
    """Take in weights or an adapter of others."""
    from worker.import_job import import_checkpoint

    import_checkpoint(work)


KINDS: dict[str, Callable[[Work], None]] = {"dataset_import": dataset_import, "tokenizer_train": tokenizer_train,
                                            "teacher_answers": teacher_answers, "checkpoint_export": checkpoint_export,
                                            "checkpoint_import": checkpoint_import}


def execute(job_id: str, attempt: int) -> str:
    """Do the job and write how it ended; returns that state, or ``lost``."""
    try:
        work = Work(job_id, attempt)
        try:
            if work.kind not in KINDS:
                raise DataError(f"This version knows no jobs of the kind {work.kind!r}.")
            KINDS[work.kind](work)
        except Cancelled:
            work.end("cancelled", error={"message": "Cancelled.", "hint": None})
            return "cancelled"
        except (MiniMindError, OSError, UnicodeError) as error:
            log.warning("job_failed", job_id=job_id, error=str(error))
            work.end("failed", error=as_error(error))
            return "failed"
        except (SQLAlchemyError, Lost):
            raise  # the database is away, so that another try may go well; or there is nothing to say any more
        except Exception as error:
            if class_of_words(f"{type(error).__name__}: {error}") == "OOM_HOST":
                raise  # there may be more memory the next time, and a teacher's answers are kept for it
            log.exception("job_failed", job_id=job_id)  # nobody foresaw it, and another try would end in the same way
            work.end("failed", error=as_error(error))
            return "failed"
    except Lost as error:
        log.warning("job_lost", job_id=job_id, error=str(error))
        return "lost"
    return "completed"


def as_error(error: Exception) -> dict:
    """``{class, message, hint, line, field}`` of what went wrong, for the row and the page."""
    if isinstance(error, OSError):
        error = disk_error(error, get_settings().data_dir)
    if isinstance(error, MiniMindError):
        return {**error.as_dict(), "line": error.line, "field": error.field}
    if isinstance(error, UnicodeError):
        known = {"class": "DATA", "message": str(error), "hint": None}
    else:
        known = {"class": "INTERNAL", "message": f"The studio made a mistake ({type(error).__name__}), and the job was "
                                                 "not done.",
                 "hint": "Look into logs/jobs.log in the data directory."}
    return {**known, "line": None, "field": None}


def _keep_lease(job_id: str, attempt: int) -> None:
    while True:
        time.sleep(get_timing().renew_every_s)
        try:
            with transaction() as session:
                held = renew_job(session, job_id, attempt)
        except SQLAlchemyError as error:
            log.warning("database_away", error=str(error).splitlines()[0])
            continue
        if not held:
            return  # ended, or given to another: the next `say` or `end` finds out


def main(arguments: list[str]) -> int:
    die_as_told(always=True)
    job_id, attempt = arguments[0], int(arguments[1])
    logging.setup("job")
    logging.bind(job_id=job_id, attempt=attempt)
    threading.Thread(target=_keep_lease, args=(job_id, attempt), daemon=True).start()
    state = execute(job_id, attempt)
    channels.background.flush()
    log.info("job_ended", state=state)
    return 0 if state == "completed" else 1


if __name__ == "__main__":
    from worker import jobs  # this file once more, by its name: kinds in other files must meet the same exceptions

    sys.exit(jobs.main(sys.argv[1:]))
