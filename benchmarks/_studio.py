"""A real studio for a benchmark: ``./studio up`` on a data directory, a database and a broker of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from worker.client import StudioClient

ROOT = Path(__file__).resolve().parent.parent
READY = re.compile(r"^Studio ready at (http://\S+)/\?token=(\S+)$")
STOP_WITHIN_S = 60.0
#: what a process's command line shows of its role
ROLES = {"web": "worker.cli web", "worker": "worker.cli worker", "celery": "worker.main celery",
         "inference": "worker.cli inference", "broker": "valkey.conf", "runner": "-m worker.runner",
         "torchrun": "-m worker.launcher", "rank": "train.py"}

#: a model that one core steps through in milliseconds
SMALL = {"preset": "tiny-cpu", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 64, "max_seq_len": 32, "batch_size": 2,
         "sample_interval": 0, "eval_interval": 0}


class Studio:
    """Start, stop, kill and look at one studio; ``client`` talks to it as the local admin.

    ``database``: "sqlite" or the URL of a PostgreSQL server, on which a database is made and dropped again;
    ``redis``: "" for the embedded broker or the URL of a server, of which an empty database number is used;
    ``threads``: of each process that computes, None: as many as it takes by itself.
    """

    def __init__(self, data_dir: Path, *, database: str = "sqlite", redis: str = "", threads: int | None = 1,
                 **env: str):
        self.data_dir = data_dir
        self.process: subprocess.Popen | None = None
        self.client: StudioClient | None = None
        self.token = ""
        self.database_url = f"sqlite:///{data_dir / 'studio.db'}"
        self.redis_url = ""
        self.port = free_port()  # the same after a restart, so that who follows it finds it again
        self._drops: list[Callable[[], None]] = []
        kept = {k: v for k, v in os.environ.items() if not k.startswith("STUDIO_")}
        kept.pop("OMP_NUM_THREADS", None)
        self.env = {**kept, "STUDIO_PYTHON": sys.executable, "STUDIO_DATA_DIR": str(data_dir),
                    **({"OMP_NUM_THREADS": str(threads)} if threads else {}), **env}
        if database != "sqlite":
            self.database_url = self.env["STUDIO_DATABASE_URL"] = self._own(own_postgres_database(database))
        if redis:
            self.redis_url = self.env["STUDIO_REDIS_URL"] = self._own(own_redis_database(redis))

    def _own(self, made: tuple[str, Callable[[], None]]) -> str:
        self._drops.append(made[1])
        return made[0]

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = 120.0) -> float:
        """Start and wait for the ready line; returns the seconds it took."""
        if not self.token:
            self.token = self.command("token", "create", "bench").stdout.split()[-1]
        began = time.monotonic()
        with open(self.data_dir / "up.stderr", "ab") as errors:
            self.process = subprocess.Popen(
                [str(ROOT / "studio"), "up", "--port", str(self.port), "--no_browser"], text=True,
                env={**self.env, "MINIMIND_DIE_WITH_PARENT": str(os.getpid())}, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        timer = threading.Timer(timeout_s, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        match = READY.match(line.rstrip("\n"))
        if match is None:
            self.kill()
            raise SystemExit(f"The studio did not start; its words are in {self.data_dir / 'up.stderr'}.")
        if self.client is None:
            self.client = self.new_client()
        return time.monotonic() - began

    def stop(self) -> int:
        """Ask it to end and wait; its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.process.stdout.close()
            self.process = None

    def kill(self) -> None:
        """SIGKILL to the supervisor alone, and wait until its children have followed it."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process = None
        self.wait(lambda: not any(self.role(n) for n in ("web", "worker", "inference", "broker")), 20)

    def close(self) -> None:
        """End everything of it and give its databases back."""
        try:
            if self.client is not None:
                self.client.close()
            self.stop()
        finally:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            for drop in self._drops:
                drop()
            self._drops.clear()

    def command(self, *arguments: str, timeout_s: float = 90.0) -> subprocess.CompletedProcess:
        """Another ``./studio`` command on the same data directory."""
        return subprocess.run([str(ROOT / "studio"), *arguments], env=self.env, text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=timeout_s, check=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def new_client(self, timeout_s: float = 15.0) -> StudioClient:
        """One for each thread."""
        return StudioClient(self.url, self.token, timeout_s=timeout_s)

    # -- looking at it --------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Every live process of this data directory, by its environment."""
        wanted = f"STUDIO_DATA_DIR={self.data_dir}"
        return [p for p in _live_processes() if wanted in _environment(p)]

    def role(self, name: str, among: list[psutil.Process] | None = None) -> list[psutil.Process]:
        """The processes of one role of ``ROLES``, oldest first."""
        found = []
        for process in self.processes() if among is None else among:
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if ROLES[name] in line and (name != "rank" or ROLES["torchrun"] not in line):
                    found.append((process.create_time(), process.pid, process))
        return [p for _, _, p in sorted(found, key=lambda entry: entry[:2])]

    @staticmethod
    def wait(done: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
        """Until ``done``; False where that took too long."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(every_s)
        return True

    def material(self, rows: int = 300) -> dict[str, str]:
        """A small dataset and a tokenizer made of it: ``{"dataset_id", "tokenizer"}``."""
        answer = self.client.http.post("/api/v1/datasets", files={"file": ("words.jsonl", words_jsonl(rows))},
                                       data={"name": "words"})
        dataset = self.client.wait_ready("datasets", answer.json()["id"], timeout_s=120)
        made = self.client.post("/tokenizers", {"name": "words", "dataset_id": dataset["id"], "vocab_size": 400})
        tokenizer = self.client.wait_ready("tokenizers", made["id"], timeout_s=120)
        if (dataset["state"], tokenizer["state"]) != ("ready", "ready"):
            raise SystemExit(f"The material could not be made: {dataset['error']} {tokenizer['error']}")
        return {"dataset_id": dataset["id"], "tokenizer": tokenizer["id"]}


def add_checkpoint(database_url: str, path: Path, id: str) -> None:
    """Make ``path`` known to the studio of this database as the checkpoint ``id`` of a completed run of its own,
    ``id`` + ``run``."""
    from app.core import db
    from app.core.models import LOCAL_ADMIN_ID, Checkpoint, Run

    try:
        with db.transaction(db.session_factory(database_url)) as session:
            session.add(Run(id=f"{id}run", name=id, user_id=LOCAL_ADMIN_ID, stage="sft", config={}, devices="auto",
                            state="completed", created_at=1e9, updated_at=1e9, ended_at=1e9))
            session.flush()
            session.add(Checkpoint(id=id, run_id=f"{id}run", attempt=1, stage="sft", step=1, tokens=1, bytes=1,
                                   path=str(path), state="ready", created_at=1e9))
    finally:
        db.engine_for(database_url).dispose()


def mark_of(process: psutil.Process) -> str | None:
    """``run/attempt`` of a process that works for one."""
    return next((e.partition("=")[2] for e in _environment(process) if e.startswith("STUDIO_ATTEMPT=")), None)


def _live_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _environment(process: psutil.Process) -> list[str]:
    try:
        return [f"{k}={v}" for k, v in process.environ().items()]
    except (psutil.Error, OSError):
        return []


def words_jsonl(rows: int, seed: int = 1) -> bytes:
    """Rows of random words, always the same."""
    rng = random.Random(seed)
    words = "the a cat dog house river runs sleeps sees big small red blue Anna Ben lives in near with and".split()
    return "".join(json.dumps({"text": " ".join(rng.choices(words, k=rng.randint(10, 60)))}) + "\n"
                   for _ in range(rows)).encode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# -- given servers ------------------------------------------------------------------------------------------------


def own_postgres_database(server_url: str) -> tuple[str, Callable[[], None]]:
    """A new database on the server, and the function that drops it."""
    import psycopg

    name = f"studio_bench_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')

    def drop() -> None:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}")), drop


def own_redis_database(server_url: str) -> tuple[str, Callable[[], None]]:
    """An empty database number of the server, marked as taken, and the function that empties it."""
    import redis

    for number in range(15, 0, -1):
        url = urlunsplit(urlsplit(server_url)._replace(path=f"/{number}"))
        client = redis.Redis.from_url(url)
        # the same mark as the tests set: they share servers
        if client.dbsize() == 0 and client.set("studio-test-owner", os.getpid(), nx=True):
            def drop(client: redis.Redis = client) -> None:
                client.flushdb()
                client.close()

            return url, drop
        client.close()
    raise SystemExit(f"All database numbers of {server_url} are in use.")
