"""Every move of a run, and every event, goes through here.

``state`` is what is, ``desired`` what the user wants. A move is one guarded UPDATE (``WHERE id AND state AND
attempt``): of two writers that disagree one wins and the other hears ``False``. The event of a move, the end of
a lease and the next run of a pipeline are written in the same transaction, so nobody ever sees one without the
other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import delete, insert, update

from app.core import channels, inputs
from app.core.db import Session, now
from app.core.errors import Conflict, Invalid
from app.core.models import (
    LEASED_STATES,
    TERMINAL_STATES,
    Attempt,
    DeviceLease,
    Event,
    Pipeline,
    Run,
)

#: from -> to; what is not here does not happen
MOVES: dict[str, frozenset[str]] = {
    "queued": frozenset({"starting", "paused", "cancelled"}),
    "starting": frozenset({"running", "pausing", "failed", "recovering", "cancelling"}),
    "running": frozenset({"pausing", "completed", "failed", "recovering", "cancelling"}),
    "pausing": frozenset({"paused", "queued", "running", "completed", "failed", "recovering", "cancelling"}),
    "paused": frozenset({"queued", "cancelled"}),
    "recovering": frozenset({"queued", "paused", "cancelled", "completed", "failed",
                             "running", "pausing", "cancelling"}),
    "cancelling": frozenset({"cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
#: states in which no process of the run is left, so its devices are free and its attempt is closed
SETTLED_STATES = ("queued", "paused", *TERMINAL_STATES)


class IllegalMove(AssertionError):
    """The caller asked for a move that the table of docs/architecture.md does not have: our mistake."""


class IllegalWish(Conflict):
    """The user's wish makes no sense in the present state (409, with the state)."""

    def __init__(self, wish: str, state: str):
        super().__init__(f"A run that is {state} cannot be {wish}.", field="state",
                         hint=f"Its present state is {state}.")
        self.state = state


class Fenced(Exception):
    """The attempt of this writer is no longer the run's: it must change nothing and end itself."""


def move(session: Session, run: Run, to: str, *, expected_state: str | None = None, attempt: int | None = None,
         reason: str | None = None, error: dict | None = None, data: dict | None = None,
         values: dict[str, Any] | None = None) -> bool:
    """Move ``run`` to ``to`` if it still is in ``expected_state`` with ``attempt`` (default: as ``run`` says).

    ``data`` goes into the event, ``values`` into further columns of the row (a claim sets its lease with it).
    Returns False, changing nothing, where another writer was faster; ``run`` then shows what it is now.
    """
    session.flush()
    before = expected_state or run.state
    expected_attempt = run.attempt if attempt is None else attempt
    if to not in MOVES[before]:
        raise IllegalMove(f"{before} -> {to}")
    at = now(session)
    columns: dict[str, Any] = {"state": to, "updated_at": at, "reason": reason, **(values or {})}
    if to not in LEASED_STATES:
        columns |= {"lease_owner": None, "lease_host": None, "lease_expires_at": None}
    if to in TERMINAL_STATES:
        columns["ended_at"] = at
    if to == "queued" and before == "paused":
        columns |= {"queued_at": at, "queue_key": at}  # a run that was interrupted keeps its place instead
    if error is not None:
        columns["error"] = error
    changed = session.execute(
        update(Run).where(Run.id == run.id, Run.state == before, Run.attempt == expected_attempt).values(columns),
        execution_options={"synchronize_session": False}).rowcount
    session.refresh(run)
    if changed != 1:
        return False
    if to in SETTLED_STATES:
        close_attempt(session, run)
    append_event(session, f"run:{run.id}", "state", attempt=run.attempt, step=int(run.progress.get("step") or 0),
                 tokens=int(run.progress.get("tokens") or 0), t=at,
                 data={"state": to, "from": before, "desired": run.desired}
                 | ({"reason": reason} if reason else {}) | ({"error": error} if error else {}) | (data or {}))
    if run.pipeline_id is not None:
        from app.core.lines import on_run_moved  # the line of stages needs `move` too

        on_run_moved(session, run)
    return True


def close_attempt(session: Session, run: Run) -> None:
    """The processes of the run's last attempt are proven gone (or never were): free its devices."""
    session.execute(delete(DeviceLease).where(DeviceLease.run_id == run.id))
    session.execute(update(Attempt).where(Attempt.run_id == run.id, Attempt.state != "closed")
                    .values(state="closed", ended_at=now(session)), execution_options={"synchronize_session": False})


def append_event(session: Session, topic: str, type: str, *, attempt: int = 0, step: int = 0, tokens: int = 0,
                 data: dict | None = None, t: float | None = None) -> int:
    """Append one event to ``topic`` and return its ``seq`` (dense: 1, 2, 3 ... in the order of the commits)."""
    at = now(session) if t is None else t
    return append_events(session, topic, [{"attempt": attempt, "t": at, "type": type, "step": step,
                                           "tokens": tokens, "data": data or {}}])


