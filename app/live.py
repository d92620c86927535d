"""``/api/v1/live``: the websocket that tells what happens.

A client sends ``{"op": "sub", "topic": "run:ID" | "pipeline:ID" | "runs" | "system", "after": seq?}`` and gets
``{"topic", "type": "snapshot", "seq", "data"}``, then ``{"topic", "seq", "type", "data"}`` for each event. With
``after`` everything behind it is replayed first. ``{"op": "unsub", "topic"}`` ends it. ``{"op": "ping"}`` is answered
by ``{"topic": null, "type": "pong", "data": {}}``: a page that was asleep learns at once whether its connection still
lives. Who may come here at all (session or token, Host, Origin) is decided by ``app.auth.guard`` before the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections import Counter
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.auth import service as auth
from app.auth.deps import User
from app.auth.service import Identity
from app.core.answers import as_app_error
from app.core.db import reading
from app.core.errors import AppError, Unavailable
from app.core.tasks import end
from app.live_hub import (
    PAGE,
    SEND_LIMIT_S,
    VALUE_TOPICS,
    Client,
    Hub,
    read_events,
    read_installation,
    read_snapshot,
    read_value,
)

router = APIRouter(tags=["live"])

#: on a machine of one person all pages and scripts are one user, and a class may watch through one login; a socket
#: costs about 100 kB and a file descriptor, of which a process has 1,024 by default
MAX_SOCKETS_PER_USER = 600
MAX_TOPICS = 32
#: messages of a client within one second
MAX_MESSAGES_PER_S = 100  # a page that is back asks for all its topics at once
MAX_MESSAGE_BYTES = 64 << 10
RECHECK_LOGIN_S = 60.0
#: a slow client gets this long to take the news that it is closed
CLOSE_LIMIT_S = 30.0
#: close codes
NOT_LOGGED_IN, MISUSE, TOO_MANY, TOO_SLOW, RESTART, NOT_TEXT = 4401, 4409, 1008, 1013, 1012, 1003
_TOPIC = re.compile(r"(?:run|pipeline):[A-Za-z0-9_-]{1,32}")


@router.websocket("/live")
async def live(websocket: WebSocket, user: User) -> None:
    sockets: Counter[str] = websocket.app.state.sockets
    await websocket.accept()
    if sockets[user.user_id] >= MAX_SOCKETS_PER_USER:
        await websocket.close(TOO_MANY, "too many live connections")
        return
    sockets[user.user_id] += 1
    try:
        await Connection(websocket, websocket.app.state.hub, user).run()
    finally:
        sockets[user.user_id] -= 1


class _Close(Exception):
    """Ends the connection with a code."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason


