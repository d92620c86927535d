"""The worker of a host as a process: with and without a broker, ended politely, killed, and started again."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from app.core import channels, db, queue, states
from app.core.models import Dataset, Host, Run, TokenizerRow, new_id
from app.core.settings import get_settings
from minimind.tokenizer import Tokenizer
from tests.database_rig import add_run, get_run
from tests.worker.runner_rig import ROOT, attempt_of, checkpoints_of, is_dense, wait_for_state, wait_until, wish

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def worker(*arguments: str, module: str = "tests.worker.worker_rig") -> Iterator[subprocess.Popen]:
    """A running worker, killed at the end if it still is."""
    log = get_settings().data_dir / "worker.log"
    with open(log, "ab") as output:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=output,
                                   stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def stop(process: subprocess.Popen, timeout_s: float = 20) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=timeout_s) == 0, (get_settings().data_dir / "worker.log").read_text()[-3000:]


def celery_of(process: subprocess.Popen) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "celery" in p.cmdline()]


def test_without_a_broker_runs_and_jobs_are_found_by_looking(runners, monkeypatch):
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"steps": 10}))
    with worker() as process:
        run_id = add_run()
        with db.transaction() as session:
            session.add(Dataset(id="d1", name="d", user_id="local", layout="auto", state="importing", created_at=0,
                                source={"kind": "starter"}, warnings=[]))
            queue.enqueue_job(session, "dataset_import", {
                "dataset_id": "d1", "upload_path": None, "layout": "auto",
                "starter": {"part": "text", "minutes": 0.5, "languages": ["en"], "seed": 1}}, user_id="local")
        wait_for_state(run_id, "completed", timeout_s=40)

        def dataset() -> Dataset:
            with db.reading() as session:
                return session.get(Dataset, "d1")

        wait_until(lambda: dataset().state == "ready", timeout_s=40)
        with db.reading() as session:
            host = session.get(Host, "here")
            assert host.worker_pid == process.pid and host.cpu_slots >= 1 and "torch" in host.versions
        stop(process)


def test_a_run_outlives_its_worker_and_is_adopted_by_the_next(runners, monkeypatch):
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"steps": 400, "step_s": 0.05}))
    with worker() as first:
        run_id = add_run()
        wait_until(lambda: checkpoints_of(run_id), timeout_s=40)
        celery = celery_of(first)
        first.kill()
        first.wait()
        wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in celery), timeout_s=5)
    with worker() as second:
        wait_until(lambda: _host_is_of(second.pid), timeout_s=40)
        before = get_run(run_id).progress["step"]
        wait_until(lambda: get_run(run_id).progress["step"] > before + 20)
        stop(second)  # politely, without draining: it leaves the run alone too
    assert get_run(run_id).state == "running" and get_run(run_id).attempt == 1
    with worker("--drain") as third:
        pid = attempt_of(run_id, 1).runner_pid
        wait_until(lambda: _host_is_of(third.pid), timeout_s=40)
        stop(third, timeout_s=45)
    run = get_run(run_id)
    assert (run.state, run.desired, run.attempt) == ("queued", "run", 1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert checkpoints_of(run_id)[-1].step == run.progress["step"] and is_dense(run_id)


def _host_is_of(pid: int) -> bool:
    with db.reading() as session:
        return session.get(Host, "here").worker_pid == pid


def test_celery_starts_a_run_by_the_bell_alone_and_its_tokenizer_is_kept(runners, bell, monkeypatch):
    """The worker looks by itself only once an hour: what starts the run is the message. The trainer is the real one."""
    monkeypatch.setenv("STUDIO_POLL_S", "3600")
    with worker() as process:
        wait_until(lambda: _host_is_of(process.pid), timeout_s=40)
        wait_until(lambda: celery_of(process) and celery_of(process)[0].children(), timeout_s=40)
        run_id = add_run(stage="tokenizer", config={"vocab_size": 400, "languages": ["en"]},
                         devices={"kind": "cpu", "count": 1})
        run = wait_for_state(run_id, "completed", "failed", timeout_s=90)
        assert run.state == "completed", run.error
        with db.reading() as session:
            row = session.get(TokenizerRow, run_id)
        assert Tokenizer.load(row.path).fingerprint == row.fingerprint and row.vocab_size <= 400
        stop(process)


def _message(**changes: object) -> bytes:
    """What a bell looks like in the queue."""
    body = base64.b64encode(json.dumps([["run"], {}, {}]).encode()).decode()
    return json.dumps({
        "body": body, "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {"task": channels.WAKE_TASK, "id": new_id(), "lang": "py"},
        "properties": {"delivery_tag": new_id(), "delivery_info": {"exchange": "", "routing_key": "wake"},
                       "body_encoding": "base64", "correlation_id": new_id()}} | changes).encode()


def test_no_message_ends_celery_and_the_next_bell_is_heard(runners, bell, monkeypatch):
    monkeypatch.setenv("STUDIO_POLL_S", "3600")
    canary = get_settings().data_dir / "canary"
    hostile = base64.b64encode(f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()).decode()
    messages = [b"garbage", b"\xff\xfe", b"[]", b"{}", b"[" * 50_000, b'{"__type__": "decimal", "__value__": "x"}',
                _message(properties=[]), _message(headers=None), _message(headers={"task": ["x"], "id": "1"}),
                _message(headers={"task": "os.system", "id": "1"}), _message(body="no base64"),
                _message(headers={"task": channels.WAKE_TASK, "id": "1", "timelimit": "long", "eta": "soon"}),
                _message(body=hostile, **{"content-type": "application/x-python-serialize",
                                          "content-encoding": "binary"})]
    with worker() as process, channels.client() as client:
        wait_until(lambda: _host_is_of(process.pid), timeout_s=40)
        wait_until(lambda: celery_of(process) and celery_of(process)[0].children(), timeout_s=40)
        celery = celery_of(process)[0]
        queue_key = f"{get_settings().redis_prefix}:celery:wake"
        client.lpush(queue_key, *messages)
        wait_until(lambda: client.llen(queue_key) == 0, timeout_s=40)
        run_id = add_run()
        wait_for_state(run_id, "starting", "running", timeout_s=40)
        wish(states.request_cancel, run_id)
        wait_for_state(run_id, "cancelled", timeout_s=60)
        assert celery_of(process) == [celery], "the same process all the time"
        # the bell that rang for the cancellation may just be on its way through
        wait_until(lambda: client.hlen(f"{get_settings().redis_prefix}:celery:unacked") == 0, timeout_s=20)
        stop(process)
    log = (get_settings().data_dir / "worker.log").read_text()
    assert log.count("message_rejected") >= 7 and "os.system" in log and "ContentDisallowed" in log
    assert not canary.exists()


def test_a_wish_rings_the_runner(runners, bell, monkeypatch):
    """Well under the poll interval of the row."""
    monkeypatch.setenv("FAKE_TRAINER", json.dumps({"steps": 1000, "step_s": 0.02}))
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "running")
    with channels.client() as client:
        wait_until(lambda: client.pubsub_numsub(channels.runner_channel(run_id))[0][1] == 1)
    with db.transaction() as session:
        states.request_pause(session, session.get(Run, run_id))
    wait_for_state(run_id, "paused", timeout_s=10)
