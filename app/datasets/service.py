"""Datasets: taken in, looked at, counted, forgotten. Reading them through is the import job's work."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from app.chat.votes import Pairs
from app.core.db import Session, now, reading, transaction
from app.core.errors import Conflict, Invalid
from app.core.logging import get_logger
from app.core.models import Dataset, Job, Pipeline, Run, TokenizerRow, new_id
from app.core.queue import enqueue_job
from app.core.rest import find, get_or_404
from app.core.settings import get_settings
from app.core.upload import UploadedFile
from app.datasets.schemas import (
    DatasetCreate,
    InspectedRow,
    InspectFields,
    Inspection,
    PreviewRow,
    TokenCount,
    UploadFields,
    VotesCreate,
)
from minimind.chat_format import encode_conversation, encode_pair
from minimind.data import foreign
from minimind.data.layouts import iter_rows
from minimind.data.starter import LAYOUT_OF_PART
from minimind.errors import DataError
from minimind.tokenizer import Tokenizer

log = get_logger(__name__)

#: characters of one text that a preview shows, and rows it may skip to get there
PREVIEW_CHARS = 4000
MAX_PREVIEW_ROW = 1_000_000
#: entries of one list or object that a preview shows, and how deep it goes
PREVIEW_ENTRIES, PREVIEW_DEPTH = 200, 40
#: by layout, the dialogues of a row; in the other layouts it is one text
SIDES = {"conversations": ("conversations",), "dpo": ("chosen", "rejected")}
_READ = ("text", "question", "conversations", "chosen", "rejected")
#: characters that are counted before the rest is estimated: a second or two of one core
COUNTED_CHARS = 8_000_000
#: an upload that nobody has written to for this long has lost its writer
LEFT_AFTER_S = 24 * 3600.0
_NO_PAIRS = ("Compare two answers in chat and say which one is better. Ties, equal answers and continued texts give "
             "nothing to learn from.")
_COUNTED_AT_ONCE, _CHARS_AT_ONCE = 500, 1_000_000


def get_dataset(session: Session, id: str) -> Dataset:
    return get_or_404(session, Dataset, id, "dataset")


def create_starter(session: Session, user_id: str, asked: DatasetCreate) -> Dataset:
    source = asked.source.model_dump(mode="json")
    starter = {k: source[k] for k in ("part", "minutes", "languages", "seed")}
    return _enqueue(session, user_id, asked.name or f"starter {asked.source.part}", source,
                    LAYOUT_OF_PART[asked.source.part], {"upload_path": None, "starter": starter})


def create_upload(session: Session, user_id: str, asked: UploadFields, file: UploadedFile) -> Dataset:
    source = {"kind": "upload", "filename": file.filename}
    mapping = read_mapping(asked.mapping)
    return _enqueue(session, user_id, asked.name or file.filename, source, asked.layout,
                    {"upload_path": str(file.path), "starter": None, "mapping": mapping or None})


def create_votes(session: Session, user_id: str, asked: VotesCreate) -> Dataset:
    """The user's votes as a file of preference pairs, which is then imported as an upload is. Raises ``Invalid`` where
    there is none."""
    pairs = Pairs(session, user_id)
    path = get_settings().uploads_dir / new_id()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.writelines(pairs.lines())
        if not pairs.made:
            left_out = sum(pairs.left_out.values())
            raise Invalid(f"None of your {left_out} votes gives a pair to learn from." if left_out else
                          "You have not voted for any answer yet.", field="source", hint=_NO_PAIRS)
        day = datetime.fromtimestamp(now(session), UTC).date()
        source = {"kind": "votes", "filename": "votes.jsonl", "pairs": pairs.made, "left_out": dict(pairs.left_out)}
        return _enqueue(session, user_id, asked.name or f"votes {day}, {pairs.made} pairs", source, "dpo",
                        {"upload_path": str(path), "starter": None})
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read_mapping(text: str | None) -> dict[str, Any]:
    """The mapping that came as JSON text, checked. Raises ``Invalid`` or ``ConfigError`` with all its problems."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("The mapping is not valid JSON.", field="mapping",
                      hint='Write it like {"layout": "pairs", "question": "ask", "answer": "answer"}.') from None
    return foreign.checked(value)


def inspect_upload(asked: InspectFields, file: UploadedFile) -> Inspection:
    """What is recognised in a file that is looked at and not kept."""
    mapping = read_mapping(asked.mapping)
    if asked.layout != "auto":
        mapping = {"layout": asked.layout, **mapping}
    found = foreign.inspect(file.path, file.filename, mapping, is_partial=asked.is_partial)
    rows = []
    for one in found.pop("rows"):
        shown = _shortened(one["row"])
        rows.append(InspectedRow(line=one["line"], row=shown, is_cut=shown != one["row"]))
    return Inspection(**_shortened(found), rows=rows)


