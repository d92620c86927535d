"""What users do to runs. Each function works in the caller's transaction and never touches a process."""

from __future__ import annotations

import shutil
from typing import Any

from sqlalchemy import delete, select

from app.core.db import Session, now
from app.core.errors import Conflict
from app.core.logging import get_logger
from app.core.models import TERMINAL_STATES, Checkpoint, Event, Job, Pipeline, Run, new_id
from app.core.queue import ring_after_commit
from app.core.rest import get_or_404
from app.core.settings import get_settings
from app.core.states import enqueue_run
from app.runs.checks import Checked, check
from app.runs.preflight import refuse_if_disk_is_too_small
from app.runs.schemas import Clone, RunCreate, RunPatch

log = get_logger(__name__)


def get_run(session: Session, id: str) -> Run:
    return get_or_404(session, Run, id, "run")


def create(session: Session, user_id: str, asked: RunCreate) -> Run:
    """Check the request and queue the run. Raises ``Invalid`` with every problem, or ``DiskFull``."""
    checked = check(session, stage=asked.stage, config=asked.config, dataset_id=asked.dataset_id,
                    base_checkpoint_id=asked.base_checkpoint_id, teacher_checkpoint_id=asked.teacher_checkpoint_id,
                    devices=asked.devices, nodes=asked.nodes, problems=asked.problems)
    return _enqueue(session, user_id, asked.stage, checked, name=asked.name, priority=asked.priority,
                    tags=asked.tags, notes=asked.notes)


def clone(session: Session, user_id: str, original: Run, changes: Clone) -> Run:
    """The same again as a run of its own, with some keys of the configuration changed; it starts from step 0."""
    config = {k: v for k, v in original.config.items() if v is not None} | changes.config
    if config.get("tokenizer") is None and original.tokenizer_id and not original.base_checkpoint_id:
        config["tokenizer"] = original.tokenizer_id
    checked = check(session, stage=original.stage, config=config, dataset_id=original.dataset_id,
                    base_checkpoint_id=original.base_checkpoint_id,
                    teacher_checkpoint_id=original.teacher_checkpoint_id, devices=original.devices,
                    nodes=original.nodes)
    priority = original.priority if changes.priority is None else changes.priority
    return _enqueue(session, user_id, original.stage, checked, name=changes.name or f"{original.name} (copy)"[:200],
                    priority=priority, tags=list(original.tags), notes=original.notes, parent_id=original.id)


def _enqueue(session: Session, user_id: str, stage: str, checked: Checked, *, name: str | None,
             **values: Any) -> Run:
    refuse_if_disk_is_too_small(checked)
    id = new_id()
    return enqueue_run(session, Run(
        id=id, name=name or f"{stage} {id[:5]}", user_id=user_id, stage=stage, config=checked.config.api_dict(),
        devices=checked.devices, nodes=1, dataset_id=checked.dataset.id if checked.dataset else None,
        base_checkpoint_id=checked.base.id if checked.base else None,
        teacher_checkpoint_id=checked.teacher.id if checked.teacher else None,
        tokenizer_id=checked.tokenizer.id if checked.tokenizer else None,
        attempt=0, fruitless_attempts=0, save_on_stop=False, allow_changes=False, progress={}, next_seq=1, **values))


def patch(session: Session, run: Run, changes: RunPatch) -> Run:
    """Change what is only a label, or the place in the queue."""
    given = changes.model_dump(exclude_unset=True, exclude_none=True)
    for name, value in given.items():
        setattr(run, name, value)
    run.updated_at = now(session)
    session.flush()
    if "priority" in given and run.state == "queued":
        ring_after_commit(session)
    return run


def remove(session: Session, run: Run) -> None:
    """Forget a run that has ended, with its checkpoints and files. Raises ``Conflict`` while anything needs it."""
    session.refresh(run, with_for_update=True)
    if run.state not in TERMINAL_STATES:
        raise Conflict(f"A run that is {run.state} cannot be deleted.", field="state", hint="Cancel it first.")
    _refuse_if_used(session, run)
    session.execute(delete(Event).where(Event.topic == f"run:{run.id}"))
    session.delete(run)  # attempts, metrics and checkpoints go with it
    session.flush()
    directory = get_settings().runs_dir / run.id
    session.after_commit(lambda: _remove_files(directory))


def _refuse_if_used(session: Session, run: Run) -> None:
    line = session.get(Pipeline, run.pipeline_id) if run.pipeline_id else None
    if line is not None and line.state in ("running", "paused", "failed"):  # a failed one can be resumed
        raise Conflict(f"The pipeline {line.name} of this run has not ended.", hint="Cancel the pipeline first.")
    own = select(Checkpoint.id).where(Checkpoint.run_id == run.id)
    for column, uses in ((Run.base_checkpoint_id, "starts from"), (Run.teacher_checkpoint_id, "is taught by")):
        user = session.scalar(select(Run).where(
            Run.id != run.id, Run.state.not_in(TERMINAL_STATES), column.in_(own)).limit(1))
        if user is not None:
            raise Conflict(f"The run {user.name} {uses} a checkpoint of this one.",
                           hint="Wait until it has ended, or cancel it.")
    own_ids = set(session.scalars(own))
    for job in session.scalars(select(Job).where(Job.state.in_(("queued", "running")))):
        if own_ids & {job.payload.get("checkpoint_id"), job.payload.get("base_checkpoint_id")}:
            raise Conflict(f"The job {job.kind} uses a checkpoint of this run.",
                           hint=f"Wait until it has ended, or cancel the job {job.id}.")


def _remove_files(directory: Any) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return  # the run never started
    except OSError as error:  # the rows are gone: what is left takes space but is seen by nobody
        log.warning("run_files_not_removed", path=str(directory), error=str(error))
