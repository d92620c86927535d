"""The order of the queue, as people change it: one run up, down, first or last.

A move writes the moved run alone, so it takes nothing from anybody else's, except where the room between two keys is
used up (``_make_room``). Moves are made one after the other: the
installation's row is locked first, then the run's; a claim locks neither of the two in another order.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import and_, bindparam, or_, select, update

from app.core.db import Session, now
from app.core.models import Installation, Run
from app.core.queue import QUEUE_ORDER
from app.core.states import IllegalWish, ring_after_commit

Direction = Literal["up", "down", "first", "last"]
#: how far in front of the first or behind the last one a run is put (keys are seconds); also the room after a renewal
STEP = 0.001


def move(session: Session, run: Run, to: Direction) -> Run:
    """Give ``run`` another place; past a neighbour of another priority it takes that priority.

    A run that is where it was asked to go stays as it is. Raises ``IllegalWish`` (409) where it is not queued.
    """
    session.flush()
    session.execute(select(Installation.id).with_for_update())
    session.refresh(run, with_for_update=True)
    if run.state != "queued":
        raise IllegalWish("moved in the queue", run.state)
    place = _place(session, run, to)
    if place is None:
        return run
    run.priority, run.queue_key = place
    run.updated_at = now(session)
    session.flush()
    ring_after_commit(session)
    return run


def _place(session: Session, run: Run, to: Direction) -> tuple[int, float] | None:
    """Priority and key of the new place; None where there is nobody to pass."""
    ahead = to in ("up", "first")
    for _ in range(2):  # the second time there is room between any two
        passed = _neighbours(session, run, ahead, whole=to in ("first", "last"))
        if not passed:
            return None
        nearest, beyond = passed[0], passed[1] if len(passed) > 1 else None
        if beyond is None or beyond.priority != nearest.priority:
            return nearest.priority, nearest.queue_key + (-STEP if ahead else STEP)
        between = (nearest.queue_key + beyond.queue_key) / 2
        if min(nearest.queue_key, beyond.queue_key) < between < max(nearest.queue_key, beyond.queue_key):
            return nearest.priority, between
        _make_room(session, nearest.priority)
        session.refresh(run)
    raise AssertionError("keys that were just spread out have room between them")


def _neighbours(session: Session, run: Run, ahead: bool, whole: bool) -> list[Any]:
    """The queued run next to ``run`` on one side and the one beyond it; ``whole``: the one at that end alone."""
    after = or_(Run.priority < run.priority, and_(Run.priority == run.priority, or_(
        Run.queue_key > run.queue_key, and_(Run.queue_key == run.queue_key, Run.id > run.id))))
    before = or_(Run.priority > run.priority, and_(Run.priority == run.priority, or_(
        Run.queue_key < run.queue_key, and_(Run.queue_key == run.queue_key, Run.id < run.id))))
    backwards = (Run.priority, Run.queue_key.desc(), Run.id.desc())
    in_order = ahead == whole  # the first of all, or the next one behind; else the last of all, or the one in front
    query = select(Run.id, Run.priority, Run.queue_key).where(Run.state == "queued", before if ahead else after)
    return list(session.execute(query.order_by(*(QUEUE_ORDER if in_order else backwards)).limit(1 if whole else 2)))


def _make_room(session: Session, priority: int) -> None:
    """Spread the keys of one priority: so many moves between the same two have used up what lies between them."""
    rows = session.execute(select(Run.id, Run.queue_key).where(Run.state == "queued", Run.priority == priority)
                           .order_by(*QUEUE_ORDER)).all()
    first, table = rows[0].queue_key, Run.__table__
    session.connection().execute(
        update(table).where(table.c.id == bindparam("row"), table.c.state == "queued")
        .values(queue_key=bindparam("key")),
        [{"row": row.id, "key": first + number * STEP} for number, row in enumerate(rows)])
