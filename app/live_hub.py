"""The one reader behind all live pages: asks the database once per topic, whoever and how many follow it.

The broker's messages only say "look now"; a poll every second finds what they lost. Events of a run or a
pipeline carry a dense ``seq``: a client gets exactly the event after its last one, so nothing is lost and nothing
comes twice, whatever happens in between. A client that does not read is closed, never waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.auth.service import Identity
from app.core.channels import live_channel
from app.core.db import Session, reading
from app.core.errors import AppError
from app.core.logging import get_logger
from app.core.models import Installation, Pipeline, Run
from app.core.rest import Paging, rfc3339
from app.core.settings import get_settings
from app.core.tasks import end
from app.core.timing import get_timing
from app.pipelines.service import get_pipeline, shown
from app.runs.outlook import NOTHING
from app.runs.queries import event_out, events_after, list_runs
from app.runs.schemas import RunOut
from app.runs.service import get_run
from app.system.service import queue, system
from minimind.events import dumps

log = get_logger(__name__)

#: events of one look at one topic
PAGE = 500
#: runs that the topic ``runs`` shows, newest first
RUNS_SHOWN = 100
#: a client with more than this waiting is too slow
MAX_WAITING_MESSAGES, MAX_WAITING_BYTES = 2000, 4 << 20
#: what is handed to a connection at once, and how long it may take to take that
BATCH_BYTES = 64 << 10
SEND_LIMIT_S = 10.0
VALUE_TOPICS = ("runs", "system")


class Client:
    """The sending side of one websocket: a bounded queue. ``overflow`` is called once when it is too slow."""

    def __init__(self, overflow: Callable[[], None]):
        self._waiting: deque[str] = deque()
        self._bytes = 0
        self._overflow = overflow
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self.is_slow = False

    def push(self, message: dict[str, Any]) -> None:
        """Queue ``message``; never waits."""
        self.push_text(dumps(message))

    def push_text(self, text: str) -> None:
        if self.is_slow:
            return
        self._waiting.append(text)
        self._bytes += len(text)
        self._news.set()
        if len(self._waiting) > MAX_WAITING_MESSAGES or self._bytes > MAX_WAITING_BYTES:
            self.give_up()

    def give_up(self) -> None:
        if not self.is_slow:
            self.is_slow = True
            self._overflow()

    async def push_paced(self, text: str) -> bool:
        """As ``push_text``, but wait for room first (a replay is longer than the queue); False if there is none."""
        while len(self._waiting) > MAX_WAITING_MESSAGES // 2 or self._bytes > MAX_WAITING_BYTES // 2:
            self._room.clear()
            try:
                async with asyncio.timeout(SEND_LIMIT_S):
                    await self._room.wait()
            except TimeoutError:
                self.give_up()
                return False
        self.push_text(text)
        return not self.is_slow

    async def next(self) -> list[str]:
        """What waits, at least one message: one turn of the event loop for all news of a look, not one for each."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        batch, size = [], 0
        while self._waiting and size < BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        self._bytes -= size
        self._room.set()
        return batch


class Topic:
    """Who follows a run or a pipeline, and the last ``seq`` that each of them has."""

    def __init__(self) -> None:
        self.last: dict[Client, int] = {}

    @property
    def cursor(self) -> int:
        return min(self.last.values())


