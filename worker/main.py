"""The worker of a host: ``./studio worker [--drain]`` (``python -m worker.main``), one per machine.

The main process is the bookkeeper (``worker.reconciler``): it says that the host lives, looks every two seconds
for work and for what has died. Beside it runs a Celery worker with one slot, whose only task is the bell
``worker.wake``: it claims what fits, starts the runners detached and is done. Either finds work without the
other, so a lost message or an absent broker costs two seconds. Celery dies with the main process; runners do not.

SIGTERM ends the worker and leaves its runners alone. With ``--drain`` (or ``STUDIO_DRAIN=1``) it first lets them
save, pause and go back into the queue; ``worker.drain`` has the details.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings

from celery import Celery
from celery.platforms import SecurityWarning
from sqlalchemy.exc import SQLAlchemyError

from app.core import logging
from app.core.channels import WAKE_TASK, celery_config
from app.core.settings import get_settings
from app.core.timing import get_timing
from worker import join
from worker.bell import Bell
from worker.drain import drain_host
from worker.launcher import ROOT
from worker.reconciler import Reconciler, claim_and_start

log = logging.get_logger(__name__)

LONGEST_BACKOFF_S = 30.0

celery = Celery("studio")
celery.conf.update(celery_config(get_settings().celery_broker_url, get_settings().redis_prefix))


@celery.task(name=WAKE_TASK, ignore_result=True)
def wake(kind: str = "run") -> None:
    """There may be work: take what fits, start it, return. Jobs are started by the main process, which they
    must end with; it is woken."""
    if kind == "run":
        claim_and_start()
    worker_pid = os.environ.get("STUDIO_WORKER_PID")
    if worker_pid and int(worker_pid) == _grandparent():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker_pid), signal.SIGUSR1)


def _grandparent() -> int | None:
    """The worker's main process as seen from a pool child; None where Celery was started by hand."""
    import psutil

    try:
        parents = psutil.Process().parents()
    except psutil.NoSuchProcess:
        return None
    return parents[1].pid if len(parents) > 1 else None


class Worker:
    """The main process of the worker."""

    celery_command = (sys.executable, "-P", "-m", "worker.main", "celery")

    def __init__(self, *, drain: bool):
        self.drain = drain
        self.reconciler = Reconciler()
        self.woken = Bell()
        self.stop_asked = False
        self.celery: subprocess.Popen | None = None
        self._celery_due = 0.0
        self._backoff = 1.0
        self._database_away = False
        self._by_up = join.started_by_up()
        self._problem: str | None = None

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, lambda *_: self.woken.ring())
        next_heartbeat = 0.0
        try:
            while not self.stop_asked:
                self._keep_celery()
                if time.monotonic() >= next_heartbeat and self._try(self._heartbeat):
                    next_heartbeat = time.monotonic() + get_timing().heartbeat_every_s
                self._try(self.reconciler.reconcile)
                if self._problem is None:
                    self._try(claim_and_start)
                    self._try(self.reconciler.start_jobs)
                self.woken.wait(get_timing().poll_s)
            self._try(lambda: self.reconciler.heartbeat(draining=True))
            self._end_celery()
            self._try(self.reconciler.end_jobs)
            if self.drain:
                drain_host(reconciler=self.reconciler)
        finally:
            self._end_celery()
        return 0

    def _heartbeat(self) -> None:
        """Say that this worker lives, and whether it takes new work."""
        problem = join.problem_now(by_up=self._by_up)
        if problem and problem != self._problem:
            log.warning("takes_nothing_new", why=problem)
        elif self._problem and not problem:
            log.info("takes_new_work_again")
        self._problem = problem
        self.reconciler.heartbeat(worker_pid=os.getpid(), problem=problem)

    def _try(self, act) -> bool:
        """``act``; a database that is away is waited for, and its expired leases are then not believed."""
        began = time.monotonic()
        try:
            act()
        except SQLAlchemyError as error:
            if not self._database_away:
                log.warning("database_away", error=str(error).splitlines()[0])
            self._database_away = True
            return False
        except OSError as error:  # no memory or no process left to start a runner with
            log.error("could_not_start", error=str(error))
            return False
        waited = time.monotonic() - began > get_timing().lease_s / 2  # SQLite waits where PostgreSQL fails
        if self._database_away or waited:
            log.info("database_back")
            self.reconciler.database_was_away()
            self._database_away = False
        return True

    def _keep_celery(self) -> None:
        """Start Celery, again with back-off if it has died. From the main thread, which it must end with."""
        if self.celery is not None and self.celery.poll() is None:
            return
        if self.celery is not None:
            log.warning("celery_ended", status=self.celery.returncode, again_in_s=self._backoff)
            self.celery = None
            self._celery_due = time.monotonic() + self._backoff
            self._backoff = min(LONGEST_BACKOFF_S, self._backoff * 2)
        if time.monotonic() >= self._celery_due:
            env = {**os.environ, "STUDIO_WORKER_PID": str(os.getpid()), "PYTHONPATH": str(ROOT)}
            self.celery = subprocess.Popen(self.celery_command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL,
                                           process_group=0)

    def _end_celery(self) -> None:
        """At once, with its slot: what it was doing is a transaction, and is done again by whoever looks next. (Asked
        to leave, it takes two seconds for that.)"""
        if self.celery is None or self.celery.poll() is not None:
            return
        os.killpg(self.celery.pid, signal.SIGKILL)
        self.celery.wait()

    def _on_stop(self, _number: int, _frame: object) -> None:
        self.stop_asked = True
        self.woken.ring()


def run_celery() -> None:
    """The Celery process: ends with its parent."""
    from minimind.lifeline import die_with_parent
    from worker import transport

    die_with_parent(int(os.environ.get("STUDIO_WORKER_PID", 0)))  # it may have ended while this one was starting
    transport.install()
    # In a container everything runs as root; the broker is ours alone and carries no code.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    celery.worker_main(["--quiet", "worker", "--concurrency", "1", "--pool", "prefork", "--loglevel", "WARNING",
                        "--without-gossip", "--without-mingle", "--hostname", f"studio@{get_settings().host_id}"])


def main(arguments: list[str] | None = None, *, drain: bool | None = None) -> int:
    """``drain`` None: as ``--drain`` in ``arguments`` or ``STUDIO_DRAIN`` says."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["celery"]:
        logging.setup("celery")
        run_celery()
        return 0
    logging.setup("worker")
    return Worker(drain="--drain" in arguments or get_settings().drain if drain is None else drain).run()


if __name__ == "__main__":
    sys.exit(main())
