"""The queue is the database: ``state = 'queued'``. A bell only says "look"; a claim is one guarded UPDATE.

Leases live 60 s and are renewed every 10 s by whoever holds them (``app.core.timing``). Capacity is counted from
``device_lease`` rows, never from busy Celery slots.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy import Text, case, cast, or_, select, update

from app.core import inputs
from app.core.channels import celery_config, ring
from app.core.db import Session, now
from app.core.devices import HOLD_BACK_AFTER_S, Room, choose, holds_back, left_alone
from app.core.job_files import remove_half_made, remove_upload
from app.core.models import (
    LEASED_STATES,
    Attempt,
    Dataset,
    DeviceLease,
    Host,
    Installation,
    Job,
    Run,
    TokenizerRow,
    new_id,
)
from app.core.states import move, ring_after_commit
from app.core.timing import get_timing

#: queued runs that a claim looks at together
CLAIM_PAGE = 100
#: the best first: highest priority, then longest in the queue unless somebody moved it
QUEUE_ORDER = (Run.priority.desc(), Run.queue_key, Run.id)


# -- claims -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A run that is ours to start: devices are taken, the lease runs."""

    run_id: str
    attempt: int
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Unsure:
    """Before a run can be claimed the file of this data set must be hashed (``inputs.look_again``)."""

    dataset_id: str


def queue_is_paused(session: Session) -> bool:
    """Whether somebody has paused the queue (maintenance): what runs goes on, nothing else begins."""
    return session.scalar(select(Installation.queue_paused_at).limit(1)) is not None


def claim_run(session: Session, host_id: str, sure: Collection[str] = ()) -> Claim | Unsure | None:
    """Take the best queued run that fits the free devices of ``host_id``, or None.

    Best: ``QUEUE_ORDER``. The host's row is locked first, so that two claimers of one host never count the same
    device; of two hosts one's UPDATE finds the row changed and goes on to the next. A run whose data or base is gone
    is refused here, before it takes a device. ``Unsure``: a file must be hashed first, outside of this transaction;
    ``sure`` names the data sets for which that was tried.
    """
    host = session.get(Host, host_id, with_for_update=True, populate_existing=True)
    if host is None or host.draining or host.problem or queue_is_paused(session):
        return None
    at = now(session)
    rooms = _Rooms(session, host, at)
    for run_id, devices in _that_fit(session, rooms, at):
        run = session.get(Run, run_id)
        if run is None or run.state != "queued" or run.desired != "run":
            continue  # another host was faster, or somebody paused it since the list was read
        if (dataset_id := inputs.is_unsure(session, run)) is not None and dataset_id not in sure:
            return Unsure(dataset_id)
        if (wrong := inputs.problem(session, run)) is not None:
            _refuse(session, run, host, wrong)
        elif _take(session, run, host, devices, at):
            return Claim(run.id, run.attempt, devices)
    return None


