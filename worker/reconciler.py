"""What keeps the rows of this host true: heartbeat, claims, and the settlement of what died.

Expiry alone restarts nothing. A run goes on only after its *fence*: every process of its last attempt is proven
dead (by pid, start time and boot of the runner, and by the mark that all of them carry). A runner that lives is
never touched, unless it has let its lease run out and does not come back within half a minute.

Of another host nothing can be proven. Its runs are looked into only when its worker is silent too; then they are
``recovering`` at once, and go on elsewhere after a grace. Whatever of them still lives there can change nothing: its
attempt number is old in every row, and its trainer ends itself when it sees the directory of the next attempt.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import select

from app.core.db import now, reading, transaction
from app.core.inputs import look_again as hash_again
from app.core.logging import get_logger
from app.core.models import LEASED_STATES, Attempt, Host, Installation, Job, Run
from app.core.queue import Claim, Unsure, claim_job, claim_run, lose_job
from app.core.settings import get_settings
from app.core.states import Fenced, move
from app.core.timing import get_timing
from minimind.lifeline import VARIABLE
from minimind.run_dir import RunDir
from worker import gpus, load, processes
from worker.database import MARK
from worker.ingest import Ingest, adopt_checkpoints
from worker.launcher import ROOT, start_runner
from worker.verdict import keep_tokenizer, release, settle

log = get_logger(__name__)

JOB_VARIABLE = "STUDIO_JOB"
ORPHANS_EVERY_S = 30.0
#: a runner still tidies up for a moment after its verdict
ORPHAN_AFTER_S = 60.0


def claim_and_start(host_id: str | None = None) -> list[Claim]:
    """Claim every queued run that fits this host now and start its runner. Safe to call from anywhere at any
    time: a claim is unique, and a second call finds nothing."""
    host_id = host_id or get_settings().host_id
    started = []
    looked: set[str] = set()  # data sets whose files were hashed; one that cannot be read is the trainer's to tell
    while True:
        with reading() as session:  # mostly there is nothing: do not take the write lock to see that
            if session.scalar(select(Run.id).where(Run.state == "queued", Run.desired == "run").limit(1)) is None:
                return started
        with transaction() as session:
            claim = claim_run(session, host_id, looked)
        if isinstance(claim, Unsure):
            hash_again(claim.dataset_id)
            looked.add(claim.dataset_id)
            continue
        if claim is None:
            return started
        pid = start_runner(claim)
        log.info("claimed", run_id=claim.run_id, attempt=claim.attempt, devices=claim.devices, runner_pid=pid)
        started.append(claim)


class Reconciler:
    """The bookkeeper of one host. Every method may be called again at any time; none waits long."""

    def __init__(self, host_id: str | None = None):
        self.host_id = host_id or get_settings().host_id
        self.boot_id = processes.boot_id()
        load.begin()
        self._facts = {"cpu_slots": gpus.cpu_slots(), "versions": gpus.versions()}
        #: a database that was away has let every lease run out; their holders get time to renew
        self._trust_expiry_at = time.monotonic() + get_timing().lease_s
        self._heard_of: set[str] = set()  # hosts whose workers live, as of the last look
        self._reasons: dict[str, str] = {}  # why an attempt was lost, by its mark
        self._orphans_due = 0.0

    def database_was_away(self) -> None:
        self._trust_expiry_at = time.monotonic() + get_timing().lease_s

    # -- heartbeat ------------------------------------------------------------------------------------------------

    def heartbeat(self, *, draining: bool = False, worker_pid: int | None = None, problem: str | None = None) -> None:
        """Say that this host's worker lives, what the host has and how busy it is; ``problem``: why it takes no
        runs."""
        # before the write lock is taken: GPUs may be slow to answer
        busy, devices = load.host_load(), gpus.host_devices()
        with transaction() as session:
            at = now(session)  # asked before the row is touched: a query flushes what is half filled in
            host = session.get(Host, self.host_id, with_for_update=True)
            if host is None:
                host = Host(id=self.host_id)
                session.add(host)
            host.name, host.boot_id = socket.gethostname()[:200], self.boot_id
            host.cpu_slots, host.devices = self._facts["cpu_slots"], devices
            host.versions = self._facts["versions"]
            host.draining, host.worker_pid, host.last_seen_at, host.load = draining, worker_pid, at, busy
            host.problem = problem
            if host.bad_devices:
                host.bad_devices = [bad for bad in host.bad_devices if bad["until"] > at]

    # -- runs -----------------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """One look at everything that may have died."""
        processes.reap()
        with reading() as session:
            at = now(session)
            held = session.execute(select(Run, Attempt).join(Attempt, Attempt.run_id == Run.id).where(
                Run.state.in_((*LEASED_STATES, "recovering")), Attempt.number == Run.attempt)).all()
            lost_jobs = session.scalars(select(Job.id).where(Job.state == "running")).all()
            self._heard_of = set(session.scalars(select(Host.id).where(
                Host.last_seen_at + get_timing().host_silent_s >= at))) if held or lost_jobs else set()
        for run, attempt in held:
            try:
                if attempt.state == "closed":
                    self._release(run.id)
                elif self._is_over(run, attempt, at):
                    self._fence_and_settle(run, attempt)
            except OSError as error:  # of this run's files: the others do not wait for them
                log.error("could_not_settle", run_id=run.id, error=str(error))
        for job_id in lost_jobs:
            self._look_at_job(job_id)
        if time.monotonic() >= self._orphans_due:
            self._orphans_due = time.monotonic() + ORPHANS_EVERY_S
            self._end_orphans()

    def _is_over(self, run: Run, attempt: Attempt, at: float) -> bool:
        """Whether the attempt's runner is gone for good (or must go); says so in the run's row."""
        expired = (run.lease_expires_at is not None and run.lease_expires_at < at
                   and time.monotonic() > self._trust_expiry_at)
        if attempt.host_id != self.host_id:
            is_silent = attempt.host_id not in self._heard_of and time.monotonic() > self._trust_expiry_at
            if run.state == "cancelling":  # there is nothing to recover, only to end
                return is_silent and expired and run.lease_expires_at + get_timing().host_grace_s < at
            if expired and is_silent:
                self._lose(run, f"Its machine {attempt.host_id} does not answer.")
            return is_silent and attempt.state == "lost" and (attempt.ended_at or 0) + get_timing().host_grace_s < at
        if attempt.boot_id != self.boot_id:
            return self._lose(run, "The machine was started again.")
        if attempt.runner_pid is None:
            return self._does_not_come(run, attempt, at) and self._lose(run, "Its runner did not start.")
        if not processes.is_alive(attempt.runner_pid, attempt.runner_started):
            return self._lose(run, "Its runner has died.")
        if attempt.state == "lost":
            return attempt.ended_at is not None and attempt.ended_at + get_timing().come_back_s < at
        if expired and run.state == "cancelling":  # there is nothing to recover, only to end
            return run.lease_expires_at + get_timing().come_back_s < at
        if expired:
            self._lose(run, "Its runner has not been heard of since its lease began.")
        return False

    def _does_not_come(self, run: Run, attempt: Attempt, at: float) -> bool:
        """Whether a claim will get no runner any more: none exists, or one that exists says nothing (on a busy
        machine a program may need longer to start than a short lease lasts)."""
        patience_s = get_timing().runner_start_s
        if attempt.started_at + patience_s >= at:
            return False
        if not processes.marked(processes.marker(run.id, attempt.number)):
            return True
        return attempt.started_at + patience_s + get_timing().lease_s + get_timing().come_back_s < at

    def _lose(self, run: Run, why: str) -> bool:
        """Mark the attempt lost and the run recovering (a cancelled one needs no recovery); True if it stands."""
        if run.state == "recovering":
            return True
        self._reasons[processes.marker(run.id, run.attempt)] = why[0].lower() + why[1:].rstrip(".")
        with transaction() as session:
            row = session.get(Run, run.id, with_for_update=True, populate_existing=True)
            if row is None or row.state != run.state or row.attempt != run.attempt:
                return False
            log.warning("attempt_lost", run_id=run.id, attempt=run.attempt, why=why)
            if row.state == "cancelling":
                return True
            if not move(session, row, "recovering", data={"message": why}):
                return False
            lost = session.get(Attempt, (run.id, run.attempt))
            lost.state, lost.ended_at = "lost", now(session)
        return True

    def _fence_and_settle(self, run: Run, attempt: Attempt) -> None:
        mark = processes.marker(run.id, attempt.number)
        if attempt.host_id == self.host_id and not processes.kill_marked(mark):
            log.error("fence_not_passed", mark=mark, pids=processes.marked(mark))
            return
        settle_from_disk(run.id, attempt.number, self._reasons.pop(mark, "its runner has died"))

    def _release(self, run_id: str) -> None:
        with reading() as session:
            run = session.get(Run, run_id)
            if run is None or run.state != "recovering" or (
                    run.desired == "run" and run.not_before is not None and run.not_before > now(session)):
                return
        with transaction() as session:
            run = session.get(Run, run_id, with_for_update=True)
            if run is not None and run.state == "recovering":
                release(session, run)

    def _end_orphans(self) -> None:
        """Kill what still carries the mark of an attempt that is over, where nobody else is left to do it."""
        for mark in set(processes.marked_in(get_settings().data_dir).values()):
            run_id, _, number = mark.rpartition("/")
            with reading() as session:
                attempt = session.get(Attempt, (run_id, int(number))) if number.isdigit() else None
                is_over = attempt is not None and attempt.host_id == self.host_id and attempt.state == "closed" \
                    and (attempt.ended_at or 0) + ORPHAN_AFTER_S < now(session)
            if is_over:
                log.warning("orphans_ended", mark=mark, pids=processes.marked(mark))
                processes.kill_marked(mark)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def start_jobs(self) -> subprocess.Popen | None:
        """Claim a job if this host does none and start its process. From the main thread: the process ends
        with the thread that started it."""
        with reading() as session:
            if session.scalar(select(Job.id).where(Job.state == "queued").limit(1)) is None:
                return None
        with transaction() as session:
            claimed = claim_job(session, self.host_id)
        if claimed is None:
            return None
        return start_job(*claimed)

    def _look_at_job(self, job_id: str) -> None:
        """Do a lost job once more, then give it up."""
        with reading() as session:
            job = session.get(Job, job_id)
            if job is None or job.state != "running":
                return
            here = job.lease_host == self.host_id
            silent_s = now(session) - job.lease_expires_at if time.monotonic() > self._trust_expiry_at else 0.0
            expired = silent_s > 0 and (here or job.lease_host not in self._heard_of)
            mark = processes.marker(job.id, job.attempt)
        if here and processes.marked(mark, variable=JOB_VARIABLE):
            if silent_s < get_timing().come_back_s or not processes.kill_marked(mark, variable=JOB_VARIABLE):
                return
        with reading() as session:  # it can have ended between the two looks, or not have started yet
            young = job.started_at is not None and now(session) - job.started_at < 5.0
        if not (expired or (here and not young)):
            return
        with transaction() as session:
            job = session.get(Job, job_id, with_for_update=True, populate_existing=True)
            if job.state != "running" or processes.marker(job.id, job.attempt) != mark:
                return
            log.warning("job_lost", job_id=job_id, attempt=job.attempt)
            lose_job(session, job)

    def end_jobs(self) -> None:
        """End this host's jobs and put them back: the worker ends, and they with it."""
        with reading() as session:
            mine = session.execute(select(Job.id, Job.attempt).where(
                Job.state == "running", Job.lease_host == self.host_id)).all()
        for job_id, attempt in mine:
            if not processes.kill_marked(processes.marker(job_id, attempt), variable=JOB_VARIABLE):
                continue
            with transaction() as session:
                job = session.get(Job, job_id, with_for_update=True)
                if job is not None and job.state == "running" and job.attempt == attempt:
                    lose_job(session, job, on_purpose=True)


