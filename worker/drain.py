"""Ending this host's runs in order when its worker ends for good: ``./studio up`` and ``worker --drain``.

A run is asked to save and pause with reason ``shutdown`` and goes back into the queue; ``desired`` stays ``run``,
so the next worker continues it by itself. In bounded time: what has not saved after 37 seconds is killed by its
own runner, a runner that hangs is killed here after 40, and its row is put back into the queue too.
"""

from __future__ import annotations

import signal
import time

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.db import reading, transaction
from app.core.logging import get_logger
from app.core.models import Attempt, Run
from app.core.settings import get_settings
from app.core.states import is_settled
from worker import processes
from worker.reconciler import Reconciler, settle_from_disk
from worker.verdict import queue_at_once

log = get_logger(__name__)

KILL_AFTER_S = 40.0


def drain_host(timeout_s: float = KILL_AFTER_S, *, reconciler: Reconciler | None = None) -> bool:
    """Bring every run of this host to rest; True if all of them did so by themselves.

    Sets ``host.draining`` (no claims), asks each runner by SIGTERM, waits, and kills what is left. Call it where
    nothing else of this host claims any more, or accept that the flag alone keeps claims away. Where the database is
    away, the processes are found by their marks and end all the same; the next start settles their rows.
    """
    reconciler = reconciler or Reconciler()
    deadline = time.monotonic() + timeout_s
    _set_draining(reconciler)
    asked: set[int] = set()
    while True:
        try:
            open_attempts = attempts_of_host(reconciler.host_id)
            for attempt in open_attempts:
                if processes.is_alive(attempt.runner_pid, attempt.runner_started):
                    if attempt.runner_pid not in asked:
                        asked.add(attempt.runner_pid)
                        processes.send([attempt.runner_pid], signal.SIGTERM)
                elif attempt.runner_pid is not None or not processes.marked(_mark(attempt)):
                    _put_back(attempt)  # its runner is dead or was never started
            if not open_attempts and not living_runners(reconciler.host_id):
                _queue_recovering()
                return True
        except SQLAlchemyError as error:
            log.warning("database_away", error=str(error).splitlines()[0])
            left = processes.marked_in(get_settings().data_dir)
            if not left:
                return False
            told = [pid for pid in processes.outermost(left) if pid not in asked]
            asked.update(told)
            processes.send(told, signal.SIGTERM)
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    try:
        kill_host(reconciler.host_id)
        _queue_recovering()
    except SQLAlchemyError as error:
        log.warning("database_away", error=str(error).splitlines()[0])
        kill_unasked()
    return False


def kill_unasked() -> None:
    """SIGKILL to every process of every attempt on this data directory; their rows are left to the next start."""
    processes.send(processes.marked_in(get_settings().data_dir), signal.SIGKILL)


def kill_host(host_id: str | None = None) -> None:
    """SIGKILL to every process of every open attempt of this host, and their rows back into the queue."""
    for attempt in attempts_of_host(host_id or get_settings().host_id):
        log.error("killed_at_drain", run_id=attempt.run_id, attempt=attempt.number)
        _put_back(attempt)
    processes.send(living_runners(host_id or get_settings().host_id), signal.SIGKILL)


def _queue_recovering() -> None:
    """Runs that wait for their next attempt wait in the queue, where the next start finds them."""
    with transaction() as session:
        for run in session.scalars(select(Run).where(Run.state == "recovering")):
            if is_settled(session, run):
                queue_at_once(session, run)


def living_runners(host_id: str) -> list[int]:
    """Pids of every process of every attempt of this host, closed ones included: a runner lives on for a moment
    after its verdict."""
    found = processes.all_marked()
    if not found:
        return []
    with reading() as session:
        return [pid for pid, mark in found.items() if (attempt := session.get(Attempt, _key(mark))) is not None
                and attempt.host_id == host_id]


def _key(mark: str) -> tuple[str, int]:
    run_id, _, number = mark.rpartition("/")
    return run_id, int(number) if number.isdigit() else 0


def attempts_of_host(host_id: str) -> list[Attempt]:
    """What this host has begun and not brought to rest."""
    with reading() as session:
        return list(session.scalars(select(Attempt).join(Run, Run.id == Attempt.run_id).where(
            Attempt.host_id == host_id, Attempt.state != "closed", Attempt.number == Run.attempt)))


def _put_back(attempt: Attempt) -> None:
    if processes.kill_marked(_mark(attempt)):
        settle_from_disk(attempt.run_id, attempt.number, "the studio was stopped", put_back=True)
    else:
        log.error("will_not_die", mark=_mark(attempt), pids=processes.marked(_mark(attempt)))


def _mark(attempt: Attempt) -> str:
    return processes.marker(attempt.run_id, attempt.number)


def _set_draining(reconciler: Reconciler) -> None:
    try:
        reconciler.heartbeat(draining=True)
    except SQLAlchemyError as error:
        log.warning("database_away", error=str(error).splitlines()[0])
