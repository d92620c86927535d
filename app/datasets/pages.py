"""Pages of datasets: the list with the ways to add one, and one dataset with its rows as text and as tokens."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select

from app.auth.deps import User
from app.core.db import Session, reading
from app.core.errors import AppError
from app.core.models import Checkpoint, Dataset, Job, Run, TokenizerRow
from app.core.rest import Paging, newest_first
from app.datasets import format_check, service, teacher
from app.datasets.schemas import DatasetOut
from app.i18n import gettext as _
from app.rendering import page
from minimind.config import STAGES, TrainConfig
from minimind.data import starter
from minimind.data.layouts import SUFFIXES
from minimind.errors import MiniMindError
from minimind.tokenizer import SMALLEST_VOCABULARY

router = APIRouter(include_in_schema=False)
DATASETS_SHOWN = 50
#: how far back tokenizers and checkpoints are offered to look at rows with
TOKENIZERS_SHOWN, CHECKPOINTS_SEEN = 50, 200


@router.get("/datasets")
def datasets_page(request: Request, user: User, cursor: Annotated[str | None, Query(max_length=200)] = None,
                  part: str = "", add: str = "") -> Response:
    """Datasets, newest first. ``part=rows`` is the list alone, for a page that is open; ``add`` opens the forms."""
    with reading() as session:
        rows, following = newest_first(session, select(Dataset), Dataset,
                                       Paging(cursor=cursor, limit=DATASETS_SHOWN))
        datasets = [DatasetOut.of(row) for row in rows]
        progress = _progress_of(session, datasets)
        may_ask = teacher.choices(session) if part != "rows" and user.may_write else None
    template = "pages/dataset_list.html" if part == "rows" else "pages/datasets.html"
    return page(request, template, datasets=datasets, progress=progress, next_cursor=following, cursor=cursor,
                is_adding=bool(add), teacher=may_ask, parts=starter.PARTS, languages_of_starter=starter.LANGUAGES,
                suffixes=SUFFIXES)


@router.get("/datasets/{id}")
def dataset_page(id: str, request: Request, user: User) -> Response:
    with reading() as session:
        dataset = DatasetOut.of(service.get_dataset(session, id))
        words = tokenizer_choices(session, dataset.id) if dataset.state == "ready" else []
        progress = _progress_of(session, [dataset])
    return page(request, "pages/dataset.html", dataset=dataset, stages=stages_for(dataset), choices=words,
                progress=progress.get(dataset.id), smallest_vocabulary=SMALLEST_VOCABULARY)


@router.get("/chat-format")
def chat_format_page(request: Request, user: User,
                     words: Annotated[str | None, Query(alias="with", max_length=100)] = None) -> Response:
    """A conversation to edit, and what a model reads of it. ``with``: in whose words (the newest tokenizer's)."""
    with reading() as session:
        choices = tokenizer_choices(session, None)
    offered = [choice["value"] for choice in choices]
    chosen = words if words in offered else offered[0] if offered and words is None else ""
    example = format_check.EXAMPLE
    kind, _colon, id = chosen.partition(":")
    asked = format_check.FormatRequest(**example, **{f"{kind}_id": id} if id else {})
    try:
        text = format_check.checked(asked).text
    except (AppError, MiniMindError) as error:  # its script asks again and shows what is wrong
        text = str(error)
    shown = [{"role": m["role"], "content": m["content"], "reasoning_content": m.get("reasoning_content", ""),
              "tool_calls": _json(m.get("tool_calls"))} for m in example["messages"]]
    roles = {"system": _("System"), "user": _("User"), "assistant": _("Assistant"), "tool": _("Tool")}
    return page(request, "pages/chat_format.html", choices=choices, chosen=chosen, roles=roles, text=text,
                example={"messages": shown, "tools": _json(example["tools"])})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def stages_for(dataset: DatasetOut) -> list[str]:
    """Stages that train a model on data of this layout."""
    return [name for name, stage in STAGES.items()
            if issubclass(stage, TrainConfig) and dataset.layout in stage.layouts]


def tokenizer_choices(session: Session, dataset_id: str | None) -> list[dict[str, Any]]:
    """Tokenizers that can show the rows, each once: those that stand by themselves (learnt from this dataset first),
    then the ones that recent checkpoints carry. ``value`` is what the preview is asked with."""
    rows = session.scalars(select(TokenizerRow).where(TokenizerRow.state == "ready")
                           .order_by(TokenizerRow.created_at.desc(), TokenizerRow.id.desc()).limit(TOKENIZERS_SHOWN))
    own = sorted(rows, key=lambda row: dataset_id is not None and row.source.get("dataset_id") != dataset_id)
    seen = {row.fingerprint for row in own if row.fingerprint}
    choices = [{"value": f"tokenizer:{row.id}", "name": row.name, "vocab_size": row.vocab_size, "stage": None,
                "step": None} for row in own]
    recent = session.execute(
        select(Checkpoint.id, Checkpoint.stage, Checkpoint.step, Checkpoint.tokenizer_fingerprint, Run.name)
        .outerjoin(Run, Run.id == Checkpoint.run_id)
        .where(Checkpoint.state == "ready", Checkpoint.tokenizer_fingerprint.is_not(None))
        .order_by(Checkpoint.created_at.desc(), Checkpoint.id.desc()).limit(CHECKPOINTS_SEEN))
    for checkpoint_id, stage, step, fingerprint, run_name in recent:
        if fingerprint not in seen:
            seen.add(fingerprint)
            choices.append({"value": f"checkpoint:{checkpoint_id}", "name": run_name or checkpoint_id,
                            "vocab_size": None, "stage": stage, "step": step})
    return choices


def _progress_of(session: Session, datasets: list[DatasetOut]) -> dict[str, dict[str, Any]]:
    """What the import jobs of these datasets say of themselves, by dataset."""
    jobs = {d.job_id: d.id for d in datasets if d.state == "importing" and d.job_id}
    if not jobs:
        return {}
    rows = session.execute(select(Job.id, Job.progress).where(Job.id.in_(jobs)))
    return {jobs[job_id]: progress or {} for job_id, progress in rows}
