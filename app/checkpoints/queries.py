"""What is read of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import joinedload

from app.core.db import Session
from app.core.models import Checkpoint, Run
from app.core.rest import Paging, newest_first

#: a list names each checkpoint's run without a query for each
_RUN_NAME = joinedload(Checkpoint.run, innerjoin=True).load_only(Run.name)
#: deleted ones are nobody's business; damaged ones are shown, and say so
SHOWN = ("ready", "corrupt")
#: stages after which a model goes on with any text, but has never seen a question answered
CONTINUES_TEXT = ("pretrain",)


def of_run(session: Session, run_id: str) -> list[Checkpoint]:
    """The run's checkpoints, oldest step first, damaged ones too."""
    return list(session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.state.in_(SHOWN))
                                .options(_RUN_NAME).order_by(Checkpoint.step, Checkpoint.attempt)))


def list_checkpoints(session: Session, paging: Paging, *, run_id: str | None = None,
                     stage: str | None = None) -> tuple[list[Checkpoint], str | None]:
    query = select(Checkpoint).where(Checkpoint.state.in_(SHOWN)).options(_RUN_NAME)
    if run_id is not None:
        query = query.where(Checkpoint.run_id == run_id)
    if stage is not None:
        query = query.where(Checkpoint.stage == stage)
    return newest_first(session, query, Checkpoint, paging)


@dataclass(frozen=True)
class SavingCost:
    """What saving has cost a run: how often, bytes written, seconds that training waited, share of its time."""

    saves: int
    bytes: int
    seconds: float
    share: float


def saving_cost(session: Session, run_id: str, active_s: float) -> SavingCost | None:
    """Over all checkpoints of the run whose cost is known, deleted ones too; None before the first."""
    saves, size, seconds = session.execute(
        select(func.count(), func.sum(Checkpoint.bytes), func.sum(Checkpoint.save_s))
        .where(Checkpoint.run_id == run_id, Checkpoint.save_s.is_not(None))).one()
    if not saves:
        return None
    return SavingCost(saves, int(size), float(seconds), float(seconds) / active_s if active_s > 0 else 0.0)
