"""Rows that say something which is not so (any more); see ``worker.repair``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import delete, select

from app.core import damage
from app.core.db import now, reading, transaction
from app.core.models import LEASED_STATES, Attempt, Checkpoint, Dataset, DeviceLease, Job, Run, TokenizerRow
from app.core.queue import lose_job
from app.core.timing import get_timing
from minimind.errors import MiniMindError
from worker import processes
from worker.reconciler import JOB_VARIABLE, settle_from_disk
from worker.repair import Finding, Place

HELD = (*LEASED_STATES, "recovering")
MENDS = "The worker settles it by itself in a moment."


def zombies(place: Place) -> Iterator[Finding]:
    """Runs that the rows call alive and that no process of this host works for; runs of hosts that are silent."""
    with reading() as session:
        at = now(session)
        held = session.execute(select(Run, Attempt).join(Attempt, Attempt.run_id == Run.id).where(
            Run.state.in_(HELD), Attempt.number == Run.attempt, Attempt.state != "closed")).all()
        unheld = session.scalars(select(Run).where(Run.state.in_(LEASED_STATES), ~select(Attempt.run_id).where(
            Attempt.run_id == Run.id, Attempt.state != "closed").exists())).all()
    for run, attempt in held:
        name = f"the run {run.id} ({run.name})"
        if attempt.host_id != place.settings.host_id:
            if run.lease_expires_at is not None and run.lease_expires_at + get_timing().host_grace_s < at:
                yield Finding("bad", f"{name} is {run.state} on the machine {attempt.host_id}, whose lease is over",
                              "Start a worker on any machine: it lets the run go on.")
        elif processes.is_alive(attempt.runner_pid, attempt.runner_started):
            if run.lease_expires_at is not None and run.lease_expires_at < at:
                yield Finding("note", f"{name} has a living runner (process {attempt.runner_pid}) whose lease is over",
                              "It renews it when it reaches the database again; look into its runner.log.")
        elif attempt.started_at + get_timing().runner_start_s < at:
            yield Finding("bad", f"{name} is {run.state}, and its runner does not exist any more",
                          "Start the studio, which settles it, or use --repair.",
                          lambda run=run, number=attempt.number: _settle(run.id, number),
                          in_use=f"{place.lives} {MENDS}" if place.lives else "")
    for run in unheld:
        yield Finding("bad", f"the run {run.id} ({run.name}) is {run.state} and has no open attempt",
                      "This cannot come about by a crash; please report it.")


def _settle(run_id: str, number: int) -> str:
    mark = processes.marker(run_id, number)
    if not processes.kill_marked(mark):
        raise MiniMindError(f"Its processes could not be ended: {processes.marked(mark)}.", hint="Restart the machine.")
    state = settle_from_disk(run_id, number, "its runner has died")
    return f"Settled from what is on the disk: it is {state} now."


def lost_jobs(place: Place) -> Iterator[Finding]:
    """Imports and the like whose process is gone."""
    with reading() as session:
        at = now(session)
    for job in (j for j in place.open_jobs if j.state == "running" and j.lease_expires_at < at):
        mark = processes.marker(job.id, job.attempt)
        if job.lease_host == place.settings.host_id and not processes.marked(mark, variable=JOB_VARIABLE):
            yield Finding("bad", f"the job {job.id} ({job.kind}) is running, and its process does not exist any more",
                          "Start the studio, which does it once more, or use --repair.",
                          lambda job=job: _lose(job.id, job.attempt),
                          in_use=f"{place.lives} {MENDS}" if place.lives else "")


def _lose(job_id: str, attempt: int) -> str:
    with transaction() as session:
        job = session.get(Job, job_id, with_for_update=True)
        if job is None or job.state != "running" or job.attempt != attempt:
            return "It has moved on meanwhile."
        lose_job(session, job)
        return f"It is {job.state} now."


def device_leases(place: Place) -> Iterator[Finding]:
    """Devices that are taken for a run which does not use them."""
    with reading() as session:
        leases = session.execute(select(DeviceLease, Run).join(Run, Run.id == DeviceLease.run_id)).all()
        for lease, run in leases:
            if run.state in HELD and run.attempt == lease.attempt:
                continue
            yield Finding("bad", f"{lease.device} of {lease.host_id} is taken for the run {run.id}, which is "
                                 f"{run.state}",
                          "Nothing can be started on it. --repair frees it.",
                          lambda key=(lease.host_id, lease.device, run.id): _free(*key))


def _free(host_id: str, device: str, run_id: str) -> str:
    with transaction() as session:
        run = session.get(Run, run_id, with_for_update=True)
        held = run.attempt if run is not None and run.state in HELD else None
        session.execute(delete(DeviceLease).where(
            DeviceLease.host_id == host_id, DeviceLease.device == device, DeviceLease.run_id == run_id,
            *([DeviceLease.attempt != held] if held is not None else [])))
    return "Freed it."


def rows_without_files(place: Place) -> Iterator[Finding]:
    """Rows that promise files which are gone."""
    with reading() as session:
        saves = session.scalars(select(Checkpoint).where(Checkpoint.state == "ready")).all()
        datasets = session.scalars(select(Dataset).where(Dataset.state == "ready")).all()
        tokenizers = session.scalars(select(TokenizerRow).where(TokenizerRow.state == "ready")).all()
    gone = [row for row in saves if not Path(row.path).is_dir()]
    for row in gone:
        yield Finding("bad", f"the checkpoint {row.id} (step {row.step:,} of the run {row.run_id}) has no files: "
                             f"{row.path}",
                      "If its disk is away, bring it back. --repair marks the checkpoint as deleted.",
                      lambda row=row: _forget(row.id, row.path),
                      in_use="Its run is being trained." if row.run_id in place.held_runs else "")
    for row in (*datasets, *tokenizers):
        if not row.path or not Path(row.path).exists():
            kind = "data set" if isinstance(row, Dataset) else "tokenizer"
            yield Finding("bad", f"the {kind} {row.name!r} ({row.id}) has no files: {row.path}",
                          "If its disk is away, bring it back; else delete it in the pages and make it again.")


def _forget(checkpoint_id: str, path: str) -> str:
    with transaction() as session:
        row = session.get(Checkpoint, checkpoint_id, with_for_update=True)
        if row is None or row.state != "ready" or Path(path).is_dir():
            return "It has changed meanwhile."
        row.state = "deleted"
    return "Marked it as deleted."


def damaged_checkpoints(place: Place) -> Iterator[Finding]:
    """The newest checkpoint of each run, which is the one that is gone on from, read and hashed."""
    with reading() as session:
        newest: dict[str, Checkpoint] = {}
        for row in session.scalars(select(Checkpoint).where(Checkpoint.state == "ready")
                                   .order_by(Checkpoint.attempt, Checkpoint.step)):
            newest[row.run_id] = row
    for row in newest.values():
        if not Path(row.path).is_dir():
            continue  # said above
        problem = damage.problem_of(Path(row.path))
        if problem is not None:
            yield Finding("bad", f"the checkpoint {row.path} is damaged: {problem}",
                          "--repair puts it aside; its run goes on from the one before it.",
                          lambda row=row: _condemn(row.id),
                          in_use="Its run is being trained." if row.run_id in place.held_runs else "")


def _condemn(checkpoint_id: str) -> str:
    damage.look(checkpoint_id)
    with reading() as session:
        row = session.get(Checkpoint, checkpoint_id)
        before = session.scalar(select(Checkpoint.step).where(
            Checkpoint.run_id == row.run_id, Checkpoint.state == "ready").order_by(
                Checkpoint.attempt.desc(), Checkpoint.step.desc()).limit(1))
    return f"Kept as {row.path} and marked as damaged; " + (
        f"step {before:,} is the newest one now." if before is not None else "the run has no other.")
