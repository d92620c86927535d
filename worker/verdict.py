"""What an attempt has come to, once nothing of it is alive and all its events are stored.

The verdict is read from ``result.json`` and the committed checkpoints, never from an exit status: torchrun exits
with 1 even when every rank saved and ended well. The same function serves the runner (it holds the run) and the
reconciler (the holder is proven dead and the run is ``recovering``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select

from app.core.db import Session, now
from app.core.models import LEASED_STATES, Attempt, Checkpoint, DeviceLease, Host, Run, TokenizerRow
from app.core.settings import get_settings
from app.core.states import append_event, close_attempt, move, ring_after_commit
from app.core.timing import get_timing
from minimind.errors import MiniMindError
from minimind.run_dir import RunDir, fsync_dir
from minimind.tokenizer import Tokenizer

#: what may go well the next time. Everything else (a wrong configuration, data, a full disk, a GPU that is too small,
#: losses that are not finite) fails the same way each time: trying again only wastes an hour before saying so
TRIED_AGAIN = ("SIGNAL", "NCCL", "GPU", "STALL", "OOM_HOST", "UNKNOWN", "NO_RESULT")
#: of these, what is tried again once: twice in a row is no accident
TRIED_ONCE = ("OOM_HOST",)
#: attempts in a row without a new checkpoint that make a run failed
MAX_FRUITLESS = 3
#: claims leave a device alone for this long after an attempt that it has ended
BAD_DEVICE_S = 600.0
#: the same for one that was only in use
BUSY_DEVICE_S = 60.0


def backoff_s(fruitless: int) -> float:
    """Wait before the next attempt: 2 s after one that made progress, then 3, 12, 48 ... s."""
    first = get_timing().retry_first_s
    return min(2.0, first) if fruitless == 0 else min(get_timing().retry_limit_s, first * 4 ** (fruitless - 1))


def settle(session: Session, run: Run, attempt: int, result: dict | None, *, cause: str = "",
           error: dict | None = None, suspects: Sequence[str] = (), put_back: bool = False,
           counts: bool = True) -> str:
    """Move ``run`` to where attempt ``attempt`` has brought it; returns the new state.

    ``result``: the attempt's verdict on disk, or None. ``error``: what ended it as ``worker.causes`` found out, which
    knows more than the verdict; ``cause``: only a clause for the user, where nobody could look into that. ``suspects``:
    the devices that an error of class GPU came from (else all of the attempt). ``put_back``: we ended it ourselves to
    shut down, so that it goes back into the queue without a fault. ``counts``: whether it was an attempt at all (where
    its GPU was in use it was none). Every process of the attempt must be proven gone.
    """
    row = session.get(Attempt, (run.id, attempt), populate_existing=True)
    if run.attempt != attempt or run.state not in (*LEASED_STATES, "recovering") or row.state == "closed":
        return run.state  # another bookkeeper was faster: a run waits for its next attempt as ``recovering`` too
    status = result["status"] if result else None
    if status == "completed" and not _is_kept(session, run, result):
        status, cause = None, "it says that it is completed, but its last checkpoint is damaged"
    error = error or (result or {}).get("error") or _no_result(cause)
    hopeless = status == "failed" and error.get("class", "UNKNOWN") not in TRIED_AGAIN
    if run.desired == "cancel" or run.state == "cancelling" or status == "stopped":
        error = None
        if run.state not in ("cancelling", "recovering"):
            move(session, run, "cancelling", reason=run.reason)
        move(session, run, "cancelled", values={"desired": "cancel", "progress": {**run.progress, "eta_s": None}})
    elif status == "completed":
        error = None
        if run.state == "starting":
            move(session, run, "running")
        move(session, run, "completed", values={"progress": {**run.progress, "eta_s": 0.0}, "fruitless_attempts": 0})
    elif hopeless:
        move(session, run, "failed", error=error)
    elif status == "paused" or put_back:
        error = None
        _rest(session, run)
    else:
        _crashed(session, run, attempt, error, suspects, counts)
    _write_down(session, run, attempt, result, error)
    return run.state


def _write_down(session: Session, run: Run, attempt: int, result: dict | None, error: dict | None) -> None:
    """The attempt's own row keeps its verdict and what ended it, whatever becomes of the run."""
    row = session.get(Attempt, (run.id, attempt), populate_existing=True)
    row.result = {"status": None, "step": None, "checkpoint": None} | {
        k: (result or {}).get(k) for k in ("status", "step", "checkpoint")} | {"state": run.state}
    row.error = error
    session.flush()


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


