"""What the fault tests share: a broker that can be killed, a cable that can be cut, a viewer that comes back, and what
must hold of every run afterwards, whatever died under it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import redis
from sqlalchemy import select, text
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from app.core.models import TERMINAL_STATES, Attempt, DeviceLease, Run
from tests.integration.studio import RunningStudio
from worker import processes
from worker.broker import find_binary

#: a lease of two seconds: what dies is noticed within seconds, and tried again at once
QUICK = {"STUDIO_LEASE_S": "2", "STUDIO_RETRY_FIRST_S": "0.5"}
STATES_AT_REST = ("paused", *TERMINAL_STATES)


# -- what must hold -----------------------------------------------------------------------------------------------


def assert_sound(studio: RunningStudio, run_ids: list[str], *, within_s: float = 20.0) -> None:
    """Runs that have come to rest tell one story in their rows, events, devices and processes."""
    deadline = time.monotonic() + within_s  # a runner still tidies up for a moment after its verdict
    while left := {pid: mark for pid, mark in processes.all_marked().items() if mark.split("/")[0] in run_ids}:
        assert time.monotonic() < deadline, f"processes outlived their run: {left}"
        time.sleep(0.1)
    for run_id in run_ids:
        _assert_story(studio, run_id)
    with studio.reading() as session:
        held = session.scalars(select(DeviceLease).where(DeviceLease.run_id.in_(run_ids))).all()
        assert not held, f"devices are still taken: {[(d.device, d.run_id) for d in held]}"
        if session.get_bind().dialect.name == "sqlite":
            assert session.scalar(text("PRAGMA integrity_check")) == "ok"


def _assert_story(studio: RunningStudio, run_id: str) -> None:
    events = all_events(studio, run_id)
    with studio.reading() as session:
        run = session.get(Run, run_id)
        attempts = session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)).all()
    assert run.state in STATES_AT_REST, f"{run_id} is {run.state}"
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1)), "a gap in the events"
    assert run.next_seq == len(events) + 1
    moves = [e["data"] for e in events if e["type"] == "state" and "state" in e["data"]]
    told = [move["state"] for move in moves]
    assert [move["from"] for move in moves] == [None, *told[:-1]], f"the moves do not follow each other: {moves}"
    assert told[-1] == run.state, f"the row says {run.state}, the events {told}"
    assert [s for s in told if s in TERMINAL_STATES] == ([run.state] if run.state in TERMINAL_STATES else [])
    assert [a.number for a in attempts] == list(range(1, run.attempt + 1))
    assert {a.state for a in attempts} <= {"closed"}, "an attempt is open"
    assert run.lease_owner is None and run.lease_host is None


def all_events(studio: RunningStudio, run_id: str, *types: str) -> list[dict]:
    """Every event of a run as ``/events`` tells them."""
    found, after, only = [], "0", {"type": list(types)} if types else {}
    while after is not None:
        page = studio.client.get(f"/runs/{run_id}/events", after=after, limit=5000, **only)
        found += page["items"]
        after = page["next_cursor"] if page["items"] else None
    return found


def moves_of(studio: RunningStudio, run_id: str) -> list[str]:
    """The states that a run went through."""
    return [e["data"]["state"] for e in all_events(studio, run_id, "state") if "state" in e["data"]]


def lost_steps(studio: RunningStudio, run_id: str) -> list[int]:
    """For each attempt after the first: how many steps that had been done were done again."""
    lost, last = [], 0
    for event in all_events(studio, run_id, "metrics", "rewind"):
        if event["type"] == "rewind":
            lost.append(last - event["data"]["step"])
        last = event["step"]
    return lost


def assert_gone(victims: list, within_s: float) -> None:
    """None of these processes is left after ``within_s``."""
    deadline = time.monotonic() + within_s
    while left := [p.pid for p in victims if p.is_running() and p.status() != "zombie"]:
        assert time.monotonic() < deadline, f"still there after {within_s} s: {left}"
        time.sleep(0.05)


# -- what can be broken -------------------------------------------------------------------------------------------


class OwnBroker:
    """A Redis-protocol server of the test's own, which keeps nothing: Redis where the tests are told of one, else
    Valkey as the studio embeds it. It can be killed and stay away."""

    def __init__(self, directory: str):
        self.socket = Path(directory) / "b.sock"
        self.url = f"unix://{self.socket}"
        given = shutil.which("redis-server") if os.environ.get("STUDIO_TEST_REDIS_URL") else None
        self._command = [given or str(find_binary()), "--port", "0", "--unixsocket", str(self.socket), "--save", "",
                         "--appendonly", "no", "--dir", directory]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < deadline, "the broker does not start"
            time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.socket.unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextlib.contextmanager
def own_broker() -> Iterator[OwnBroker]:
    with tempfile.TemporaryDirectory(prefix="faults-", dir="/tmp") as directory:  # the path of a socket must be short
        broker = OwnBroker(directory)
        broker.start()
        try:
            yield broker
        finally:
            broker.kill()


@contextlib.contextmanager
def two_cores() -> Iterator[None]:
    """What is started meanwhile has two CPU slots, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class Cable:
    """Carries TCP to an address. ``cut`` breaks every connection at once, as pulling a plug does; ``unplug`` refuses
    new ones too."""

    def __init__(self, host: str, port: int):
        self._target = (host, port)
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._plugged = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Returns how many connections there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):  # reset, not closed in order: what is under way is lost
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        return len(pairs)

    def unplug(self) -> None:
        self._plugged = False
        self.cut()

    def plug(self) -> None:
        self._plugged = True

    def close(self) -> None:
        self.unplug()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            if not self._plugged:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._pairs.add((near, far))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target, (near, far)), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, pair: tuple) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with self._lock:
            known = pair in self._pairs
            self._pairs.discard(pair)
        if known:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


