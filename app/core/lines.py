"""Pipelines: a line of stages, each starting from what the one before has made.

The next run is created in the transaction that completes the one before it, so a line never stands still
between two stages and never starts one twice. Rows are always locked in the order run, then pipeline.

A stage as stored in ``pipeline.stages``: ``{"stage", "config", "dataset_id"?, "gate"?, "devices"?}``. A gate,
``{"eval_loss": x}`` (or ``loss``), lets the line go on only if that number of the stage's last checkpoint is at
most ``x``; else the line is paused, and ``resume`` trains that stage once more on top of what it has.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from app.core.db import Session, now
from app.core.errors import Conflict
from app.core.models import TERMINAL_STATES, Checkpoint, Pipeline, Run, TokenizerRow, new_id
from app.core.states import append_event, enqueue_run, request_cancel, request_pause, request_resume

GATE_KEYS = ("eval_loss", "loss")


def start(session: Session, pipeline: Pipeline) -> Run:
    """Add ``pipeline`` with its first run."""
    pipeline.state = "running"
    pipeline.created_at = now(session)
    session.add(pipeline)
    session.flush()
    _say(session, pipeline, {"state": "running"})
    return _create_run(session, pipeline, 0, None)


def runs_of(session: Session, pipeline_id: str) -> list[Run]:
    """Every run of the line in the order they were made, earlier tries of a stage included."""
    return list(session.scalars(select(Run).where(Run.pipeline_id == pipeline_id).order_by(Run.created_at, Run.id)))


def on_run_moved(session: Session, run: Run) -> None:
    """``states.move`` calls this for each move of a run of a pipeline, in the same transaction."""
    pipeline = session.get(Pipeline, run.pipeline_id, with_for_update=True, populate_existing=True)
    append_event(session, f"pipeline:{pipeline.id}", "run", attempt=run.attempt,
                 data={"run_id": run.id, "position": run.pipeline_position, "stage": run.stage, "state": run.state})
    if run.pipeline_position is None or pipeline.state in TERMINAL_STATES:
        return
    if run.state == "completed":
        _advance(session, pipeline, run)
    elif run.state == "failed":
        _set(session, pipeline, "failed", error=run.error)
    elif run.state == "cancelled":
        _set(session, pipeline, "cancelled")
    elif run.state == "paused" and pipeline.state == "running":
        _set(session, pipeline, "paused")
    elif run.state == "queued" and pipeline.state == "paused" and run.desired == "run":
        _set(session, pipeline, "running")


def _advance(session: Session, pipeline: Pipeline, run: Run) -> None:
    problem = _gate_problem(session, pipeline.stages[run.pipeline_position].get("gate"), run)
    if problem is not None:
        _set(session, pipeline, "paused", error=problem)
    elif run.pipeline_position + 1 < len(pipeline.stages):
        _create_run(session, pipeline, run.pipeline_position + 1, run)
    else:
        _set(session, pipeline, "completed")


def last_checkpoint(session: Session, run_id: str) -> Checkpoint | None:
    """The newest usable checkpoint of a run."""
    return session.scalar(select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.state == "ready")
                          .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc()).limit(1))


def _create_run(session: Session, pipeline: Pipeline, position: int, before: Run | None) -> Run:
    """The run of stage ``position``, starting from the run ``before``."""
    stage = pipeline.stages[position]
    base = last_checkpoint(session, before.id) if before is not None else None
    tokenizer_id = before.tokenizer_id if before is not None else None
    if before is not None and before.stage == "tokenizer":
        # the runner files the tokenizer of such a run under the run's own id
        tokenizer_id = before.id if session.get(TokenizerRow, before.id) else None
    base_id = base.id if base is not None else (before.base_checkpoint_id if before is not None else None)
    run = Run(id=new_id(), name=f"{pipeline.name}: {stage['stage']}"[:200], stage=stage["stage"], notes="", tags=[],
              config=stage["config"], devices=stage.get("devices") or "auto", nodes=1, user_id=pipeline.user_id,
              dataset_id=stage.get("dataset_id"), base_checkpoint_id=base_id,
              tokenizer_id=stage.get("tokenizer_id") or (None if base_id else tokenizer_id),
              pipeline_id=pipeline.id, pipeline_position=position, attempt=0, fruitless_attempts=0, priority=0,
              save_on_stop=False, allow_changes=False, progress={}, next_seq=1)
    enqueue_run(session, run, state="paused" if pipeline.state == "paused" else "queued")
    append_event(session, f"pipeline:{pipeline.id}", "run",
                 data={"run_id": run.id, "position": position, "stage": run.stage, "state": run.state})
    return run


def _gate_problem(session: Session, gate: dict | None, run: Run) -> dict | None:
    """Why the line stops after ``run``, as an error to show; None where it goes on."""
    checkpoint = last_checkpoint(session, run.id)
    for key, limit in (gate or {}).items():
        value = getattr(checkpoint, key, None) if checkpoint is not None and key in GATE_KEYS else None
        if value is None or not value <= limit:
            return {"class": "GATE",
                    "message": f"The line stopped after {run.stage}: {key} is "
                               f"{'unknown' if value is None else format(value, '.4g')}, asked for at most {limit:g}.",
                    "hint": "Resume trains this stage once more from its last checkpoint."}
    return None


# -- wishes -------------------------------------------------------------------------------------------------------


def request_pause_line(session: Session, pipeline: Pipeline) -> Pipeline:
    run = _lock(session, pipeline)
    if pipeline.state in TERMINAL_STATES:
        raise _conflict("paused", pipeline.state)
    if pipeline.state != "paused":  # else the wish stands already, with the reason why
        _set(session, pipeline, "paused")
    if run is not None and run.state != "cancelling":
        request_pause(session, run)
    return pipeline


def request_resume_line(session: Session, pipeline: Pipeline) -> Pipeline:
    """Go on; a line that failed or was stopped by a gate tries that stage again."""
    run = _lock(session, pipeline)
    if pipeline.state in ("completed", "cancelled"):
        raise _conflict("resumed", pipeline.state)
    if run is not None and run.state == "cancelling":
        raise _conflict("resumed", run.state)
    again = run is None
    _set(session, pipeline, "running")
    if again:
        _try_again(session, pipeline)
    else:
        request_resume(session, run)
    return pipeline


def request_cancel_line(session: Session, pipeline: Pipeline, save: bool = False) -> Pipeline:
    run = _lock(session, pipeline)
    if pipeline.state in ("completed", "failed"):
        raise _conflict("cancelled", pipeline.state)
    if pipeline.state != "cancelled":
        _set(session, pipeline, "cancelled")
        if run is not None:
            request_cancel(session, run, save)
    return pipeline


def _try_again(session: Session, pipeline: Pipeline) -> None:
    """A new run of the last stage that was tried: on the same base after a failure, on top of what it has
    learnt after a gate. The old run leaves its place in the line to the new one and stays in the list."""
    tried = session.scalar(select(Run).where(Run.pipeline_id == pipeline.id, Run.pipeline_position.is_not(None))
                           .order_by(Run.pipeline_position.desc()).limit(1))
    if tried is None:
        raise Conflict("The runs of this pipeline were deleted.", hint="Start a new pipeline.")
    position = tried.pipeline_position
    before = tried if tried.state == "completed" else session.scalar(
        select(Run).where(Run.pipeline_id == pipeline.id, Run.pipeline_position == position - 1))
    if before is None and position > 0:
        raise Conflict("The run that this stage starts from was deleted.", hint="Start a new pipeline.")
    tried.pipeline_position = None
    session.flush()
    _create_run(session, pipeline, position, before)


def _lock(session: Session, pipeline: Pipeline) -> Run | None:
    """Lock the line and its live run (run first), read both again; the run is None where none is live."""
    session.flush()
    live = select(Run).where(Run.pipeline_id == pipeline.id, Run.state.not_in(TERMINAL_STATES))
    while True:
        run = session.scalar(live.with_for_update().execution_options(populate_existing=True))
        # PostgreSQL: where the lock was waited for and its run has completed meanwhile, the run that this made is
        # seen by a new statement only
        seen = session.scalar(live.with_only_columns(Run.id))
        if seen == (run.id if run is not None else None):
            break
    session.refresh(pipeline, with_for_update=True)
    return run


def _conflict(wish: str, state: str) -> Conflict:
    return Conflict(f"A pipeline that is {state} cannot be {wish}.", field="state",
                    hint=f"Its present state is {state}.")


def _set(session: Session, pipeline: Pipeline, state: str, error: dict | None = None) -> None:
    if pipeline.state == state and pipeline.error == error:
        return
    pipeline.state, pipeline.error = state, error
    pipeline.ended_at = now(session) if state in TERMINAL_STATES else None
    session.flush()
    _say(session, pipeline, {"state": state} | ({"error": error} if error else {}))


def _say(session: Session, pipeline: Pipeline, data: dict[str, Any]) -> None:
    append_event(session, f"pipeline:{pipeline.id}", "state", data=data)
