"""What an attempt has come to, once nothing of it is alive and all its events are stored.

The verdict is read from ``result.json`` and the committed checkpoints, never from an exit status: torchrun exits
with 1 even when every rank saved and ended well. The same function serves the runner (it holds the run) and the
reconciler (the holder is proven dead and the run is ``recovering``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import select

from app.core.db import Session, now
from app.core.models import LEASED_STATES, Checkpoint, Run, TokenizerRow
from app.core.settings import get_settings
from app.core.states import close_attempt, move, ring_after_commit
from app.core.timing import get_timing
from minimind.errors import MiniMindError
from minimind.run_dir import RunDir, fsync_dir
from minimind.tokenizer import Tokenizer

#: what fails the same way each time: trying again only wastes an hour before saying so
HOPELESS = ("CONFIG", "DATA", "CHECKPOINT", "RESUME", "DISK_FULL", "NAN", "OOM_CUDA")
#: attempts in a row without a new checkpoint that make a run failed
MAX_FRUITLESS = 3


def backoff_s(fruitless: int) -> float:
    """Wait before the next attempt: 2 s after one that made progress, then 3, 12, 48 ... s."""
    first = get_timing().retry_first_s
    return min(2.0, first) if fruitless == 0 else min(get_timing().retry_limit_s, first * 4 ** (fruitless - 1))


def settle(session: Session, run: Run, attempt: int, result: dict | None, *, cause: str = "",
           put_back: bool = False) -> str:
    """Move ``run`` to where attempt ``attempt`` has brought it; returns the new state.

    ``result``: the attempt's verdict on disk, or None. ``cause``: why there is none, as a clause for the user.
    ``put_back``: we ended it ourselves to shut down, so that it goes back into the queue without a fault.
    Every process of the attempt must be proven gone.
    """
    if run.attempt != attempt or run.state not in (*LEASED_STATES, "recovering"):
        return run.state
    status = result["status"] if result else None
    if status == "completed" and not _is_kept(session, run, result):
        status, cause = None, "it says that it is completed, but its last checkpoint is damaged"
    error = (result or {}).get("error")
    if run.desired == "cancel" or run.state == "cancelling" or status == "stopped":
        if run.state not in ("cancelling", "recovering"):
            move(session, run, "cancelling", reason=run.reason)
        move(session, run, "cancelled", values={"desired": "cancel", "progress": {**run.progress, "eta_s": None}})
    elif status == "completed":
        if run.state == "starting":
            move(session, run, "running")
        move(session, run, "completed", values={"progress": {**run.progress, "eta_s": 0.0}, "fruitless_attempts": 0})
    elif status == "failed" and (error or {}).get("class") in HOPELESS:
        move(session, run, "failed", error=error)
    elif status == "paused" or put_back:
        _rest(session, run)
    else:
        _crashed(session, run, attempt, error or _no_result(cause))
    return run.state


def _rest(session: Session, run: Run) -> None:
    """A run that saved and stopped: paused if the user wants that, else back in the queue (a shutdown, or
    somebody signalled its ranks)."""
    if run.state in ("starting", "running"):
        move(session, run, "pausing", reason=run.reason or "shutdown")
    values = {"progress": {**run.progress, "eta_s": None}}
    if run.desired == "pause":
        move(session, run, "paused", reason="user", values=values)
    else:
        move(session, run, "queued", values=values)
        ring_after_commit(session)


def _crashed(session: Session, run: Run, attempt: int, error: dict) -> None:
    """Wait a little and try again; after three attempts without a new checkpoint, give up."""
    progressed = session.scalar(select(Checkpoint.id).where(
        Checkpoint.run_id == run.id, Checkpoint.attempt == attempt, Checkpoint.state == "ready").limit(1)) is not None
    fruitless = 0 if progressed else run.fruitless_attempts + 1
    values = {"fruitless_attempts": fruitless, "progress": {**run.progress, "eta_s": None, "tokens_per_s": None}}
    if fruitless >= MAX_FRUITLESS:
        move(session, run, "failed", error=error | {
            "message": f"{error['message']} It happened in {fruitless} attempts without a new checkpoint between "
                       "them."}, values=values)
        return
    wait_s = backoff_s(fruitless)
    values["not_before"] = now(session) + wait_s
    if run.state == "recovering":
        for name, value in values.items():
            setattr(run, name, value)
        session.flush()
    else:
        move(session, run, "recovering", data={"error": error, "retry_in_s": wait_s}, values=values)
    close_attempt(session, run)
    release(session, run)


def release(session: Session, run: Run) -> None:
    """A recovering run whose last attempt is closed goes where the user wants it, into the queue once its
    back-off is over."""
    assert run.state == "recovering", run.state
    if run.desired == "cancel":
        move(session, run, "cancelled", reason="user")
    elif run.desired == "pause":
        move(session, run, "paused", reason="user")
    elif run.not_before is None or run.not_before <= now(session):
        move(session, run, "queued", values={"not_before": None})
        ring_after_commit(session)


def queue_at_once(session: Session, run: Run) -> None:
    """As ``release``, but into the queue at once; the claim waits for the back-off instead (a shutdown)."""
    release(session, run)
    if run.state == "recovering":
        move(session, run, "queued")


def _is_kept(session: Session, run: Run, result: dict) -> bool:
    """Whether what a completed run has made is really there: a verified checkpoint, or its tokenizer."""
    if run.stage == "tokenizer":
        return session.get(TokenizerRow, run.id) is not None
    path = result.get("checkpoint")
    return bool(path) and session.scalar(select(Checkpoint.id).where(
        Checkpoint.run_id == run.id, Checkpoint.path == str(path), Checkpoint.state == "ready")) is not None


def _no_result(cause: str) -> dict:
    return {"class": "NO_RESULT", "message": f"Training ended without a result{': ' + cause if cause else ''}.",
            "hint": "The log of the attempt says more."}


def keep_tokenizer(session: Session, run: Run, run_dir: RunDir) -> None:
    """File what a completed ``tokenizer`` run has made under the run's own id, where later stages find it."""
    if run.stage != "tokenizer" or session.get(TokenizerRow, run.id) is not None:
        return
    source = run_dir.path / "tokenizer"
    target = get_settings().tokenizers_dir / run.id
    try:
        made = Tokenizer.load(source)
        _copy(source, target)
    except (MiniMindError, OSError):
        return  # `settle` sees that it is not kept and tries the run again
    session.add(TokenizerRow(id=run.id, name=run.name, user_id=run.user_id, state="ready", path=str(target),
                             fingerprint=made.fingerprint, vocab_size=made.vocab_size, created_at=now(session),
                             source={"kind": "run", "run_id": run.id}))
    session.flush()


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    half = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(source, half)
    half.rename(target)
    fsync_dir(target.parent)