def _that_fit(session: Session, rooms: _Rooms, at: float) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Queued runs that fit, the best first, with their devices.

    There may be thousands, most ask for the same, and most do not fit: the distinct requests are looked at first, and
    then only runs that could start, or hold devices back, a page at a time.
    """
    waiting = (Run.state == "queued", Run.desired == "run", or_(Run.not_before.is_(None), Run.not_before <= at))
    asked = cast(Run.devices, Text)
    fitting = [text for text in session.scalars(select(asked).where(*waiting).distinct())
               if rooms.devices_for(text) is not None]
    if not fitting:
        return
    waits_since = case((Run.not_before > Run.queued_at, Run.not_before), else_=Run.queued_at)
    best_first = select(Run.id, asked, waits_since).where(*waiting, or_(
        asked.in_(fitting), waits_since <= at - HOLD_BACK_AFTER_S)).order_by(*QUEUE_ORDER)
    offset = 0
    while page := session.execute(best_first.limit(CLAIM_PAGE).offset(offset)).all():
        for run_id, text, since in page:
            devices = rooms.devices_for(text, waited_s=at - (since or at))
            if devices is not None:
                yield run_id, devices
        offset += CLAIM_PAGE


class _Rooms:
    """What a claim may give away on its host; each distinct request is thought about once."""

    def __init__(self, session: Session, host: Host, at: float):
        self._session, self._host, self._at = session, host, at
        self._here = self._room(host)
        self._held: set[str] = set()  # free, and kept for a run that waits for more
        self._found: dict[str, tuple[str, ...] | None] = {}
        self._asked: set[str] = set()

    def devices_for(self, key: str, *, waited_s: float = 0.0) -> tuple[str, ...] | None:
        """The devices that a run with this request (JSON) gets now; None where there are not enough, and then, where it
        has waited long, those behind it leave some to it."""
        if key not in self._found:
            here = self._here
            self._found[key] = choose(json.loads(key), cpu_slots=here.cpu_slots, gpus=here.gpus,
                                      taken={*here.taken, *self._held}, bad=here.bad)
        if self._found[key] is None and waited_s >= HOLD_BACK_AFTER_S and key not in self._asked:
            self._asked.add(key)
            more = holds_back(json.loads(key), waited_s, self._here, self._others) - self._held
            if more:
                self._held |= more
                self._found.clear()
                self._found[key] = None
        return self._found[key]

    @functools.cached_property
    def _others(self) -> list[Room]:
        since = self._at - get_timing().host_silent_s
        return [self._room(host) for host in self._session.scalars(select(Host).where(
            Host.id != self._host.id, Host.draining.is_(False), Host.problem.is_(None), Host.last_seen_at > since))]

    def _room(self, host: Host) -> Room:
        taken = self._session.scalars(select(DeviceLease.device).where(DeviceLease.host_id == host.id)).all()
        return Room(host.id, host.cpu_slots, [d["id"] for d in host.devices], set(taken), left_alone(host, self._at))


def _refuse(session: Session, run: Run, host: Host, wrong: dict) -> None:
    """A run that cannot start: one that has not begun has failed, one that has progress waits for its user."""
    error = {name: wrong[name] for name in ("class", "message", "hint")}
    if run.attempt > 0:
        move(session, run, "paused", reason="inputs", error=error, values={"desired": "pause"})
    elif move(session, run, "starting", values={"lease_owner": f"check-{new_id()}", "lease_host": host.id,
                                                "lease_expires_at": now(session)}, data={"host": host.id}):
        move(session, run, "failed", error=error)


def _take(session: Session, run: Run, host: Host, devices: tuple[str, ...], at: float) -> bool:
    number = run.attempt + 1
    won = move(session, run, "starting", values={
        "attempt": number, "lease_owner": f"{number}-{new_id()}", "lease_host": host.id,
        "lease_expires_at": at + get_timing().lease_s, "started_at": run.started_at or at, "not_before": None,
        "samples_asked": 0,  # by those who heard nothing of the attempt before
        # what the last attempt was doing says nothing of this one
        "progress": {k: v for k, v in run.progress.items() if not k.startswith("phase")}
        | {"phase": None, "eta_s": None, "tokens_per_s": None}},
        data={"host": host.id, "devices": list(devices)})
    if won:
        session.add(Attempt(run_id=run.id, number=number, state="open", host_id=host.id, boot_id=host.boot_id,
                            started_at=at, events_offset=0))
        session.flush()
        session.add_all(DeviceLease(host_id=host.id, device=d, run_id=run.id, attempt=number) for d in devices)
        session.flush()
    return won


def renew_lease(session: Session, run_id: str, attempt: int) -> bool:
    """Hold the run for another lease; False where it is not held with this attempt any more."""
    return session.execute(
        update(Run).where(Run.id == run_id, Run.attempt == attempt, Run.state.in_(LEASED_STATES))
        .values(lease_expires_at=now(session) + get_timing().lease_s),
        execution_options={"synchronize_session": False}).rowcount == 1


def take_back(session: Session, run: Run, attempt: int) -> bool:
    """A holder that had lost contact is back before the fence: its run goes on as if nothing had happened.

    Only where the attempt is still this one and not closed; the next state follows from ``desired``.
    """
    lost = session.get(Attempt, (run.id, attempt), with_for_update=True, populate_existing=True)
    if run.state != "recovering" or run.attempt != attempt or lost is None or lost.state != "lost":
        return False
    to = {"run": "running", "pause": "pausing", "cancel": "cancelling"}[run.desired]
    back = move(session, run, to, attempt=attempt, reason="user" if to == "pausing" else None,
                data={"message": "The runner is back."},
                values={"lease_owner": f"{attempt}-{new_id()}", "lease_host": lost.host_id,
                        "lease_expires_at": now(session) + get_timing().lease_s})
    if back:
        lost.state, lost.ended_at = "open", None
        session.flush()
    return back


# -- jobs ---------------------------------------------------------------------------------------------------------

#: a job that was lost (its process died) is done once more
MAX_JOB_ATTEMPTS = 2


def enqueue_job(session: Session, kind: str, payload: dict, *, user_id: str) -> Job:
    """Add a job; a worker takes it up as soon as this commits."""
    job = Job(id=new_id(), kind=kind, state="queued", payload=payload, user_id=user_id, created_at=now(session),
              attempt=0, cancel_wanted=False, progress={})
    session.add(job)
    session.flush()
    ring_after_commit(session, "job")
    return job


#: kinds of jobs that last for hours and mostly wait: one runs beside the others, which would else wait for it
LONG_JOBS = ("teacher_answers",)


def claim_job(session: Session, host_id: str) -> tuple[str, int] | None:
    """Take the oldest queued job if this host does none yet (a long one has a place of its own); returns (id,
    attempt)."""
    host = session.get(Host, host_id, with_for_update=True, populate_existing=True)
    if host is None or host.draining or host.problem or queue_is_paused(session):
        return None
    busy = session.scalars(select(Job.kind).where(Job.state == "running", Job.lease_host == host_id)).all()
    queued = select(Job).where(Job.state == "queued")
    if any(kind in LONG_JOBS for kind in busy):
        queued = queued.where(Job.kind.not_in(LONG_JOBS))
    if any(kind not in LONG_JOBS for kind in busy):
        queued = queued.where(Job.kind.in_(LONG_JOBS))
    at = now(session)
    for job in session.scalars(queued.order_by(Job.created_at, Job.id).limit(20)):
        taken = session.execute(
            update(Job).where(Job.id == job.id, Job.state == "queued", Job.attempt == job.attempt)
            .values(state="running", attempt=job.attempt + 1, lease_owner=f"job-{new_id()}", lease_host=host_id,
                    lease_expires_at=at + get_timing().lease_s, started_at=at, error=None),
            execution_options={"synchronize_session": False}).rowcount
        if taken == 1:
            return job.id, job.attempt + 1
    return None


def renew_job(session: Session, job_id: str, attempt: int) -> bool:
    return session.execute(
        update(Job).where(Job.id == job_id, Job.attempt == attempt, Job.state == "running")
        .values(lease_expires_at=now(session) + get_timing().lease_s),
        execution_options={"synchronize_session": False}).rowcount == 1


def request_cancel_job(session: Session, job: Job) -> Job:
    """A queued job ends at once, a running one at its next look; one that has ended stays as it is."""
    session.refresh(job, with_for_update=True)
    if job.state in ("queued", "running"):
        job.cancel_wanted = True
    if job.state == "queued":
        end_job(session, job, "cancelled", error={"message": "Cancelled before it began.", "hint": None})
    session.flush()
    return job


def lose_job(session: Session, job: Job, *, on_purpose: bool = False) -> None:
    """The process of ``job`` is gone: do it once more, then give it up. ``on_purpose``: we ended it ourselves
    (a shutdown), which does not count."""
    if on_purpose:
        job.payload = {**job.payload, "shutdowns": job.payload.get("shutdowns", 0) + 1}
    if job.cancel_wanted:
        end_job(session, job, "cancelled", error={"message": "Cancelled.", "hint": None})
    elif job.attempt - job.payload.get("shutdowns", 0) >= MAX_JOB_ATTEMPTS:
        end_job(session, job, "failed", error={
            "message": "Its process was killed twice before it was done; perhaps the machine ran out of memory.",
            "hint": "Look into logs/jobs.log in the data directory, and try again."})
    else:
        job.state, job.lease_owner, job.lease_host, job.lease_expires_at = "queued", None, None, None
        session.flush()
        ring_after_commit(session, "job")


def end_job(session: Session, job: Job, state: str, *, error: dict | None = None, result: dict | None = None) -> None:
    """End ``job``; what it was making (a dataset, a tokenizer) ends with it, and its upload is removed, as is what
    its attempts have handed on to each other (``aside``) and what one that was killed has left half-made."""
    job.state, job.error, job.result, job.ended_at = state, error, result, now(session)
    job.lease_owner = job.lease_host = job.lease_expires_at = None
    if state != "completed":
        for key, kind in (("dataset_id", Dataset), ("tokenizer_id", TokenizerRow)):
            made = session.get(kind, job.payload[key]) if job.kind in MAKES[key] else None
            if made is not None and made.state != "ready":
                made.state, made.error = "failed", error
    upload = job.payload.get("upload_path")
    if upload:
        session.after_commit(lambda: remove_upload(upload), key=("unlink", upload))
    aside = job.payload.get("aside")
    if aside and state != "completed":
        session.after_commit(lambda: shutil.rmtree(aside, ignore_errors=True), key=("rmtree", aside))
    if state != "completed":
        kind, payload = job.kind, dict(job.payload)
        session.after_commit(lambda: remove_half_made(kind, payload), key=("half made", job.id))
    session.flush()


#: the key of a job's payload that names what the job makes -> the kinds of jobs that make it
MAKES = {"dataset_id": ("dataset_import", "teacher_answers"), "tokenizer_id": ("tokenizer_train",)}

__all__ = ["Claim", "Unsure", "celery_config", "claim_job", "claim_run", "end_job", "enqueue_job", "lose_job",
           "queue_is_paused", "renew_job", "renew_lease", "request_cancel_job", "ring", "ring_after_commit",
           "take_back"]
