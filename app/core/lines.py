"""Pipelines: a line of stages, each starting from what the one before has made, or from what it names.

The next run is created in the transaction that completes the one before it, so a line never stands still
between two stages and never starts one twice. Rows are always locked in the order run, then pipeline.

A stage as stored in ``pipeline.stages``: ``{"stage", "config", "title"?, "dataset_id"?, "gate"?, "devices"?,
"from_stage"?, "teacher_stage"?}``. ``from_stage`` is the position of the stage whose last checkpoint it starts from, -1
for random weights; without it that is the stage before. ``teacher_stage`` is the position of the stage whose last
checkpoint teaches it. A stage with random weights has the tokenizer of the last ``tokenizer`` stage before it.

A gate names numbers and their bounds (``GATES``), such as ``{"eval_loss": 2.5}``: the line goes on only if the stage
has kept them all; else it is paused, and ``resume`` trains that stage once more on top of what it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from app.core.db import Session, now
from app.core.errors import Conflict
from app.core.models import TERMINAL_STATES, Checkpoint, Dataset, Event, Pipeline, Run, TokenizerRow, new_id
from app.core.states import append_event, enqueue_run, request_cancel, request_pause, request_resume

#: numbers that a gate may look at, and on which side of its bound they must be. The losses are those of the last
#: checkpoint; ``reward_accuracy``, the share of held-out pairs whose preferred answer has the larger reward, is that of
#: the last evaluation.
GATES = {"eval_loss": "most", "loss": "most", "reward_accuracy": "least"}
OF_CHECKPOINT = ("eval_loss", "loss")
RANDOM_WEIGHTS = -1


def start(session: Session, pipeline: Pipeline) -> Run:
    """Add ``pipeline`` with its first run."""
    pipeline.state = "running"
    pipeline.created_at = now(session)
    session.add(pipeline)
    session.flush()
    _say(session, pipeline, {"state": "running"})
    return _create_run(session, pipeline, 0)


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
        try:
            _create_run(session, pipeline, run.pipeline_position + 1)
        except Conflict as error:  # its files went meanwhile: the run that has completed stays completed
            _set(session, pipeline, "failed",
                 error={"class": "CHECKPOINT", "message": error.message, "hint": error.hint})
    else:
        _set(session, pipeline, "completed")


def last_checkpoint(session: Session, run_id: str) -> Checkpoint | None:
    """The newest usable checkpoint of a run."""
    return session.scalar(select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.state == "ready")
                          .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc()).limit(1))


def starts_from(position: int, from_stage: int | None) -> int:
    """Position of the stage that stage ``position`` starts from; -1 where it starts from nothing."""
    return position - 1 if from_stage is None else from_stage


def tokenizer_stage(stages: Sequence[str], position: int) -> int | None:
    """Position of the last ``tokenizer`` stage before ``position``: its vocabulary is that of new weights."""
    return next((i for i in reversed(range(position)) if stages[i] == "tokenizer"), None)


def _create_run(session: Session, pipeline: Pipeline, position: int, again: Run | None = None) -> Run:
    """The run of stage ``position``, on top of ``again`` where that is an earlier try of the same stage. Raises
    ``Conflict`` where what it stands on is gone."""
    stage = pipeline.stages[position]
    if stage.get("dataset_id") is not None and session.get(Dataset, stage["dataset_id"]) is None:
        raise Conflict("The dataset of the next stage is not there any more.", hint="Start a new pipeline.")
    before = again or _run_at(session, pipeline, starts_from(position, stage.get("from_stage")))
    run = Run(id=new_id(), name=f"{pipeline.name}: {stage.get('title') or stage['stage']}"[:200], stage=stage["stage"],
              notes="", tags=[], config=stage["config"], devices=stage.get("devices") or "auto", nodes=1,
              user_id=pipeline.user_id, dataset_id=stage.get("dataset_id"), pipeline_id=pipeline.id,
              pipeline_position=position, attempt=0, fruitless_attempts=0, priority=0, save_on_stop=False,
              allow_changes=False, progress={}, next_seq=1, **_stands_on(session, pipeline, position, before))
    enqueue_run(session, run, state="paused" if pipeline.state == "paused" else "queued")
    append_event(session, f"pipeline:{pipeline.id}", "run",
                 data={"run_id": run.id, "position": position, "stage": run.stage, "state": run.state})
    return run


def _stands_on(session: Session, pipeline: Pipeline, position: int, before: Run | None) -> dict[str, str | None]:
    """Ids of the base checkpoint, the teacher and the tokenizer of stage ``position``, which starts from ``before``."""
    stages = pipeline.stages
    teacher_at = stages[position].get("teacher_stage")
    teacher = None if teacher_at is None else _weights_of(session, _run_at(session, pipeline, teacher_at))
    base = tokenizer = None
    if stages[position]["stage"] == "tokenizer":
        pass  # it learns from texts alone
    elif before is not None and before.stage != "tokenizer":
        base = _weights_of(session, before)
    else:
        made_by = before or _run_at(session, pipeline, tokenizer_stage([s["stage"] for s in stages], position))
        # the runner files the tokenizer of such a run under the run's own id
        tokenizer = made_by.id if made_by is not None and session.get(TokenizerRow, made_by.id) else None
    return {"base_checkpoint_id": base, "teacher_checkpoint_id": teacher,
            "tokenizer_id": stages[position].get("tokenizer_id") or tokenizer}


def _run_at(session: Session, pipeline: Pipeline, position: int | None) -> Run | None:
    """The last try of stage ``position``; None for no stage. Raises ``Conflict`` where it was deleted."""
    if position is None or position == RANDOM_WEIGHTS:
        return None
    run = session.scalar(select(Run).where(Run.pipeline_id == pipeline.id, Run.pipeline_position == position))
    if run is None:
        raise Conflict("A run that this stage stands on was deleted.", hint="Start a new pipeline.")
    return run


def _weights_of(session: Session, run: Run) -> str:
    checkpoint = last_checkpoint(session, run.id)
    if checkpoint is None:
        raise Conflict(f"The run {run.name!r}, which the next stage stands on, has no usable checkpoint any more.",
                       hint="Start a new pipeline.")
    return checkpoint.id


def measured(session: Session, wanted: Mapping[str, Collection[str]]) -> dict[str, dict[str, float | None]]:
    """What gates look at: of runs that have ended, by id, the numbers that are ``wanted``; None where one was not
    measured."""
    losses = {}
    with_checkpoint = [id for id, keys in wanted.items() if not set(OF_CHECKPOINT).isdisjoint(keys)]
    columns = (getattr(Checkpoint, key) for key in OF_CHECKPOINT)
    for row in session.execute(select(Checkpoint.run_id, *columns).where(
            Checkpoint.run_id.in_(with_checkpoint), Checkpoint.state == "ready")
            .order_by(Checkpoint.step, Checkpoint.attempt)) if with_checkpoint else ():
        losses[row.run_id] = row._asdict()  # that of the last one stays
    found = {}
    for id, keys in wanted.items():
        evaluated = _last_evaluation(session, id) if not set(OF_CHECKPOINT).issuperset(keys) else {}
        found[id] = {key: losses.get(id, {}).get(key) if key in OF_CHECKPOINT else evaluated.get(f"eval_{key}")
                     for key in keys}
    return found


def _last_evaluation(session: Session, run_id: str) -> dict:
    return session.scalar(select(Event.data).where(Event.topic == f"run:{run_id}", Event.type == "eval")
                          .order_by(Event.seq.desc()).limit(1)) or {}


def measured_by_gates(session: Session, pipelines: Sequence[Pipeline],
                      runs: Iterable[Run]) -> dict[str, list[dict[str, float | None]]]:
    """By pipeline, for each of its stages what the gate saw, by the gate's keys; empty where it has none or has not
    completed. ``runs`` are those of all these pipelines."""
    gates = {line.id: [stage.get("gate") or {} for stage in line.stages] for line in pipelines}
    ended = {(run.pipeline_id, run.pipeline_position): run.id for run in runs
             if run.state == "completed" and run.pipeline_position is not None}
    saw = measured(session, {id: gates[line][position] for (line, position), id in ended.items()})
    return {line: [saw[ended[line, at]] if (line, at) in ended else {} for at in range(len(of_line))]
            for line, of_line in gates.items()}


def passes(key: str, limit: float, value: float | None) -> bool:
    """Whether a gate lets ``value`` through; what is unknown or not a number does not pass."""
    return value is not None and (value >= limit if GATES.get(key) == "least" else value <= limit)


def _gate_problem(session: Session, gate: dict | None, run: Run) -> dict | None:
    """Why the line stops after ``run``, as an error to show; None where it goes on."""
    saw = measured(session, {run.id: gate or {}})[run.id]
    for key, limit in (gate or {}).items():
        value = saw[key]
        if not passes(key, limit, value):
            return {"class": "GATE",
                    "message": f"The line stopped after {run.stage}: {key} is "
                               f"{'unknown' if value is None else format(value, '.4g')}, asked for at "
                               f"{GATES.get(key, 'most')} {limit:g}.",
                    "hint": "Resume trains this stage once more from its last checkpoint." if value is not None else
                            "Nobody measured it: perhaps there are too few rows to hold some out. Cancel the line, and "
                            "start one with more data or without this gate."}
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
    """Stop for good; of a line that failed this means that nobody will try again, so its runs may be deleted."""
    run = _lock(session, pipeline)
    if pipeline.state == "completed":
        raise _conflict("cancelled", pipeline.state)
    if pipeline.state != "cancelled":
        _set(session, pipeline, "cancelled", error=pipeline.error if pipeline.state == "failed" else None)
        if run is not None:
            request_cancel(session, run, save)
    return pipeline


def _try_again(session: Session, pipeline: Pipeline) -> None:
    """A new run of the last stage that was tried: on the same base after a failure, on top of what it has
    learnt after a gate. The old run leaves its place in the line to the new one and stays in the list. Where the
    stage is done and the next one lacked what it stands on, that is tried. Raises ``Conflict`` where it still does."""
    tried = session.scalar(select(Run).where(Run.pipeline_id == pipeline.id, Run.pipeline_position.is_not(None))
                           .order_by(Run.pipeline_position.desc()).limit(1))
    if tried is None:
        raise Conflict("The runs of this pipeline were deleted.", hint="Start a new pipeline.")
    position = tried.pipeline_position
    is_done = tried.state == "completed"
    if is_done and _gate_problem(session, pipeline.stages[position].get("gate"), tried) is None:
        _create_run(session, pipeline, position + 1)  # it is the next one that could not be made
        return
    tried.pipeline_position = None
    session.flush()
    _create_run(session, pipeline, position, tried if is_done else _went_on_from(session, tried))


def _went_on_from(session: Session, run: Run) -> Run | None:
    """The earlier try of its stage on top of which ``run`` was made; None where it began at the stage before."""
    base = session.get(Checkpoint, run.base_checkpoint_id) if run.base_checkpoint_id is not None else None
    before = session.get(Run, base.run_id) if base is not None else None
    is_try = before is not None and before.pipeline_id == run.pipeline_id and before.pipeline_position is None
    return before if is_try and last_checkpoint(session, before.id) is not None else None


def _lock(session: Session, pipeline: Pipeline) -> Run | None:
    """Lock the line and its live run (run first), read both again; the run is None where none is live."""
    session.flush()
    live = select(Run).where(Run.pipeline_id == pipeline.id, Run.state.not_in(TERMINAL_STATES))
    while True:
        run = session.scalar(live.with_for_update().execution_options(populate_existing=True))
        # PostgreSQL: where a lock was waited for, here or below, and the live run has completed or been made meanwhile,
        # that is seen by a new statement only. A run is locked in front of its line, so the line is let go again.
        with session.begin_nested() as point:
            session.refresh(pipeline, with_for_update=True)
            if session.scalar(live.with_only_columns(Run.id)) == (run.id if run is not None else None):
                return run
            point.rollback()


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
