"""Datasets: taken in, looked at, counted, forgotten. Reading them through is the import job's work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from app.core.db import Session, now, reading, transaction
from app.core.errors import Conflict, Invalid
from app.core.logging import get_logger
from app.core.models import Dataset, Job, Pipeline, Run, TokenizerRow, new_id
from app.core.queue import enqueue_job
from app.core.rest import find, get_or_404
from app.core.settings import get_settings
from app.core.upload import UploadedFile
from app.datasets.schemas import DatasetCreate, PreviewRow, TokenCount, UploadFields
from minimind.chat_format import encode_conversation
from minimind.data.layouts import iter_rows
from minimind.data.starter import LAYOUT_OF_PART
from minimind.tokenizer import Tokenizer

log = get_logger(__name__)

#: characters of one text that a preview shows, and rows it may skip to get there
PREVIEW_CHARS = 4000
MAX_PREVIEW_ROW = 1_000_000
#: characters that are counted before the rest is estimated: a second or two of one core
COUNTED_CHARS = 8_000_000
#: an upload that nobody has written to for this long has lost its writer
LEFT_AFTER_S = 24 * 3600.0
_COUNTED_AT_ONCE = 500


def get_dataset(session: Session, id: str) -> Dataset:
    return get_or_404(session, Dataset, id, "dataset")


def create_starter(session: Session, user_id: str, asked: DatasetCreate) -> Dataset:
    source = asked.source.model_dump(mode="json")
    starter = {k: source[k] for k in ("part", "minutes", "languages", "seed")}
    return _enqueue(session, user_id, asked.name or f"starter {asked.source.part}", source,
                    LAYOUT_OF_PART[asked.source.part], {"upload_path": None, "starter": starter})


def create_upload(session: Session, user_id: str, asked: UploadFields, file: UploadedFile) -> Dataset:
    source = {"kind": "upload", "filename": file.filename}
    return _enqueue(session, user_id, asked.name or file.filename, source, asked.layout,
                    {"upload_path": str(file.path), "starter": None})


def _enqueue(session: Session, user_id: str, name: str, source: dict, layout: str, payload: dict) -> Dataset:
    id = new_id()
    job = enqueue_job(session, "dataset_import", {"dataset_id": id, "layout": layout, **payload}, user_id=user_id)
    dataset = Dataset(id=id, name=name, user_id=user_id, layout=layout, state="importing", source=source, warnings=[],
                      job_id=job.id, created_at=now(session))
    session.add(dataset)
    session.flush()
    return dataset


def remove(session: Session, dataset: Dataset) -> None:
    """Forget a dataset and its files. Raises ``Conflict`` while anything stands on it."""
    session.refresh(dataset, with_for_update=True)
    if dataset.state == "importing":
        raise Conflict("This dataset is being imported.", field="state", hint=f"Cancel its job {dataset.job_id} first.")
    runs = session.scalar(select(func.count()).select_from(Run).where(Run.dataset_id == dataset.id))
    if runs:
        raise Conflict(f"{runs} {'run uses' if runs == 1 else 'runs use'} this dataset.",
                       hint="Delete these runs first; they could not be repeated without it.")
    for line in session.scalars(select(Pipeline).where(Pipeline.state.in_(("running", "paused", "failed")))):
        if any(stage.get("dataset_id") == dataset.id for stage in line.stages):
            raise Conflict(f"The pipeline {line.name} uses this dataset.", hint="Cancel the pipeline first.")
    for job in session.scalars(select(Job).where(Job.state.in_(("queued", "running")))):
        if job.payload.get("dataset_id") == dataset.id:
            raise Conflict("A job reads this dataset.", hint=f"Wait for job {job.id}, or cancel it.")
    session.delete(dataset)
    session.flush()
    directory = get_settings().datasets_dir / dataset.id
    session.after_commit(lambda: _remove_files(directory))


def _remove_files(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return  # it failed before anything was written
    except OSError as error:  # the row is gone: what is left takes space but is seen by nobody
        log.warning("dataset_files_not_removed", path=str(directory), error=str(error))


def sweep_uploads() -> int:
    """Remove what a web process that was killed in the middle of an upload has left; returns how many files."""
    with reading() as session:
        wanted = {j.payload.get("upload_path") for j in session.scalars(
            select(Job).where(Job.state.in_(("queued", "running"))))}
    oldest = time.time() - LEFT_AFTER_S
    left = [p for p in get_settings().uploads_dir.glob("*") if str(p) not in wanted and p.stat().st_mtime < oldest]
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(left)


# -- looking inside -----------------------------------------------------------------------------------------------


def _path_of(dataset: Dataset) -> Path:
    if dataset.state != "ready" or not dataset.path:
        raise Conflict(f"The dataset {dataset.name} is {dataset.state}.", field="state",
                       hint="Wait until it is ready." if dataset.state == "importing" else "Import it again.")
    return Path(dataset.path)


def preview(dataset: Dataset, after: int, limit: int,
            more: Callable[[int, dict], dict[str, Any]] = lambda line, row: {}) -> tuple[list[PreviewRow], str | None]:
    """Rows behind the first ``after`` ones, and the cursor of the next page.

    ``more(line, row)``: further fields of a row that is shown.
    """
    path, rows = _path_of(dataset), []
    for number, (line, row) in enumerate(iter_rows(path, dataset.layout), 1):
        if number <= after:
            continue
        if len(rows) == limit:
            return rows, str(after + limit)
        shown = _shortened(row)
        rows.append(PreviewRow(line=line, row=shown, is_cut=shown != row, **more(line, row)))
    return rows, None


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()  # JSON can say half a surrogate pair; an answer cannot
        return value if len(value) <= PREVIEW_CHARS else value[:PREVIEW_CHARS] + "…"
    if isinstance(value, dict):
        return {_shortened(k): _shortened(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shortened(v) for v in value]
    return value


def ready_tokenizer(session: Session, id: str) -> TokenizerRow:
    row = find(session, TokenizerRow, id)
    if row is None or row.state != "ready" or not row.path:
        raise Invalid("There is no ready tokenizer of this id.", field="tokenizer",
                      hint="GET /api/v1/tokenizers lists them.")
    return row


def count_tokens(dataset: Dataset, row: TokenizerRow) -> TokenCount:
    """Tokens of ``dataset`` in the words of a tokenizer; a large one is counted in part and scaled by its rows."""
    tokenizer = Tokenizer.load(row.path)
    tokens = chars = rows = 0
    is_exact = True
    for batch in _batches(iter_rows(_path_of(dataset), dataset.layout)):
        tokens += _tokens_of(tokenizer, batch)
        chars += sum(len(str(r)) for r in batch)
        rows += len(batch)
        if chars >= COUNTED_CHARS and dataset.rows and rows < dataset.rows:
            is_exact = False
            tokens = round(tokens * dataset.rows / rows)
            break
    return TokenCount(tokenizer_id=row.id, tokens=tokens, rows=rows, is_exact=is_exact)


def keep_count(dataset_id: str, tokens: int) -> None:
    """Write down an exact count: preflight computes steps from it."""
    with transaction() as session:
        dataset = session.get(Dataset, dataset_id)
        if dataset is not None:
            dataset.tokens = tokens


def _batches(rows: Iterator[tuple[int, dict]]) -> Iterator[list[dict]]:
    batch: list[dict] = []
    for _, row in rows:
        batch.append(row)
        if len(batch) == _COUNTED_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _tokens_of(tokenizer: Tokenizer, rows: list[dict]) -> int:
    """As the stages read them: a document ends with one more token, a dialogue has its template around it."""
    if "text" in rows[0]:
        return sum(len(ids) + 1 for ids in tokenizer.encode_batch([r["text"] for r in rows]))
    dialogues = [r[key] for r in rows for key in ("conversations", "chosen", "rejected") if key in r]
    return sum(len(encode_conversation(tokenizer, messages)[0]) for messages in dialogues)
