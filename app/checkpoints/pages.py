"""The page of checkpoints: what runs have saved, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select

from app.auth.deps import User
from app.checkpoints import adapters, exports, queries
from app.checkpoints.exports import ExportOut
from app.checkpoints.schemas import CheckpointOut
from app.core.db import Session, now, reading
from app.core.models import Checkpoint, Job, Run, TokenizerRow
from app.core.rest import Paging, find, is_id
from app.rendering import page

router = APIRouter(include_in_schema=False)
CHECKPOINTS_SHOWN = 50
EXPORTS_SHOWN = 50
#: models and tokenizers that an import may stand on: the newest of each
OFFERED = 200


@router.get("/checkpoints")
def checkpoints_page(request: Request, user: User, stage: Annotated[str, Query(max_length=40)] = "",
                     run_id: Annotated[str, Query(max_length=40)] = "",
                     cursor: Annotated[str | None, Query(max_length=200)] = None,
                     part: Annotated[str, Query(max_length=10)] = "") -> Response:
    """Checkpoints, newest first. ``part=rows`` is the table's rows alone, for a page that is open."""
    stage, run_id = (value if is_id(value) else "" for value in (stage, run_id))
    with reading() as session:
        rows, following = queries.list_checkpoints(session, Paging(cursor=cursor, limit=CHECKPOINTS_SHOWN),
                                                   run_id=run_id or None, stage=stage or None)
        checkpoints = [CheckpointOut.of(row) for row in rows]
        run = find(session, Run, run_id)
        stages = list(session.scalars(select(Checkpoint.stage).where(Checkpoint.state.in_(queries.SHOWN)).distinct()
                                      .order_by(Checkpoint.stage)))
        offered = _offered(session) if part != "rows" and user.may_write else {}
    template = "pages/checkpoints_rows.html" if part == "rows" else "pages/checkpoints.html"
    return page(request, template, checkpoints=checkpoints, next_cursor=following, stage=stage, stages=stages,
                run_id=run_id, run_name=run.name if run else None, cursor=cursor, **offered)


@dataclass(frozen=True)
class ExportRow:
    """An export as its page shows it. ``job_state``: a cancelled one is another thing than one that failed. ``speed``:
    bytes a second, and ``left_s`` until it is whole, while that can be said."""

    export: ExportOut
    job_state: str
    is_ending: bool
    run_id: str | None
    run_name: str | None
    step: int | None
    speed: float | None
    left_s: float | None


@router.get("/exports")
def exports_page(request: Request, user: User, checkpoint_id: Annotated[str, Query(max_length=40)] = "",
                 cursor: Annotated[str | None, Query(max_length=200)] = None,
                 part: Annotated[str, Query(max_length=10)] = "") -> Response:
    """Exports, newest first; ``part=rows`` as above."""
    checkpoint_id = checkpoint_id if is_id(checkpoint_id) else ""
    with reading() as session:
        jobs, following = exports.list_exports(session, Paging(cursor=cursor, limit=EXPORTS_SHOWN),
                                               checkpoint_id or None)
        known, at = exports.checkpoints_of(session, jobs), now(session)
        rows = [_export_row(job, known.get(job.payload["checkpoint_id"]), at) for job in jobs]
    template = "pages/exports_rows.html" if part == "rows" else "pages/exports.html"
    return page(request, template, rows=rows, next_cursor=following, checkpoint_id=checkpoint_id, cursor=cursor)


def _export_row(job: Job, checkpoint: Checkpoint | None, at: float) -> ExportRow:
    said, speed, left = job.progress, None, None
    if job.state == "running" and said.get("unit") == "bytes" and said.get("done") and job.started_at:
        speed = said["done"] / max(0.1, at - job.started_at)
        left = (said["total"] - said["done"]) / speed
    run_id, name, step = (None, None, None) if checkpoint is None else (
        checkpoint.run_id, checkpoint.run.name, checkpoint.step)
    return ExportRow(ExportOut.of(job), job.state, job.cancel_wanted, run_id, name, step, speed, left)


def _offered(session: Session) -> dict[str, list]:
    """What the dialog of an import lets choose."""
    bases = session.execute(select(Checkpoint.id, Checkpoint.step, Checkpoint.stage, Run.name).join(
        Run, Run.id == Checkpoint.run_id).where(Checkpoint.state == "ready", Checkpoint.stage != adapters.STAGE)
        .order_by(Checkpoint.created_at.desc(), Checkpoint.step.desc()).limit(OFFERED))
    tokenizers = session.execute(select(TokenizerRow.id, TokenizerRow.name, TokenizerRow.vocab_size)
                                 .where(TokenizerRow.state == "ready").order_by(TokenizerRow.created_at.desc())
                                 .limit(OFFERED))
    return {"bases": list(bases), "tokenizers": list(tokenizers)}
