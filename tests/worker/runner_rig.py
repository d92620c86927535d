"""Real runners with a trainer that starts at once: ``python -m tests.worker.runner_rig RUN ATTEMPT`` is one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import create_engine, select
from sqlalchemy.exc import OperationalError

from app.core import db, queue
from app.core.models import Attempt, Checkpoint, Event, Run
from app.core.settings import get_settings
from tests.database_rig import HOST, get_run
from worker import launcher, prepare, processes, runner
from worker.launcher import rank_command as real_command

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_trainer.py")


#: how long a runner of the rig waits for a locked SQLite database, and for a GPU that is in use (seconds)
BUSY_VARIABLE, GPU_VARIABLE = "RIG_BUSY_S", "RIG_GPU_PATIENCE_S"
#: set: train.py itself
REAL_VARIABLE = "RIG_REAL"


def fake_command(stage: str, run_dir: Path, attempt: int, *, world_size: int, **options: object) -> list[str]:
    """The real argv, torchrun included where there are several ranks, with the fake in the place of train.py."""
    real = real_command(stage, run_dir, attempt, world_size=world_size, **options)
    return [str(FAKE) if part == str(ROOT / "train.py") else part for part in real]


class FakeRunners:
    """Stands in for ``worker.launcher.start_runner``: the same process, started the same way, with the fake."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []

    def start(self, claim: queue.Claim) -> int:
        env = {**os.environ, processes.ATTEMPT_VARIABLE: processes.marker(claim.run_id, claim.attempt)}
        process = subprocess.Popen([sys.executable, "-m", "tests.worker.runner_rig", claim.run_id,
                                    str(claim.attempt)], cwd=ROOT, env=env, start_new_session=True)
        self.processes.append(process)
        return process.pid

    def claim_and_start(self) -> queue.Claim | None:
        with db.transaction() as session:
            claim = queue.claim_run(session, HOST)
        if claim is not None:
            self.start(claim)
        return claim

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def wait_until(is_true: Callable[[], object], timeout_s: float = 20.0) -> object:
    deadline = time.monotonic() + timeout_s
    while not (value := is_true()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


def wait_for_state(run_id: str, *states: str, timeout_s: float = 20.0) -> Run:
    deadline = time.monotonic() + timeout_s
    while (run := get_run(run_id)).state not in states:
        assert time.monotonic() < deadline, f"still {run.state}, not {states}; {run.error}"
        time.sleep(0.05)
    return run


def events_of(run_id: str, type: str | None = None) -> list[Event]:
    with db.reading() as session:
        query = select(Event).where(Event.topic == f"run:{run_id}").order_by(Event.seq)
        return [e for e in session.scalars(query) if type is None or e.type == type]


def checkpoints_of(run_id: str) -> list[Checkpoint]:
    with db.reading() as session:
        return list(session.scalars(select(Checkpoint).where(Checkpoint.run_id == run_id).order_by(Checkpoint.step)))


def attempt_of(run_id: str, number: int) -> Attempt:
    with db.reading() as session:
        return session.get(Attempt, (run_id, number))


def is_dense(run_id: str) -> bool:
    seqs = [e.seq for e in events_of(run_id)]
    return seqs == list(range(1, len(seqs) + 1)) and get_run(run_id).next_seq == len(seqs) + 1


def tell(monkeypatch, **wants) -> None:
    monkeypatch.setenv("FAKE_TRAINER", json.dumps(wants))


def wish(act, run_id: str, *arguments) -> None:
    with db.transaction() as session:
        act(session, session.get(Run, run_id), *arguments)


def stop_between_transactions(pid: int) -> None:
    """A process that is stopped while it holds a lock would stop this test too."""
    url = get_settings().sqlalchemy_url
    on_sqlite = url.startswith("sqlite")
    impatient = create_engine(url, module=db.sqlite_dbapi, connect_args={"timeout": 0.05}) if on_sqlite else \
        db.engine_for(url)
    while True:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)
        try:
            with impatient.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE" if on_sqlite else "SELECT * FROM run FOR UPDATE NOWAIT")
                connection.rollback()
            return
        except OperationalError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)


if __name__ == "__main__":
    if not os.environ.get(REAL_VARIABLE):
        prepare.rank_command = fake_command
    runner.GPU_PATIENCE_S = float(os.environ.get(GPU_VARIABLE, runner.GPU_PATIENCE_S))
    db.BUSY_TIMEOUT_S = float(os.environ.get(BUSY_VARIABLE, db.BUSY_TIMEOUT_S))
    assert launcher.ROOT == ROOT
    sys.exit(runner.main(sys.argv[1:]))