def _enqueue(session: Session, user_id: str, name: str, source: dict, layout: str, payload: dict) -> Dataset:
    id = new_id()
    job = enqueue_job(session, "dataset_import", {"dataset_id": id, "layout": layout, **payload}, user_id=user_id)
    becomes = foreign.LAYOUTS[layout][0] if layout in foreign.LAYOUTS else layout
    dataset = Dataset(id=id, name=name, user_id=user_id, layout=becomes, state="importing", source=source, warnings=[],
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
        if dataset.id in (job.payload.get("dataset_id"), job.payload.get("questions_dataset_id")):
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
        wanted = {j.payload.get(key) for j in session.scalars(select(Job).where(Job.state.in_(("queued", "running"))))
                  for key in ("upload_path", "aside")}
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
            return rows, str(after + limit) if after + limit <= MAX_PREVIEW_ROW else None
        shown = _shortened(row)
        rows.append(PreviewRow(line=line, row=shown, is_cut=shown != row, **more(line, row)))
    return rows, None


def _shortened(value: Any, depth: int = 0) -> Any:
    if depth > PREVIEW_DEPTH:
        return "…"
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()  # JSON can say half a surrogate pair; an answer cannot
        return value if len(value) <= PREVIEW_CHARS else value[:PREVIEW_CHARS] + "…"
    if isinstance(value, dict):
        entries = list(value.items())
        shown = entries[:PREVIEW_ENTRIES]
        if depth == 0:  # what training reads is shown wherever it stands
            shown += [(k, v) for k, v in entries[PREVIEW_ENTRIES:] if k in _READ]
        return {_shortened(k): _shortened(v, depth + 1) for k, v in shown}
    if isinstance(value, list):
        return [_shortened(v, depth + 1) for v in value[:PREVIEW_ENTRIES]]
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
    for batch, size, is_whole in _batches(iter_rows(_path_of(dataset), dataset.layout), dataset.layout):
        tokens += _tokens_of(tokenizer, dataset.layout, batch)
        chars += size
        rows += len(batch)
        is_exact = is_exact and is_whole
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


#: rows with their lines, their characters, and whether every row is counted whole
_Batch = tuple[list[tuple[int, dict]], int, bool]


def _batches(rows: Iterator[tuple[int, dict]], layout: str) -> Iterator[_Batch]:
    batch: list[tuple[int, dict]] = []
    chars, is_whole = 0, True
    for line, row in rows:
        size = _chars_of(row, layout)
        batch.append((line, row))
        chars += min(size, COUNTED_CHARS)
        is_whole = is_whole and size <= COUNTED_CHARS
        if len(batch) == _COUNTED_AT_ONCE or chars >= _CHARS_AT_ONCE:
            yield batch, chars, is_whole
            batch, chars, is_whole = [], 0, True
    if batch:
        yield batch, chars, is_whole


def _text_of(row: dict) -> str:
    return row["text"] if "text" in row else row["question"]


def _chars_of(row: dict, layout: str) -> int:
    if layout not in SIDES:
        return len(_text_of(row))
    return sum(len(str(row[side])) for side in SIDES[layout]) + len(str(row.get("tools") or ""))


def _tokens_of(tokenizer: Tokenizer, layout: str, rows: list[tuple[int, dict]]) -> int:
    """As ``minimind.data.cache.encode_rows`` makes them: a text stands between two control tokens, a dialogue has its
    template and its tools around it. Of a row that is too long only the beginning is encoded, and scaled."""
    if layout not in SIDES:
        return sum(_tokens_of_texts(tokenizer, [_text_of(row) for _, row in rows]))
    tokens = 0
    for line, row in rows:
        if _chars_of(row, layout) > COUNTED_CHARS:  # a template takes a dialogue whole or not at all
            tokens += sum(_tokens_of_texts(tokenizer, [str(row[side]) for side in SIDES[layout]]))
            continue
        try:
            if layout == "conversations":
                tokens += len(encode_conversation(tokenizer, row["conversations"], row.get("tools"))[0])
            else:
                pair = encode_pair(tokenizer, row["chosen"], row["rejected"], row.get("tools"))
                tokens += len(pair.chosen_ids) + len(pair.rejected_ids)
        except DataError as error:
            raise DataError(f"Line {line}: {error.message}", line=line, field=error.field, hint=error.hint) from None
    return tokens


def _tokens_of_texts(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    encoded = tokenizer.encode_batch([text[:COUNTED_CHARS] for text in texts])
    return [round(len(ids) * max(1, len(text) / COUNTED_CHARS)) + 2 for ids, text in zip(encoded, texts, strict=True)]