class Connection:
    """One client: three tasks (what it says, what it is told, is it still welcome) and one per replay."""

    def __init__(self, websocket: WebSocket, hub: Hub, user: Identity):
        self.websocket, self.hub, self.user = websocket, hub, user
        self.slow = asyncio.Event()
        self.client = Client(self.slow.set)
        self.topics: dict[str, asyncio.Task] = {}

    async def run(self) -> None:
        self.hub.on_reset.add(self._reset)
        tasks = [asyncio.create_task(work()) for work in (self._receive, self._send, self._recheck, self._watch_speed)]
        code, reason = 1000, ""
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        except _Close as close:
            code, reason = close.code, close.reason
        except WebSocketDisconnect:
            return
        except asyncio.CancelledError:
            code, reason = RESTART, "the server is restarting"
            raise
        finally:
            self.hub.on_reset.discard(self._reset)
            self.hub.leave(self.client)
            await end(*tasks, *self.topics.values())
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await self.websocket.close(code, reason)

    # -- tasks ----------------------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        heard: list[float] = []
        while True:
            try:
                text = await self.websocket.receive_text()
            except KeyError:  # Starlette's way to say that the frame was a binary one
                raise _Close(NOT_TEXT, "send text, not binary frames") from None
            now = time.monotonic()
            heard = [t for t in heard if t > now - 1] + [now]
            if len(heard) > MAX_MESSAGES_PER_S:
                raise _Close(TOO_MANY, "too many messages")
            await self._obey(text)

    async def _send(self) -> None:
        while True:
            batch = await self.client.next()
            try:
                async with asyncio.timeout(SEND_LIMIT_S):
                    for text in batch:
                        await self.websocket.send_text(text)
            except TimeoutError:
                raise _Close(TOO_SLOW, "too slow") from None

    async def _watch_speed(self) -> None:
        await self.slow.wait()
        raise _Close(TOO_SLOW, "too slow")

    async def _recheck(self) -> None:
        while True:
            # spread out, also for those that came at once (after a restart): a look for each is a burst of hundreds
            await asyncio.sleep(RECHECK_LOGIN_S * random.uniform(0.5, 0.9))
            try:
                still = await self._is_welcome()
            except SQLAlchemyError:
                continue  # the database is away: nothing new is told either
            if not still:
                raise _Close(NOT_LOGGED_IN, "logged out")

    async def _is_welcome(self) -> bool:
        """Connections of one login share a look that is young enough: none goes on for ``RECHECK_LOGIN_S`` unasked."""
        looks, now = self.hub.login_looks, time.monotonic()
        for user in [user for user, (at, _) in looks.items() if now - at > 0.1 * RECHECK_LOGIN_S]:
            del looks[user]
        if self.user not in looks:
            looks[self.user] = now, await run_in_threadpool(self._still_welcome)
        return looks[self.user][1]

    def _still_welcome(self) -> bool:
        with reading() as session:
            return auth.still_valid(session, self.user) is not None

    # -- what a client says ---------------------------------------------------------------------------------------

    async def _obey(self, text: str) -> None:
        if len(text) > MAX_MESSAGE_BYTES:
            raise _Close(MISUSE, "message too long")
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or said.get("op") not in ("sub", "unsub", "ping"):
            self._complain(None, 'Send {"op": "sub", "topic": ..., "after": seq?}, {"op": "unsub", "topic": ...} or '
                                 '{"op": "ping"}.')
            return
        if said["op"] == "ping":
            self.client.push({"topic": None, "type": "pong", "data": {}})
            return
        topic, after = said.get("topic"), said.get("after")
        if not isinstance(topic, str) or (topic not in VALUE_TOPICS and not _TOPIC.fullmatch(topic)):
            self._complain(None, "topic is run:ID, pipeline:ID, runs or system.")
        elif after is not None and (not isinstance(after, int) or isinstance(after, bool) or not 0 <= after < 2**62):
            self._complain(topic, "after is the last seq that you have, or left out.")
        elif said["op"] == "unsub":
            await self._leave(topic)
        elif len(self.topics) >= MAX_TOPICS and topic not in self.topics:
            self._complain(topic, f"One connection follows at most {MAX_TOPICS} topics.")
        else:
            await self._leave(topic)
            self.topics[topic] = asyncio.create_task(self._begin(topic, after))

    async def _leave(self, topic: str) -> None:
        task = self.topics.pop(topic, None)
        if task is not None:
            await end(task)
        self.hub.leave(self.client, topic)

    def _complain(self, topic: str | None, message: str, code: str = "INVALID") -> None:
        self.client.push({"topic": topic, "type": "error", "data": {"message": message, "code": code}})

    async def _begin(self, topic: str, after: int | None) -> None:
        try:
            if topic in VALUE_TOPICS:
                await self._show_value(topic)
            else:
                await self._replay(topic, after)
        except AppError as error:
            self._give_up(topic)
            self._complain(topic, str(error), error.code)
        except (SQLAlchemyError, OSError) as error:
            self._give_up(topic)
            answered = as_app_error(error)
            unavailable = Unavailable("This topic cannot be read now.", hint="Subscribe again in a moment.")
            shown = answered if answered.status == 503 else unavailable
            self._complain(topic, str(shown), shown.code)

    def _give_up(self, topic: str) -> None:
        """A subscription that came to nothing takes no place."""
        if self.topics.get(topic) is asyncio.current_task():
            del self.topics[topic]

    async def _show_value(self, topic: str) -> None:
        data = await run_in_threadpool(read_value, topic)
        installation = await run_in_threadpool(read_installation)
        self._snapshot(topic, self.hub.follow_value(self.client, topic, data), data, installation)

    async def _replay(self, topic: str, after: int | None) -> None:
        """The snapshot, everything behind ``after``, and from there on the hub."""
        head, data, installation = await run_in_threadpool(read_snapshot, topic)
        if after is not None and after > head:  # of another database: what the client has is not ours
            self.client.push({"topic": topic, "type": "reset", "seq": head, "data": {"installation": installation}})
            after = 0
        self._snapshot(topic, head, data, installation)
        last = head if after is None else after
        while last < head:
            events = await run_in_threadpool(read_events, topic, last)
            for seq, text in events:
                if not await self.client.push_paced(text):
                    return
                last = seq
            if len(events) < PAGE:
                break
        self.hub.follow(self.client, topic, last)

    def _snapshot(self, topic: str, seq: int, data: dict[str, Any], installation: str) -> None:
        self.client.push({"topic": topic, "type": "snapshot", "seq": seq, "data": data, "installation": installation})

    def _reset(self, installation: str) -> None:
        """Another installation answers now: every topic begins anew, without what the client knows."""
        for topic in list(self.topics):
            self.hub.leave(self.client, topic)
            self.client.push({"topic": topic, "type": "reset", "seq": 0, "data": {"installation": installation}})
            self.topics[topic].cancel()
            self.topics[topic] = asyncio.create_task(self._begin(topic, 0))
