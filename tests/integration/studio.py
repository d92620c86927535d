"""A real studio for a test: ``./studio up`` as a process, on the database and broker that the test run names.

``STUDIO_TEST_DATABASE_URL`` (a PostgreSQL server) gives each studio a database of its own that is dropped
afterwards; ``STUDIO_TEST_REDIS_URL`` an empty database number that is emptied afterwards. Without them:
SQLite and the embedded Valkey. A test that names a database or a broker itself gets that one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from app.auth.service import create_token
from app.core import db
from benchmarks._studio import own_postgres_database, own_redis_database
from worker.client import StudioClient

ROOT = Path(__file__).resolve().parent.parent.parent
READY = re.compile(r"^Studio ready at (http://\S+)/\?token=(\S+)$")
STOP_WITHIN_S = 45.0


class RunningStudio:
    """Start, stop, kill and restart one studio; ``client`` talks to it as the local admin."""

    def __init__(self, data_dir: Path, **env: str):
        self.data_dir = data_dir
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # it has the log of its start
        self.process: subprocess.Popen | None = None
        self.stderr_path = data_dir / "up.stderr"
        self.client: StudioClient | None = None
        self.url = self.login_token = self.token = ""
        self._drop = None
        self._env = {**os.environ, "STUDIO_PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
                     "STUDIO_DATA_DIR": str(data_dir), **env}
        self._use_given_servers()

    # -- life -------------------------------------------------------------------------------------

    def start(self, *arguments: str, timeout_s: float = 90.0) -> float:
        """Start and wait for the ready line; returns the seconds it took."""
        began = time.monotonic()
        with open(self.stderr_path, "ab") as errors:
            self.process = subprocess.Popen(
                [str(ROOT / "studio"), "up", "--port", "0", "--no_browser", *arguments], text=True,
                env={**self._env, "MINIMIND_DIE_WITH_PARENT": str(os.getpid())},  # also where pytest is killed
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        timer = threading.Timer(timeout_s, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        match = READY.match(line.rstrip("\n"))
        assert match, f"no ready line but {line!r}; {self.stderr()[-3000:]}"
        took = time.monotonic() - began
        self.url, self.login_token = match.groups()
        if not self.token:
            self.token = self._new_token()
        if self.client is not None:
            self.client.close()
        self.client = StudioClient(self.url, self.token)
        return took

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Ask it to end and wait; returns the seconds it took. Fails where anything of it is left."""
        began = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(timeout=STOP_WITHIN_S + 15)
        took = time.monotonic() - began
        self.process.stdout.close()
        assert status == 0, f"up ended with status {status}: {self.stderr()[-3000:]}"
        left = self.processes()
        assert not left, f"left after the stop: {[(p.pid, p.cmdline()) for p in left]}"
        return took

    def close(self) -> None:
        """End everything of it, whatever state a test left it in, and give its databases back."""
        try:
            if self.client is not None:
                self.client.close()
            if self.process is not None and self.process.poll() is None:
                self.stop()
        finally:
            for process in self.processes():
                process.kill()
            if self._drop is not None:
                self._drop()

    def command(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess:
        """Another ``./studio`` command on the same data directory."""
        return subprocess.run([str(ROOT / "studio"), *arguments], env=self._env, text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=timeout_s)

    def python(self, code: str, *arguments: str) -> subprocess.Popen:
        """A program of its own that knows this studio's database and broker, as every process of it does."""
        return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, text=True,
                                env={**self._env, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    # -- looking at it ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[db.Session]:
        """One consistent look at its database."""
        try:
            with db.reading(db.reader_factory(self.database_url)) as session:
                yield session
        finally:
            db.engine_for(self.database_url).dispose()

    @property
    def database_url(self) -> str:
        return self._env.get("STUDIO_DATABASE_URL") or f"sqlite:///{self.data_dir / 'studio.db'}"

    def _new_token(self) -> str:
        """As ``./studio token create`` makes one, without a second for a process."""
        try:
            with db.transaction(db.session_factory(self.database_url)) as session:
                return create_token(session, "test")
        finally:
            db.engine_for(self.database_url).dispose()

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Every live process that belongs to this data directory, by its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE \
                        and process.environ().get("STUDIO_DATA_DIR") == str(self.data_dir):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def role(self, name: str) -> list[psutil.Process]:
        """The processes of one role: web, worker, celery, inference, broker, runner, torchrun or rank; oldest
        first."""
        wanted = {"web": "worker.cli web", "worker": "worker.cli worker", "celery": "worker.main celery",
                  "inference": "worker.cli inference", "broker": "valkey.conf", "runner": "worker.runner",
                  "torchrun": "worker.launcher", "rank": "train.py"}[name]
        found = []
        for process in self.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if wanted in line and not (name == "rank" and "torch.distributed" in line) \
                    and not (name == "rank" and "worker." in line):
                found.append(process)
        return sorted(found, key=lambda p: (p.create_time(), p.pid))

    def kill(self, name: str) -> int:
        """SIGKILL the (oldest) process of a role; returns its pid."""
        deadline = time.monotonic() + 15
        while not self.role(name):
            assert time.monotonic() < deadline, f"there is no {name} to kill"
            time.sleep(0.1)
        victim = self.role(name)[0]
        victim.kill()
        return victim.pid

    def wait_replaced(self, name: str, pid: int, timeout_s: float = 30.0) -> None:
        """Until the role runs again as another process."""
        deadline = time.monotonic() + timeout_s
        while not [p for p in self.role(name) if p.pid != pid]:
            assert time.monotonic() < deadline, f"{name} was not started again"
            time.sleep(0.1)

    def wait_gone(self, *names: str, timeout_s: float = 15.0) -> None:
        """Until no process plays one of these roles (a runner still tidies up when its run is settled)."""
        deadline = time.monotonic() + timeout_s
        while left := [p for name in names for p in self.role(name)]:
            assert time.monotonic() < deadline, f"left: {left}"
            time.sleep(0.1)

    def wait_web(self, timeout_s: float = 30.0) -> None:
        """Until the whole is ready again."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self.client.http.get("/readyz", timeout=3).status_code == 200:
                    return
            except Exception as error:  # whatever a dying server does to a connection
                last = error
            else:
                last = None
            assert time.monotonic() < deadline, f"not ready again: {last}"
            time.sleep(0.2)

    def wait_step(self, run_id: str, step: int, timeout_s: float = 90.0) -> dict:
        """Until the run has done ``step`` steps in state ``running``."""
        def there(run: dict) -> bool:
            assert run["state"] not in ("failed", "completed", "cancelled"), run
            return run["state"] == "running" and (run["progress"].get("step") or 0) >= step

        return self.client.wait(f"/runs/{run_id}", there, timeout_s=timeout_s, every_s=0.05)

    def final_weights(self, run_id: str) -> str:
        """SHA-256 of the last checkpoint's ``model.safetensors``."""
        checkpoints = self.client.get(f"/runs/{run_id}/checkpoints")["items"]
        last = max(checkpoints, key=lambda c: (c["step"], c["created_at"]))
        return hashlib.sha256((Path(last["path"]) / "model.safetensors").read_bytes()).hexdigest()

    # -- given servers ----------------------------------------------------------------------------

    def _use_given_servers(self) -> None:
        drops = []
        database = os.environ.get("STUDIO_TEST_DATABASE_URL")
        if database and "STUDIO_DATABASE_URL" not in self._env:
            self._env["STUDIO_DATABASE_URL"], drop = own_postgres_database(database)
            drops.append(drop)
        broker = os.environ.get("STUDIO_TEST_REDIS_URL")
        if broker and "STUDIO_REDIS_URL" not in self._env:
            self._env["STUDIO_REDIS_URL"], drop = own_redis_database(broker)
            drops.append(drop)

        def drop_all() -> None:
            for drop in drops:
                drop()

        self._drop = drop_all


@contextlib.contextmanager
def running_studio(data_dir: Path, **env: str) -> Iterator[RunningStudio]:
    """One that is started now, and ended whatever happens."""
    running = RunningStudio(data_dir, **env)
    try:
        running.start()
        yield running
    finally:
        running.close()
