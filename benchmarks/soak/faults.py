"""What is done to the studio, drawn from the seed; and how it is done."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.db import BUSY_TIMEOUT_S, reader_factory, reading, sqlite_dbapi
from app.core.models import Run
from benchmarks._studio import Studio, mark_of

#: kind -> how often, beside the others
WEIGHTS = {"web": 3, "broker": 2, "database": 3, "celery": 2, "worker": 3, "inference": 1, "runner": 5, "torchrun": 3,
           "rank": 6, "freeze": 2, "supervisor": 1, "shutdown": 1}
#: what hits one attempt
OF_AN_ATTEMPT = ("runner", "torchrun", "rank", "freeze")
PATIENCE_S = 4.0


@dataclass(frozen=True)
class Fault:
    """``pick`` (0 to 1) chooses among those that are there; ``hold_s`` is how long a lock, a stop or a gap lasts."""

    number: int
    kind: str
    wait_s: float
    pick: float
    hold_s: float


def plan(seed: int, lease_s: float) -> Iterator[Fault]:
    """The faults of a seed, without end: always the same ones."""
    rng = random.Random(f"{seed}/faults")
    number = 0
    while True:
        number += 1
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        wait_s, pick, share = rng.uniform(0.5, 6.0), rng.random(), rng.random()
        hold_s = {"freeze": 0.5 + 3 * lease_s * share,  # up to beyond the fence
                  "database": 1.0 + 7 * share if share < 0.9 else BUSY_TIMEOUT_S + 3,
                  "supervisor": 3 * share, "shutdown": 3 * share}.get(kind, 0.0)
        yield Fault(number, kind, wait_s, pick, hold_s)


class Chaos:
    """Does one fault after the other. From the main thread: what it starts ends with the thread that started it."""

    def __init__(self, studio: Studio, stop: threading.Event):
        self.studio = studio
        self.stop = stop
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()  # there was nothing of the kind at that moment
        self.log: list[tuple[float, str]] = []
        self.blocked = threading.Event()  # the database is held by us
        self._server = urlsplit(studio.database_url)

    def strike(self, fault: Fault) -> None:
        """Do it, or find for some seconds that there is nothing of the kind to hit."""
        hit = self._strike(fault)
        deadline = time.monotonic() + PATIENCE_S
        while not hit and time.monotonic() < deadline and not self.stop.wait(0.4):
            hit = self._strike(fault)
        (self.done if hit else self.missed)[fault.kind] += 1

    def _strike(self, fault: Fault) -> bool:
        if fault.kind in OF_AN_ATTEMPT:
            return self._strike_attempt(fault)
        if fault.kind == "database":
            return self._strike_database(fault)
        if fault.kind in ("supervisor", "shutdown"):
            return self._restart(fault)
        if fault.kind == "broker" and self.studio.redis_url:
            return self._cut_redis()
        return self._kill(self.studio.role(fault.kind)[:1], fault)

    def ready(self) -> None:
        """Have the studio running, whatever was done to it."""
        if self.studio.process is None or self.studio.process.poll() is not None:
            self.studio.start()

    # -- the kinds ------------------------------------------------------------------------------------------------

    def _kill(self, victims: list[psutil.Process], fault: Fault) -> bool:
        if not victims:
            return False
        victim = victims[int(fault.pick * len(victims))]
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            self._note(fault, f"pid {victim.pid} {mark_of(victim) or ''}")
        return True

    def _strike_attempt(self, fault: Fault) -> bool:
        """Kill or stop a process of an attempt; three attempts in a row without a checkpoint rightly end a run, so a
        run that has lost one is spared until it has saved."""
        victims = self.studio.role("runner" if fault.kind == "freeze" else fault.kind)
        try:
            with reading(reader_factory(self.studio.database_url)) as session:
                spared = set(session.scalars(select(Run.id).where(Run.fruitless_attempts > 0)))
        except SQLAlchemyError:
            return False
        victims = [v for v in victims if (mark_of(v) or "").partition("/")[0] not in spared]
        if fault.kind != "freeze":
            return self._kill(victims, fault)
        if not victims:
            return False
        victim = victims[int(fault.pick * len(victims))]
        with contextlib.suppress(psutil.NoSuchProcess):
            self._note(fault, f"pid {victim.pid} {mark_of(victim)} for {fault.hold_s:.1f} s")
            victim.suspend()
            self.stop.wait(fault.hold_s)
            victim.resume()
        return True

    def _strike_database(self, fault: Fault) -> bool:
        if self._server.scheme.startswith("sqlite"):
            return self._lock_sqlite(fault)
        import psycopg

        with psycopg.connect(self.studio.env["STUDIO_DATABASE_URL"], autocommit=True) as connection:
            cut = connection.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = "
                                     "current_database() AND pid <> pg_backend_pid()").fetchone()[0]
        self._note(fault, f"{cut} connections")
        return cut > 0

    def _lock_sqlite(self, fault: Fault) -> bool:
        connection = sqlite_dbapi.connect(str(self.studio.data_dir / "studio.db"), timeout=BUSY_TIMEOUT_S,
                                          isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            self._note(fault, f"held for {fault.hold_s:.1f} s")
            self.blocked.set()
            self.stop.wait(fault.hold_s)
            connection.execute("ROLLBACK")
        finally:
            self.blocked.clear()
            connection.close()
        return True

    def _cut_redis(self) -> bool:
        """A given server belongs to others too: only the connections to our database number are cut."""
        import redis

        with redis.Redis.from_url(self.studio.redis_url) as client:
            own, number = client.client_id(), self.studio.redis_url.rpartition("/")[2]
            ours = [c for c in client.client_list() if c["db"] == number and int(c["id"]) != own]
            for each in ours:
                with contextlib.suppress(redis.RedisError):
                    client.client_kill_filter(_id=each["id"])
        self.log.append((time.time(), f"broker: {len(ours)} connections"))
        return bool(ours)

    def _restart(self, fault: Fault) -> bool:
        self._note(fault, f"down for {fault.hold_s:.1f} s")
        if fault.kind == "supervisor":
            self.studio.kill()
        else:
            self.studio.stop()
        self.stop.wait(fault.hold_s)
        self.studio.start()
        return True

    def _note(self, fault: Fault, what: str) -> None:
        self.log.append((time.time(), f"{fault.number} {fault.kind}: {what}"))