def settle_from_disk(run_id: str, attempt: int, cause: str, *, put_back: bool = False) -> str | None:
    """Store what the dead attempt has left (events, checkpoints, verdict) and move its run on; the new state.

    Every process of the attempt must be proven gone. None, changing nothing, where another bookkeeper was faster.
    Raises ``OSError`` where its files cannot be reached.
    """
    run_dir = RunDir(get_settings().runs_dir / run_id)
    if not _is_mounted(get_settings().data_dir):  # it would look as if the attempt had left nothing
        raise FileNotFoundError(errno.ENOENT, "the run directory is not mounted", str(get_settings().data_dir))
    try:
        ingest = Ingest(run_id, attempt, run_dir)
        while ingest.pump():
            pass
        adopt_checkpoints(run_id, run_dir)
    except Fenced as error:
        log.info("settled_elsewhere", run_id=run_id, attempt=attempt, why=str(error))
        return None
    result = run_dir.attempt(attempt).read_result()
    with transaction() as session:
        run = session.get(Run, run_id, with_for_update=True, populate_existing=True)
        if run is None or run.attempt != attempt:
            return None
        keep_tokenizer(session, run, run_dir)
        state = settle(session, run, attempt, result, cause=cause, put_back=put_back)
    log.info("settled", run_id=run_id, attempt=attempt, state=state, status=(result or {}).get("status"))
    return state


def _is_mounted(data_dir: Path) -> bool:
    """Whether the installation's directory is there, and not the empty place where it should be mounted."""
    with reading() as session:
        is_marked = session.scalar(select(Installation.code_version).limit(1)) is not None
    return (data_dir / MARK).is_file() if is_marked else data_dir.is_dir()


def start_job(job_id: str, attempt: int) -> subprocess.Popen:
    """Start the process of a claimed job; it is killed when this process ends."""
    log_path = get_settings().logs_dir / "jobs.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, JOB_VARIABLE: processes.marker(job_id, attempt), "PYTHONPATH": str(ROOT),
           "PYTHONUNBUFFERED": "1", "STUDIO_DATA_DIR": str(get_settings().data_dir), VARIABLE: str(os.getpid())}
    with open(log_path, "ab") as output:
        process = subprocess.Popen([sys.executable, "-P", "-m", "worker.jobs", job_id, str(attempt)], cwd=ROOT,
                                   env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    processes.remember(process)
    log.info("job_started", job_id=job_id, attempt=attempt, pid=process.pid)
    return process
