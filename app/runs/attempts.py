"""The attempts of a run: where each one ran, from what step, and how it ended."""

from __future__ import annotations

from sqlalchemy import select

from app.core.db import Session
from app.core.models import Attempt, Event, Host
from app.core.rest import rfc3339
from app.runs.schemas import AttemptOut
from minimind.events import finite

#: state of the run behind an attempt that ended without an error -> what the attempt came to
_OUTCOMES = {"completed": "completed", "cancelled": "stopped", "paused": "paused", "queued": "handed back",
             "failed": "failed"}


def of_run(session: Session, run_id: str) -> list[AttemptOut]:
    """Every attempt, the newest first."""
    rows = session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number.desc())).all()
    devices = _devices(session, run_id) if rows else {}
    names = dict(session.execute(select(Host.id, Host.name).where(Host.id.in_({r.host_id for r in rows}))).all())
    return [_shown(row, names.get(row.host_id, row.host_id), devices.get(row.number)) for row in rows]


def _devices(session: Session, run_id: str) -> dict[int, list[str]]:
    """Attempt -> the devices that its claim took; the leases themselves are gone when it has ended."""
    events = session.scalars(select(Event).where(Event.topic == f"run:{run_id}", Event.type == "state")
                             .order_by(Event.seq))
    return {event.attempt: event.data["devices"] for event in events if event.data.get("devices")}


def _shown(row: Attempt, host: str, devices: list[str] | None) -> AttemptOut:
    error = None if row.error is None else {"class": None, "message": "", "hint": None} | finite(row.error)
    return AttemptOut(
        number=row.number, state=row.state, outcome=_outcome(row), host_id=row.host_id, host=host, devices=devices,
        world_size=row.world_size, resumed_from_step=row.resumed_from_step, started_at=rfc3339(row.started_at),
        ended_at=rfc3339(row.ended_at), error=error)


def _outcome(row: Attempt) -> str:
    """What it came to; ``interrupted`` where an error ended it and the run did not fail."""
    if row.state != "closed":
        return "running" if row.state == "open" else "lost"
    became = (row.result or {}).get("state")
    if row.error is not None:
        return "failed" if became == "failed" else "interrupted"
    return _OUTCOMES.get(became, "ended")