class Viewer:
    """A page that follows a run: it goes on behind the last event that it has, however often its connection breaks.

    ``problems`` holds what a page must never see; ``events`` everything that it was told.
    """

    def __init__(self, studio: RunningStudio, run_id: str, *, port: int | None = None):
        self.topic = f"run:{run_id}"
        self.events: list[dict] = []
        self.problems: list[str] = []
        self.connections = 0
        self._url = studio.url.replace("http", "ws") + "/api/v1/live"
        self._port = port or urlsplit(studio.url).port
        self._headers = {"Authorization": f"Bearer {studio.token}"}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    @property
    def last(self) -> int:
        return self.events[-1]["seq"] if self.events else 0

    def wait_for(self, seq: int, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.last < seq:
            assert time.monotonic() < deadline, f"the viewer has {self.last} of {seq} events; {self.problems}"
            time.sleep(0.02)

    def assert_saw(self, events: list[dict]) -> None:
        """It was told exactly these (as ``/events`` has them), each once and in order."""
        self.wait_for(events[-1]["seq"])
        self._ended.set()
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()
        assert self.problems == []
        told = [(e["seq"], e["type"], e["data"]) for e in self.events]
        assert told == [(e["seq"], e["type"], e["data"]) for e in events]

    def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=5) as near, \
                        connect(self._url, sock=near, proxy=None, open_timeout=10, close_timeout=1,
                                additional_headers=self._headers) as connection:
                    self.connections += 1
                    connection.send(json.dumps({"op": "sub", "topic": self.topic, "after": self.last}))
                    self._read(connection)
            except (OSError, EOFError, WebSocketException):  # cut, refused, restarted: it comes back
                self._ended.wait(0.02)

    def _read(self, connection: ClientConnection) -> None:
        while not self._ended.is_set():
            try:
                said = json.loads(connection.recv(timeout=0.2))
            except TimeoutError:
                continue
            if said["type"] in ("reset", "error"):
                self.problems.append(f"{said['type']}: {said['data']}")
            elif said["type"] != "snapshot":
                if said["seq"] != self.last + 1:
                    self.problems.append(f"{said['seq']} after {self.last}")
                self.events.append(said)
