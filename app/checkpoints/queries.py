"""What is read of checkpoints."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from app.core.db import Session
from app.core.models import Checkpoint, Run
from app.core.rest import Paging, newest_first

#: a list names each checkpoint's run without a query for each
_RUN_NAME = joinedload(Checkpoint.run, innerjoin=True).load_only(Run.name)


def of_run(session: Session, run_id: str) -> list[Checkpoint]:
    """The run's usable checkpoints, oldest step first."""
    return list(session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.state == "ready")
                                .options(_RUN_NAME).order_by(Checkpoint.step, Checkpoint.attempt)))


def list_checkpoints(session: Session, paging: Paging, *, run_id: str | None = None,
                     stage: str | None = None) -> tuple[list[Checkpoint], str | None]:
    query = select(Checkpoint).where(Checkpoint.state == "ready").options(_RUN_NAME)
    if run_id is not None:
        query = query.where(Checkpoint.run_id == run_id)
    if stage is not None:
        query = query.where(Checkpoint.stage == stage)
    return newest_first(session, query, Checkpoint, paging)
