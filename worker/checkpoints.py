"""Between checkpoint directories and their rows: who gets one, what is left of killed attempts, what may go.

The rows follow the disk. A directory gets a row from the attempt that holds the run, or, where its writer was killed
before it could say so, when that attempt is settled or the next one begins. Whatever else appears later was written by
a process that had lost the run: it gets another name (``.stale-...``) and is used by nobody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import or_, select

from app.core.damage import condemn, look, problem_of
from app.core.db import Session, now, reading, transaction
from app.core.logging import get_logger
from app.core.models import TERMINAL_STATES, Checkpoint, Job, Run, new_id
from app.core.states import append_event
from minimind.errors import CheckpointError
from minimind.manifest import MANIFEST_FILE, Manifest, in_order
from minimind.retention import Saved, remove, superfluous
from minimind.run_dir import RunDir, parse_checkpoint_name, put_aside, read_json

log = get_logger(__name__)

#: milestones of a run whose configuration does not say how many
DEFAULT_KEEP = 10


def row_values(run_dir: RunDir, path: Path) -> dict[str, Any] | None:
    """The columns of a checkpoint directory of ``run_dir``, which is read and hashed for them: one that is damaged has
    ``problem``. None for what is no checkpoint (any more)."""
    name = parse_checkpoint_name(path.name)
    if name is None or path.parent != run_dir.checkpoints:
        return None
    try:
        manifest = Manifest.read(path)
    except CheckpointError as error:
        if path.joinpath(MANIFEST_FILE).exists():
            log.error("checkpoint_unreadable", path=str(path), error=str(error))
        return None  # deleted again, or never finished
    problem = problem_of(path)
    if problem is not None and not path.is_dir():
        return None
    return {"step": name[0], "attempt": name[1], "path": str(path), "tokens": manifest.tokens, "loss": manifest.loss,
            "eval_loss": manifest.eval_loss, "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
            "bytes": manifest.bytes, "problem": problem}


def keep_row(session: Session, run: Run, values: dict[str, Any]) -> bool:
    """Insert the row unless it is there; True where there is a new usable one. A damaged one is condemned."""
    row = session.scalar(select(Checkpoint).where(
        Checkpoint.run_id == run.id, Checkpoint.step == values["step"], Checkpoint.attempt == values["attempt"]))
    problem = values["problem"]
    if row is not None and row.state == "deleted" and problem is None:  # it was to go, or its disk was away
        row.state = "ready"
        session.flush()
        return True
    if row is not None:
        return False
    session.add(Checkpoint(id=new_id(), run_id=run.id, stage=run.stage, state="ready", created_at=now(session),
                           **{k: v for k, v in values.items() if k != "problem"}))
    session.flush()
    if problem is not None:
        condemn(session, run.id, values["step"], values["attempt"], problem)
    return problem is None


def mark_deleted(session: Session, run_id: str) -> None:
    """Rows whose directory somebody has removed are marked ``deleted``."""
    for row in session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.state == "ready")):
        path = Path(row.path)
        if not path.exists() and path.parent.is_dir():  # else the whole disk may be away
            row.state = "deleted"
    session.flush()


# -- recovery -----------------------------------------------------------------------------------------------------


def adopt_checkpoints(run_id: str, run_dir: RunDir) -> int:
    """At the end of an attempt, every process of which is gone: give a row to each whole checkpoint of it that has
    none (its writer was killed between the rename of the directory and the word of it). Returns how many."""
    return _scan(run_id, run_dir, back=0)


def recover_checkpoints(run_id: str, run_dir: RunDir) -> int:
    """At the start of an attempt: as ``adopt_checkpoints``, of the attempt before as well; then make sure that what
    training will go on from is whole. What is not, is condemned, and the one before it is looked at."""
    added = _scan(run_id, run_dir, back=1)
    for path in in_order(run_dir.checkpoint_dirs()):
        problem = problem_of(path)
        if problem is None:
            return added
        step, attempt = parse_checkpoint_name(path.name)
        with transaction() as session:
            condemned = condemn(session, run_id, step, attempt, problem)
        if condemned is None and path.joinpath(MANIFEST_FILE).exists():
            put_aside(path, "corrupt")
    with reading() as session:
        stands_on = session.execute(select(Run.base_checkpoint_id, Run.teacher_checkpoint_id)
                                    .where(Run.id == run_id)).first()
    for id in stands_on or ():  # it begins, so it reads the weights of its base and of its teacher
        look(id)
    return added


def _scan(run_id: str, run_dir: RunDir, *, back: int) -> int:
    """Rows for what the run's last attempt, and ``back`` ones before it, have left without. Hashes outside of the
    transaction."""
    with reading() as session:
        known = {(row.step, row.attempt): row.state for row in session.scalars(
            select(Checkpoint).where(Checkpoint.run_id == run_id))}
        present = session.scalar(select(Run.attempt).where(Run.id == run_id)) or 0
    found = []
    for path in reversed(run_dir.checkpoint_dirs()):
        name = parse_checkpoint_name(path.name)
        state = known.get(name)
        if state == "ready" or not path.joinpath(MANIFEST_FILE).exists():
            continue
        if state == "corrupt":  # it was condemned by a process that could not rename it any more
            put_aside(path, "corrupt")
        elif state is None and name[1] < present - back:
            log.error("checkpoint_of_a_stale_attempt", run_id=run_id, path=str(put_aside(path, "stale")))
        elif name[1] <= present:
            found.append(row_values(run_dir, path))
    with transaction() as session:
        run = session.get(Run, run_id, with_for_update=True, populate_existing=True)
        if run is None:
            return 0
        added = 0
        for values in (v for v in found if v is not None and v["attempt"] <= run.attempt):
            if keep_row(session, run, values):
                added += 1
                _say_adopted(session, run, run_dir, values)
        mark_deleted(session, run_id)
    return added


def _say_adopted(session: Session, run: Run, run_dir: RunDir, values: dict[str, Any]) -> None:
    append_event(session, f"run:{run.id}", "checkpoint", attempt=values["attempt"], step=values["step"],
                 tokens=values["tokens"], data={
                     "path": str(Path(values["path"]).relative_to(run_dir.path)), "bytes": values["bytes"],
                     "eval_loss": values["eval_loss"], "loss": values["loss"], "adopted": True})


# -- retention ----------------------------------------------------------------------------------------------------


def tidy(run_id: str, run_dir: RunDir) -> list[Path]:
    """Delete the checkpoints of a run that need not be kept (``minimind.retention``) and that no queued or live run
    starts from or is taught by. The rows go first: nobody is offered what is half deleted."""
    resolved = read_json(run_dir.resolved) or {}
    total = resolved.get("total_steps") or 1
    keep = (resolved.get("config") or {}).get("keep", DEFAULT_KEEP)
    with reading() as session:  # mostly there is nothing to do: the write lock is left alone
        if not _superfluous(session, run_id, total, keep):
            return []
    with transaction() as session:
        run = session.get(Run, run_id, with_for_update=True, populate_existing=True)
        gone = _superfluous(session, run_id, total, keep) if run is not None else []
        for row in gone:
            row.state = "deleted"
            append_event(session, f"run:{run_id}", "log", attempt=run.attempt, step=row.step, data={
                "message": f"Deleted {Path(row.path).name} to keep within the space for checkpoints."})
    for row in gone:
        try:
            remove(Path(row.path))
        except OSError as error:  # the next scan finds it whole and offers it again
            log.error("checkpoint_not_deleted", path=row.path, error=str(error))
    return [Path(row.path) for row in gone]


def _superfluous(session: Session, run_id: str, total_steps: int, keep: int) -> list[Checkpoint]:
    rows = {Path(row.path): row for row in session.scalars(select(Checkpoint).where(
        Checkpoint.run_id == run_id, Checkpoint.state == "ready"))}
    extra = superfluous([Saved(path, r.step, r.attempt, r.bytes, r.eval_loss) for path, r in rows.items()],
                        total_steps, keep)
    if not extra:
        return []
    ids = [rows[s.path].id for s in extra]
    live = select(Run.base_checkpoint_id, Run.teacher_checkpoint_id).where(
        Run.state.not_in(TERMINAL_STATES), or_(Run.base_checkpoint_id.in_(ids), Run.teacher_checkpoint_id.in_(ids)))
    used = {id for both in session.execute(live) for id in both}
    used |= {job.payload.get(key)  # teachers of datasets that are being written, and what is exported
             for job in session.scalars(select(Job).where(Job.state.in_(("queued", "running"))))
             for key in ("checkpoint_id", "base_checkpoint_id")}
    return [rows[s.path] for s in extra if rows[s.path].id not in used
            and not s.path.with_name(f"{s.path.name}.pin").exists()]
