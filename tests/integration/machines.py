"""Several machines for a test: workers under host names of their own, on one PostgreSQL, one Redis and one directory.

Each machine is a network namespace where that is allowed (root, with ``ip netns``): it reaches the servers through a
cable of its own that can be pulled. Elsewhere a machine is a name on the loopback, whose processes can be killed or
stopped all the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest

from app.core import channels, db
from app.core.settings import get_settings
from app.core.timing import get_timing
from tests.integration.studio import ROOT, own_postgres_database, own_redis_database
from worker.database import open_installation

SERVERS = ("STUDIO_TEST_DATABASE_URL", "STUDIO_TEST_REDIS_URL")
needs_servers = pytest.mark.skipif(not all(os.environ.get(name) for name in SERVERS),
                                   reason=f"several machines need {' and '.join(SERVERS)}")


def ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def has_namespaces() -> bool:
    """Whether this user may make network namespaces."""
    if sys.platform != "linux" or os.getuid() != 0 or not shutil.which("ip"):
        return False
    name = f"studio-probe-{os.getpid()}"
    return ip("netns", "add", name) and ip("netns", "del", name)


class Forwarder:
    """Passes connections to ``address`` on to a server of this machine's loopback."""

    def __init__(self, address: str, server: tuple[str, int]):
        self._server = server
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]
        self._ends: set[socket.socket] = {self._listener}
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(near,), daemon=True))
                self._threads[-1].start()

    def _serve(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._server) as far:
            self._ends |= {near, far}
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join()
            self._ends -= {near, far}

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Machine:
    """A host with its worker. ``cut`` and ``mend`` its cable, ``freeze`` and ``thaw`` it, ``power_off``."""

    def __init__(self, name: str, number: int, env: dict[str, str], *, in_namespace: bool):
        self.name = name
        self.env = {**env, "STUDIO_HOST_ID": name}
        self.worker: subprocess.Popen | None = None
        self._enter: list[str] = []
        self._cable: str | None = None
        self._forwarders: list[Forwarder] = []
        if in_namespace:
            self._plug_in(number)

    def _plug_in(self, number: int) -> None:
        tag = f"{os.getpid() % 100_000}{number}"
        self._namespace, self._cable = f"studio-{tag}", f"st{tag}"
        near, far = (f"10.{200 + number}.{os.getpid() % 250}.{end}" for end in (1, 2))
        in_it = ("-n", self._namespace)
        for arguments in (("netns", "add", self._namespace),
                          ("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns",
                           self._namespace),
                          ("addr", "add", f"{near}/30", "dev", self._cable), ("link", "set", self._cable, "up"),
                          (*in_it, "link", "set", "lo", "up"), (*in_it, "addr", "add", f"{far}/30", "dev", "eth0"),
                          (*in_it, "link", "set", "eth0", "up")):
            assert ip(*arguments), f"ip {' '.join(arguments)}"
        self._enter = ["ip", "netns", "exec", self._namespace]
        for variable, port in (("STUDIO_DATABASE_URL", 5432), ("STUDIO_REDIS_URL", 6379)):
            url = urlsplit(self.env[variable])
            self._forwarders.append(Forwarder(near, (url.hostname, url.port or port)))
            who = f"{url.netloc.rpartition('@')[0]}@" if "@" in url.netloc else ""
            self.env[variable] = urlunsplit(url._replace(netloc=f"{who}{near}:{self._forwarders[-1].port}"))

    # -- its worker -----------------------------------------------------------------------------------------------

    def start(self, *arguments: str, real: bool = False, cores: int | None = None, **env: str) -> None:
        """Its worker, by the real command; the trainer is the fake one unless ``real``."""
        module = "worker.cli" if real else "tests.worker.worker_rig"
        command = [*self._enter, sys.executable, "-m", module, *(["worker"] if real else ["--join"]), *arguments]
        if cores is not None:
            command = ["taskset", "-c", ",".join(map(str, range(cores))), *command]
        with open(Path(self.env["STUDIO_DATA_DIR"]) / f"{self.name}.log", "ab") as log:
            self.worker = subprocess.Popen(command, cwd=ROOT, env={**self.env, **env}, stdin=subprocess.DEVNULL,
                                           stdout=log, stderr=subprocess.STDOUT)

    def stop(self, timeout_s: float = 60.0) -> None:
        self.worker.send_signal(signal.SIGTERM)
        assert self.worker.wait(timeout=timeout_s) == 0, self.log()[-3000:]

    def log(self) -> str:
        return (Path(self.env["STUDIO_DATA_DIR"]) / f"{self.name}.log").read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if process.status() != psutil.STATUS_ZOMBIE and environment.get("STUDIO_HOST_ID") == self.name \
                        and environment.get("STUDIO_DATA_DIR") == self.env["STUDIO_DATA_DIR"]:
                    found.append(process)
        return found

    # -- what happens to it ---------------------------------------------------------------------------------------

    @property
    def has_cable(self) -> bool:
        return self._cable is not None

    def cut(self) -> None:
        assert ip("link", "set", self._cable, "down")

    def mend(self) -> None:
        assert ip("link", "set", self._cable, "up")

    def freeze(self) -> None:
        for process in self.processes():
            process.suspend()

    def thaw(self) -> None:
        for process in self.processes():
            process.resume()

    def power_off(self) -> None:
        """Everything on it is gone at once, and nobody is told: the servers' ends of its connections stay open."""
        if self.has_cable:
            self.cut()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.worker.wait()

    def close(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.worker is not None:
            self.worker.wait()
        for forwarder in self._forwarders:
            forwarder.close()
        if self.has_cable:
            ip("link", "del", self._cable)
            ip("netns", "del", self._namespace)


@contextlib.contextmanager
def machines(directory: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] = ("a", "b"),
             **env: str) -> Iterator[list[Machine]]:
    """An installation, opened by this process as by its web process, and machines that may join it."""
    database_url, drop_database = own_postgres_database(os.environ["STUDIO_TEST_DATABASE_URL"])
    redis_url, drop_redis = own_redis_database(os.environ["STUDIO_TEST_REDIS_URL"])
    for name, value in {"STUDIO_DATABASE_URL": database_url, "STUDIO_REDIS_URL": redis_url, "STUDIO_HOST_ID": "home",
                        "STUDIO_DATA_DIR": str(directory), "STUDIO_LEASE_S": "2", "STUDIO_POLL_S": "0.3",
                        **env}.items():
        monkeypatch.setenv(name, value)
    _forget()
    made: list[Machine] = []
    try:
        open_installation()
        namespaces = has_namespaces()
        for number, name in enumerate(names):
            made.append(Machine(name, number, {**os.environ, "PYTHONPATH": str(ROOT)}, in_namespace=namespaces))
        yield made
    finally:
        for machine in made:
            machine.close()
        db.engine_for(database_url).dispose()
        drop_database()
        drop_redis()
        monkeypatch.undo()
        _forget()


def _forget() -> None:
    get_settings.cache_clear()
    get_timing.cache_clear()
    channels._after_fork()
