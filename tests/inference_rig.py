"""Real parts for tests that need an inference process: a broker, a small random checkpoint, the process itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from worker.broker import find_binary

ROOT = Path(__file__).resolve().parents[1]


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> object:
    """The first true value of ``condition``; fails with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s for {what}")


class Broker:
    """A Valkey server without persistence on a unix socket with a short path."""

    def __init__(self, directory: str):
        self.socket = Path(directory) / "b.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [find_binary(), "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no",
             "--dir", self.socket.parent], stdout=subprocess.DEVNULL)
        wait_for(self._answers, "the broker")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.socket.unlink(missing_ok=True)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextlib.contextmanager
def running_broker() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="broker-", dir="/tmp") as directory:
        broker = Broker(directory)
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()


class InferenceServer:
    """``python -m worker.inference`` as the supervisor starts it."""

    def __init__(self, redis_url: str, directory: Path, **environment: str):
        self.log = directory / "inference.log"
        self._environment = {**os.environ, "STUDIO_REDIS_URL": redis_url, "STUDIO_DATA_DIR": str(directory),
                             "OMP_NUM_THREADS": "1", "MINIMIND_DIE_WITH_PARENT": "1", **environment}
        self.process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "worker.inference"], cwd=ROOT, stderr=log,
                                            env=self._environment)
        return self.process

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running_inference(redis_url: str, directory: Path, **environment: str) -> Iterator[InferenceServer]:
    server = InferenceServer(redis_url, directory, **environment)
    server.start()
    try:
        yield server
    finally:
        server.kill()