def _crashed(session: Session, run: Run, attempt: int, error: dict, suspects: Sequence[str], counts: bool) -> None:
    """Wait a little and try again; give up what is hopeless, and after three attempts without a new checkpoint."""
    class_ = error.get("class", "UNKNOWN")
    if class_ == "GPU":
        _leave_alone(session, run, error["message"], suspects, BAD_DEVICE_S if counts else BUSY_DEVICE_S)
    progressed = session.scalar(select(Checkpoint.id).where(  # one that retention has deleted since is progress too
        Checkpoint.run_id == run.id, Checkpoint.attempt == attempt, Checkpoint.state != "corrupt").limit(1)) is not None
    fruitless = 0 if progressed else run.fruitless_attempts + int(counts)
    values = {"fruitless_attempts": fruitless, "progress": {**run.progress, "eta_s": None, "tokens_per_s": None}}
    earlier = _ended_before(session, run, attempt)
    if class_ not in TRIED_AGAIN:
        move(session, run, "failed", error=error, values=values)
        return
    if class_ in TRIED_ONCE and earlier and earlier[0]["class"] == class_:
        _give_up(session, run, error, "It happened in two attempts in a row.",
                 earlier[:1], values)
        return
    if fruitless >= MAX_FRUITLESS:
        _give_up(session, run, error, f"These were {fruitless} attempts in a row without a new checkpoint.",
                 earlier[:fruitless - 1], values)
        return
    wait_s = backoff_s(fruitless)
    values["not_before"] = now(session) + wait_s
    if run.state == "recovering":
        for name, value in values.items():
            setattr(run, name, value)
        append_event(session, f"run:{run.id}", "error", attempt=attempt, step=int(run.progress.get("step") or 0),
                     data=error | {"retry_in_s": wait_s})
    else:
        move(session, run, "recovering", data={"error": error, "retry_in_s": wait_s}, values=values)
    close_attempt(session, run)
    release(session, run)


def _give_up(session: Session, run: Run, error: dict, why: str, earlier: list[dict], values: dict) -> None:
    """``failed``, with what ended each of the attempts that count."""
    before = " ".join(f"Attempt {e['attempt']}: {e['message']}" for e in earlier)
    attempts = [{"attempt": run.attempt, "class": error.get("class"), "message": error.get("message")}, *earlier]
    message = f"{error['message']} {why}{' ' + before if before else ''}"
    move(session, run, "failed", error=error | {"message": message}, values=values, data={"attempts": attempts})


def _ended_before(session: Session, run: Run, attempt: int) -> list[dict]:
    """What ended the attempts before this one, newest first, up to the first that ended well: ``{"attempt", "class",
    "message"}``. One that a shutdown ended has nothing to say and is left out."""
    found = []
    for row in session.scalars(select(Attempt).where(Attempt.run_id == run.id, Attempt.number < attempt)
                               .order_by(Attempt.number.desc()).limit(10 * MAX_FRUITLESS)):
        if row.error is not None:
            found.append({"attempt": row.number, "class": row.error.get("class"), "message": row.error.get("message")})
        elif (row.result or {}).get("state") not in (None, "queued"):
            break
    return found


def _leave_alone(session: Session, run: Run, reason: str, suspects: Sequence[str], for_s: float) -> None:
    """Write the GPUs that ended this attempt into their host's row, so that claims avoid them for a while."""
    leases = session.scalars(select(DeviceLease).where(DeviceLease.run_id == run.id)).all()
    ids = {lease.device for lease in leases if lease.device.startswith("cuda:")}
    ids = ids & set(suspects) or ids
    if not ids:
        return
    host = session.get(Host, leases[0].host_id, with_for_update=True, populate_existing=True)
    if host is None:
        return
    at = now(session)
    kept = [d for d in host.bad_devices or [] if d["until"] > at and d["id"] not in ids]
    host.bad_devices = kept + [{"id": id, "reason": reason, "until": at + for_s} for id in sorted(ids)]
    session.flush()


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