class Hub:
    """One per web process; everything but the queries runs in the event loop."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        #: who follows a value, and a mark of the one that each of them has
        self._values: dict[str, dict[Client, int]] = {name: {} for name in VALUE_TOPICS}
        self._value_seq = dict.fromkeys(VALUE_TOPICS, 0)
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._installation: str | None = None
        self.on_reset: set[Callable[[str], None]] = set()
        #: whose login was looked at when (monotonic), and whether it still stood: many connections share one look
        self.login_looks: dict[Identity, tuple[float, bool]] = {}

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._poll()),
                       asyncio.create_task(self._listen())]

    async def stop(self) -> None:
        await end(*self._tasks)

    # -- followers ------------------------------------------------------------------------------------------------

    def follow(self, client: Client, topic: str, last: int) -> None:
        """From now on ``client`` gets every event of ``topic`` behind ``last``."""
        self._topics.setdefault(topic, Topic()).last[client] = last
        self._look(topic)

    def follow_value(self, client: Client, topic: str, data: dict[str, Any]) -> int:
        """From now on ``client``, which has ``data``, gets each new value; returns the ``seq`` of ``data``."""
        self._values[topic][client] = mark_of(data)
        self._look(topic)
        return self._value_seq[topic]

    def leave(self, client: Client, topic: str | None = None) -> None:
        for name in [topic] if topic is not None else list(self._topics):
            followed = self._topics.get(name)
            if followed is not None:
                followed.last.pop(client, None)
                if not followed.last:
                    del self._topics[name]
        for name in VALUE_TOPICS:
            if topic in (None, name):
                self._values[name].pop(client, None)

    # -- the reader -----------------------------------------------------------------------------------------------

    def _look(self, topic: str) -> None:
        self._dirty.add(topic)
        self._wake.set()

    def _look_everywhere(self) -> None:
        self._dirty.update(self._topics)
        self._dirty.update(name for name in VALUE_TOPICS if self._values[name])
        if self._dirty:
            self._wake.set()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(get_timing().live_poll_s)
            if self._topics or any(self._values.values()):
                await self._check_installation()
            self._look_everywhere()

    async def _listen(self) -> None:
        """Messages of the broker; while it is away the poll alone serves."""
        while True:
            client = redis.asyncio.Redis.from_url(get_settings().broker_url, socket_connect_timeout=2)
            try:
                async with client.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(live_channel())
                    async for message in channel.listen():
                        self._hear(message["data"])
            except (RedisError, OSError):
                await asyncio.sleep(get_timing().live_poll_s)
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await client.aclose()

    def _hear(self, data: bytes) -> None:
        try:
            topic = json.loads(data)["topic"]
        except (ValueError, TypeError, KeyError):
            return  # not ours
        if topic in self._topics:
            self._look(topic)
        if self._values["runs"] and isinstance(topic, str) and topic.startswith("run:"):
            self._look("runs")

    async def _read(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, set()
            for topic in dirty:
                try:
                    await (self._tell_value(topic) if topic in VALUE_TOPICS else self._tell_events(topic))
                except (SQLAlchemyError, AppError, OSError) as error:  # the poll tries again in a second
                    log.warning("live_read_failed", topic=topic, error=str(error).splitlines()[0])
            if "runs" in dirty:
                await asyncio.sleep(0.1)  # many runs at once make one message

    async def _tell_events(self, name: str) -> None:
        topic = self._topics.get(name)
        if topic is None:
            return
        events = await run_in_threadpool(read_events, name, topic.cursor)
        moved = False
        for seq, text in events:
            for client, last in topic.last.items():
                if seq == last + 1:  # a follower that came meanwhile may be behind: the next look is for it
                    topic.last[client] = seq
                    client.push_text(text)
                    moved = True
        if moved and topic.last and (len(events) == PAGE or topic.cursor < events[-1][0]):
            self._look(name)

    async def _tell_value(self, name: str) -> None:
        if not self._values[name]:
            return
        data = await run_in_threadpool(read_value, name)
        mark = mark_of(data)
        behind = [client for client, has in self._values[name].items() if has != mark]
        if behind:
            self._value_seq[name] += 1
            message = dumps({"topic": name, "seq": self._value_seq[name], "type": "update", "data": data})
            for client in behind:
                self._values[name][client] = mark
                client.push_text(message)

    async def _check_installation(self) -> None:
        """Another database behind the same address: what clients know is of no use any more."""
        try:
            uid = await run_in_threadpool(read_installation)
        except (SQLAlchemyError, OSError):
            return  # away; the next look tells
        if self._installation is not None and uid != self._installation:
            for callback in list(self.on_reset):
                callback(uid)
        self._installation = uid


# -- queries, each in a thread ------------------------------------------------------------------------------------


def read_events(topic: str, after: int) -> list[tuple[int, str]]:
    """``(seq, message)`` of the events behind ``after``, at most ``PAGE``."""
    with reading() as session:
        rows, _ = events_after(session, topic, after, PAGE)
        return [(e.seq, dumps({"topic": topic, "seq": e.seq, "type": e.type, "data": event_out(e).data}))
                for e in rows]


def read_value(topic: str) -> dict[str, Any]:
    """The present value of ``runs`` or ``system``."""
    with reading() as session:
        if topic == "system":
            return system(session)
        rows, _ = list_runs(session, Paging(limit=RUNS_SHOWN))
        # runs that are older than those shown change too, and pages follow this topic to hear of it
        changed_at = rfc3339(session.scalar(select(func.max(Run.updated_at))))
        # without forecasts, which change with every look; "queue": pages follow this topic to hear of a pause too
        return {"items": [RunOut.of(r, NOTHING).model_dump(mode="json") for r in rows], "changed_at": changed_at,
                "queue": queue(session)}


def mark_of(value: dict[str, Any]) -> int:
    """Equal for values that say the same.

    The time of the look does not count, nor does the disk, whose free bytes change all the time: both are told with
    the next change, at the latest with the next heartbeat of a worker, which also brings the load of its host.
    """
    return hash(dumps({k: v for k, v in value.items() if k not in ("time", "disk")}))


def read_snapshot(topic: str) -> tuple[int, dict[str, Any], str]:
    """``(head, data, installation)`` of a run or a pipeline as one consistent look; raises ``NotFound``."""
    kind, _, id = topic.partition(":")
    with reading() as session:
        row: Run | Pipeline = get_run(session, id) if kind == "run" else get_pipeline(session, id)
        data = RunOut.of(row) if isinstance(row, Run) else shown(session, row)
        return row.next_seq - 1, data.model_dump(mode="json"), _uid(session)


def read_installation() -> str:
    with reading() as session:
        return _uid(session)


def _uid(session: Session) -> str:
    return session.scalars(select(Installation.uid)).first() or ""
