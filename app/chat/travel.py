"""The way that a run's model came: its checkpoints, and before them those that it started from."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from sqlalchemy import func, select

from app.checkpoints import queries
from app.core.db import Session
from app.core.models import Checkpoint, Run
from app.core.rest import find
from minimind.events import finite

#: runs that a way goes back through: pretraining, fine-tuning, preferences, and some more
MAX_RUNS = 8
#: points that a way is thinned out to; each is a model that has to be loaded
MAX_POINTS = 100
#: runs that the page offers, the newest
RUNS_OFFERED = 200


class Point(BaseModel):
    """A checkpoint on the way. ``is_own``: of the run itself, not of what it started from."""

    id: str
    run_id: str
    run_name: str
    stage: str
    step: int
    tokens: int
    eval_loss: float | None
    continues_text: bool
    is_own: bool


class Way(BaseModel):
    """``points``: the earliest first. ``gone``: checkpoints on it that were deleted or are damaged; ``thinned``: those
    that are there and left out, because there are so many."""

    run_id: str
    run_name: str
    stage: str
    gone: int
    thinned: int
    points: list[Point]


@dataclass(frozen=True)
class Offer:
    """A run whose checkpoints can be travelled through."""

    id: str
    name: str
    stage: str
    checkpoints: int


def offered(session: Session) -> list[Offer]:
    """Runs with checkpoints, the newest first."""
    count = func.count(Checkpoint.id)
    rows = session.execute(
        select(Run.id, Run.name, Run.stage, count).join(Checkpoint, Checkpoint.run_id == Run.id)
        .where(Checkpoint.state == "ready").group_by(Run.id, Run.name, Run.stage, Run.created_at)
        .order_by(Run.created_at.desc(), Run.id).limit(RUNS_OFFERED))
    return [Offer(*row) for row in rows]


def way(session: Session, run: Run) -> Way:
    """The checkpoints of ``run`` and of those that it stands on, up to the one that each went on from."""
    points: list[Point] = []
    gone, seen = 0, set()
    at, end = run, None
    while at is not None and at.id not in seen and len(seen) < MAX_RUNS:
        seen.add(at.id)
        rows = list(session.scalars(select(Checkpoint).where(Checkpoint.run_id == at.id)
                                    .order_by(Checkpoint.step, Checkpoint.attempt)))
        if end is not None:
            rows = [row for row in rows if (row.attempt, row.step) <= (end.attempt, end.step)]
        gone += sum(row.state != "ready" for row in rows)
        points = [_point(at, row, is_own=at is run) for row in _kept(rows)] + points
        end = find(session, Checkpoint, at.base_checkpoint_id)
        at = session.get(Run, end.run_id) if end is not None else None
    shown = thinned(points)
    return Way(run_id=run.id, run_name=run.name, stage=run.stage, gone=gone, thinned=len(points) - len(shown),
               points=shown)


def _kept(rows: list[Checkpoint]) -> list[Checkpoint]:
    """Those that led to the last one: a later attempt supersedes what earlier ones saved at the same or a later step
    than its own first."""
    kept: list[Checkpoint] = []
    for row in sorted((r for r in rows if r.state == "ready"), key=lambda r: (-r.attempt, -r.step)):
        if not kept or row.step < kept[-1].step:
            kept.append(row)
    return kept[::-1]


def thinned(points: list[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most ``most`` of them, evenly, the first and the last always."""
    if len(points) <= most:
        return points
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _point(run: Run, row: Checkpoint, *, is_own: bool) -> Point:
    return Point(id=row.id, run_id=run.id, run_name=run.name, stage=row.stage, step=row.step, tokens=row.tokens,
                 eval_loss=finite(row.eval_loss), is_own=is_own,
                 continues_text=row.stage in queries.CONTINUES_TEXT)
