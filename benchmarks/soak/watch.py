"""Looks on while a soak runs: reads every run's events as a client does, and the rows beside the processes."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict

import httpx2
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from app.core.db import reader_factory, reading
from app.core.models import LEASED_STATES, Run
from app.core.timing import Timing
from benchmarks._studio import Studio, mark_of
from benchmarks.soak.faults import Chaos
from benchmarks.soak.fleet import Fleet
from worker.client import TERMINAL, ApiError

#: that one connection may follow
MAX_TOPICS = 32


class Follower(threading.Thread):
    """A client that follows every run by ``/events?after=``, whatever happens to the web process."""

    def __init__(self, studio: Studio, fleet: Fleet):
        super().__init__(name="follower", daemon=True)
        self.fleet = fleet
        self.ended = threading.Event()
        self.seen: dict[str, list[tuple[int, str]]] = defaultdict(list)  # run -> (seq, type) as they came
        self.gaps: list[str] = []
        self._client = studio.new_client()

    def run(self) -> None:
        while not self.ended.wait(0.7):
            self.look()

    def look(self) -> None:
        for id in list(self.fleet.members):
            try:
                while self._page(id):
                    pass
            except (httpx2.HTTPError, ApiError):
                return  # web or the database is away

    def _page(self, id: str) -> bool:
        seen = self.seen[id]
        last = seen[-1][0] if seen else 0
        page = self._client.get(f"/runs/{id}/events", after=last, limit=1000)
        for event in page["items"]:
            if event["seq"] != last + 1:
                self.gaps.append(f"{id}: event {event['seq']} came after {last}")
            last = event["seq"]
            seen.append((last, event["type"]))
        return page["next_cursor"] is not None


class Viewer(threading.Thread):
    """A page that follows every run over the websocket, and comes back behind its last event when it is cut off."""

    def __init__(self, studio: Studio, fleet: Fleet):
        super().__init__(name="viewer", daemon=True)
        self.studio = studio
        self.fleet = fleet
        self.ended = threading.Event()
        self.seen: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self.gaps: list[str] = []
        self.whole: set[str] = set()  # runs of which it has heard the end
        self.connections = 0

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                with connect(f"ws://127.0.0.1:{self.studio.port}/api/v1/live", proxy=None, open_timeout=5,
                             additional_headers={"Authorization": f"Bearer {self.studio.token}"}) as connection:
                    self.connections += 1
                    self._follow(connection)
            except (WebSocketException, OSError):
                self.ended.wait(0.5)  # web is away, or it was killed under us

    def _follow(self, connection: ClientConnection) -> None:
        followed: set[str] = set()
        while not self.ended.is_set():
            for id in [m.id for m in list(self.fleet.members.values()) if m.id not in followed | self.whole]:
                if len(followed) < MAX_TOPICS:
                    self._say(connection, "sub", id, after=self._last(id))
                    followed.add(id)
            for id in followed & self.whole:
                self._say(connection, "unsub", id)
                followed.discard(id)
            try:
                self._hear(json.loads(connection.recv(timeout=0.5)), followed)
            except TimeoutError:
                continue

    def _say(self, connection: ClientConnection, op: str, id: str, **more: int) -> None:
        connection.send(json.dumps({"op": op, "topic": f"run:{id}", **more}))

    def _last(self, id: str) -> int:
        return self.seen[id][-1][0] if self.seen[id] else 0

    def _hear(self, message: dict, followed: set[str]) -> None:
        kind, id = message["type"], str(message["topic"]).removeprefix("run:")
        if kind == "snapshot":
            return
        if "seq" not in message:  # a complaint (the database was away when it was asked), not an event: asked again
            followed.discard(id)
            self.ended.wait(0.5)
            return
        if message["seq"] != self._last(id) + 1:
            self.gaps.append(f"{id}: a page was told {kind} {message['seq']} after {self._last(id)}")
        self.seen[id].append((message["seq"], kind))
        if kind == "state" and message["data"].get("state") in TERMINAL:
            self.whole.add(id)


class Sampler(threading.Thread):
    """Rows that say "somebody holds this run" while no process does, longer than the studio may take to notice."""

    def __init__(self, studio: Studio, chaos: Chaos, timing: Timing):
        super().__init__(name="sampler", daemon=True)
        self.studio = studio
        self.chaos = chaos
        self.ended = threading.Event()
        self.allowed_s = (timing.lease_s + timing.come_back_s + timing.runner_start_s + 3 * timing.poll_s + 5.0)
        self.zombies: dict[str, str] = {}  # run/attempt -> what was seen
        self.longest_s = 0.0
        self._empty_s: dict[tuple[str, str], float] = {}
        self._database = reader_factory(studio.database_url)

    def run(self) -> None:
        last = time.monotonic()
        while not self.ended.wait(1.0):
            now = time.monotonic()
            with contextlib.suppress(SQLAlchemyError):
                self._look(now - last)
            last = now

    def _look(self, passed_s: float) -> None:
        processes = self.studio.processes()
        if self.chaos.blocked.is_set() or not self.studio.role("worker", processes):
            return  # nobody is there who could mend it, or we keep them from it: this time does not count
        with reading(self._database) as session:
            held = session.execute(select(Run.id, Run.attempt, Run.state).where(Run.state.in_(LEASED_STATES))).all()
        alive = {mark_of(p) for p in self.studio.processes()}  # looked at after the rows: a claim comes first
        empty = {}
        for id, attempt, state in held:
            mark = f"{id}/{attempt}"
            if mark not in alive:
                empty[mark, state] = self._empty_s.get((mark, state), 0.0) + min(passed_s, 3.0)
                self.longest_s = max(self.longest_s, empty[mark, state])
                if empty[mark, state] > self.allowed_s:
                    self.zombies[mark] = f"{mark} {state} without a process for {empty[mark, state]:.0f} s"
        self._empty_s = empty