def append_events(session: Session, topic: str, events: Iterable[dict], *, attempt: int | None = None) -> int:
    """Append ``{attempt, t, type, step, tokens, data}`` rows; returns the last ``seq``.

    The numbers come from the topic's own row, which stays locked until the commit: dense, and no reader can see
    a later one before an earlier one. With ``attempt``, raises ``Fenced`` where that is not the run's attempt.
    """
    rows = list(events)
    kind, _, id = topic.partition(":")
    owner = {"run": Run, "pipeline": Pipeline}[kind]
    guard = [owner.id == id] + ([Run.attempt == attempt] if attempt is not None else [])
    following = session.execute(
        update(owner).where(*guard).values(next_seq=owner.next_seq + len(rows)).returning(owner.next_seq),
        execution_options={"synchronize_session": False}).scalar()
    if following is None:
        raise Fenced(f"{topic}: attempt {attempt} is not the present one")
    first = following - len(rows)
    if rows:
        session.execute(insert(Event), [{"topic": topic, "seq": first + i, **row} for i, row in enumerate(rows)])
    last = following - 1
    session.after_commit(lambda: channels.notify(topic, last), key=("notify", topic))
    return last


def ring_after_commit(session: Session, kind: str = "run") -> None:
    """Wake the workers once this transaction is committed."""
    session.after_commit(lambda: channels.ring(kind), key=("ring", kind))


def enqueue_run(session: Session, run: Run, *, state: str = "queued") -> Run:
    """Add a new run; it is found by the workers as soon as this commits (they are rung then).

    ``state`` is ``paused`` for a run whose pipeline is paused.
    """
    at = now(session)
    run.state, run.desired = state, "pause" if state == "paused" else "run"
    run.created_at = run.updated_at = run.queued_at = run.queue_key = at
    session.add(run)
    session.flush()
    append_event(session, f"run:{run.id}", "state", t=at, data={"state": state, "from": None, "desired": run.desired})
    ring_after_commit(session)
    return run


# -- wishes -----------------------------------------------------------------------------------------------------
# The web process calls these. Where a runner holds the run they only write the wish: the runner is rung and
# makes the move itself, so that a state never says what no process has begun to do. A cancel is the exception: it
# is for good, so it moves the run at once, and no later pause or resume can slip in before the runner has heard it.


def request_pause(session: Session, run: Run) -> Run:
    """Save and stop, keep everything. 409 once it is cancelled or has ended; else the wish stands."""
    _lock(session, run)
    if run.desired == "cancel" or run.state in TERMINAL_STATES:
        raise IllegalWish("paused", run.state)
    if run.desired != "pause":
        _wish(session, run, desired="pause")
    if run.state == "queued" or (run.state == "recovering" and is_settled(session, run)):
        move(session, run, "paused", reason="user")
    return run


def request_resume(session: Session, run: Run, allow_changes: bool = False) -> Run:
    """Go on from the last checkpoint. 409 once it is cancelled or has ended; 422 where what it stands on is gone or
    has changed; else the wish stands."""
    _lock(session, run)
    if run.desired == "cancel" or run.state in TERMINAL_STATES:
        raise IllegalWish("resumed", run.state)
    if run.desired != "run" or (allow_changes and not run.allow_changes):
        _wish(session, run, desired="run", allow_changes=run.allow_changes or allow_changes)
    if run.state == "paused":
        wrong = inputs.problem(session, run)
        if wrong is not None:
            raise Invalid(wrong["message"], field=wrong["field"], hint=wrong["hint"])
        move(session, run, "queued", values={"fruitless_attempts": 0, "not_before": None, "error": None})
        ring_after_commit(session)
    return run


def request_cancel(session: Session, run: Run, save: bool = False) -> Run:
    """Stop for good; existing checkpoints stay, and one more is made if ``save``. 409 in completed and failed."""
    _lock(session, run)
    if run.state in ("completed", "failed"):
        raise IllegalWish("cancelled", run.state)
    if run.state == "cancelled":
        return run
    if run.desired != "cancel":
        _wish(session, run, desired="cancel", save_on_stop=save)
    if run.state in ("queued", "paused") or (run.state == "recovering" and is_settled(session, run)):
        move(session, run, "cancelled", reason="user")
    elif run.state in ("starting", "running", "pausing"):
        move(session, run, "cancelling", reason="user")
    return run


def request_sample(session: Session, run: Run) -> Run:
    """Let the model that is being trained answer its prompts after the present step. 409 where nothing is trained."""
    _lock(session, run)
    if run.stage in ("tokenizer", "import"):
        raise Conflict("This run trains no model that could speak.", field="stage")
    if run.state not in ("starting", "running") or run.desired != "run":
        raise Conflict(f"A run that is {run.state} is not being trained, so it says nothing new.", field="state",
                       hint="Chat with one of its checkpoints.")
    _wish(session, run, samples_asked=run.samples_asked + 1)
    return run


def is_settled(session: Session, run: Run) -> bool:
    """Whether no attempt of the run is open: nothing of it can still be alive."""
    return session.query(Attempt).filter(Attempt.run_id == run.id, Attempt.state != "closed").count() == 0


def _lock(session: Session, run: Run) -> None:
    """Read the row again, locked until the commit (SQLite: the whole database already is)."""
    session.flush()
    session.refresh(run, with_for_update=True)


def _wish(session: Session, run: Run, **values: Any) -> None:
    for name, value in values.items():
        setattr(run, name, value)
    run.updated_at = now(session)
    session.flush()
    run_id = run.id
    session.after_commit(lambda: channels.wake_runner(run_id), key=("wake", run_id))
