"""Asks the inference process for text, without torch and without blocking the event loop."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import redis.asyncio
from pydantic import ValidationError
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.chat.reply_reader import ReplyReader, Signs, Waiting
from app.chat.request_writer import RequestWriter
from app.core import inference as protocol
from app.core.errors import AppError
from app.core.inference import GenerationRequest, Keys, Reply
from app.core.logging import get_logger

log = get_logger(__name__)

#: a process that is being (re)started shows a sign of life within this time
START_GRACE_S = 15.0
#: a living process takes a request off the stream within this time
ACCEPT_WITHIN_S = 20.0


#: status, code and seconds after which trying again may help, by ``protocol.ERROR_KINDS``
_ANSWERS: dict[str, tuple[int, str, int | None]] = {
    "busy": (429, "server_busy", 2),
    "unavailable": (503, "server_unavailable", 5),
    "request": (400, "invalid_request", None),
    "context_length": (400, "context_length_exceeded", None),
    "checkpoint": (503, "checkpoint_unusable", None),
    "internal": (500, "internal", None),
}


class InferenceError(AppError):
    """A request that got no (whole) answer. ``kind`` is one of ``protocol.ERROR_KINDS``."""

    def __init__(self, kind: str, message: str, *, param: str | None = None):
        self.kind = kind if kind in _ANSWERS else "internal"
        status, code, retry_after_s = _ANSWERS[self.kind]
        super().__init__(status, code, message, field=param,
                         headers={"Retry-After": str(retry_after_s)} if retry_after_s else None)


class InferenceClient:
    """One per web process. Methods belong to the event loop that first used them."""

    def __init__(self, redis_url: str, prefix: str = "studio"):
        self._keys = Keys(prefix)
        # Reading blocks for a second at most; a broker that is silent for longer than the socket timeout is gone.
        self._broker = redis.asyncio.Redis.from_url(redis_url, socket_timeout=10, socket_connect_timeout=5,
                                                    retry=Retry(NoBackoff(), 1), max_connections=512)
        self._reader = ReplyReader(self._broker, self._keys)
        self._writer = RequestWriter(self._broker, self._keys, self._reader.wake)

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()
        await self._broker.aclose()

    async def status(self) -> dict[str, Any] | None:
        """The inference process's last sign of life, or None where there is none."""
        try:
            raw = await self._broker.get(self._keys.heartbeat)
        except RedisError:
            return None
        return json.loads(raw) if raw else None

    async def replies(self, checkpoint: str, **asked: Any) -> AsyncGenerator[Reply, None]:
        """Yield ``accepted``, maybe ``loading``, ``started``, ``delta``..., ``done``; raises ``InferenceError``.

        ``checkpoint`` is an absolute directory from the database; ``asked`` are the other fields of a
        ``GenerationRequest``, one of messages, prompt and prompt_ids among them. Closing the generator, or cancelling
        the task that reads it, ends the generation within a token.
        """
        try:
            request = GenerationRequest(id=secrets.token_urlsafe(16), checkpoint=checkpoint, **asked)
        except ValidationError as error:
            problem = error.errors()[0]
            param = ".".join(str(place) for place in problem["loc"]) or None
            raise InferenceError("request", f"The model server does not take this request: {problem['msg']}.",
                                 param=param) from None
        waiting = self._reader.add(request.id)
        try:
            await self._submit(request)
            async for reply in self._heard(waiting):
                yield reply
        except RedisError as error:
            log.warning("broker_away", request=request.id, error=str(error))
            raise InferenceError("unavailable", "The message broker is away. Try again in a few seconds.") from error
        finally:
            self._reader.remove(request.id)
            self._writer.leave(request.id)

    async def _submit(self, request: GenerationRequest) -> None:
        fields = request.fields()
        if len(fields["json"]) > protocol.MAX_REQUEST_BYTES // 4:  # UTF-8 takes at most four bytes a character
            what = "messages" if request.messages is not None else "prompt"
            raise InferenceError("request", f"The field {what} is too long for this server.", param=what)
        if not await self._writer.ask(request.id, fields):
            raise InferenceError("busy", f"{protocol.MAX_WAITING} requests already wait for the model server. "
                                         "Try again in a few seconds.")

    async def _heard(self, waiting: Waiting) -> AsyncIterator[Reply]:
        """Replies as they come; raises ``InferenceError`` where one says so or nobody can send any, ``RedisError``."""
        since = alive_at = time.monotonic()
        while True:
            event = await waiting.events.get()
            now = time.monotonic()
            if isinstance(event, RedisError):
                raise event
            if isinstance(event, Signs):
                alive_at = now if event.alive else alive_at
                self._raise_if_hopeless(event, waiting, since, alive_at)
                continue
            alive_at = now
            if event.type == "error":
                raise InferenceError(event.kind or "internal", event.message, param=event.param)
            yield event
            if event.type == "done":
                return

    def _raise_if_hopeless(self, signs: Signs, waiting: Waiting, since: float, alive_at: float) -> None:
        now = time.monotonic()
        if not signs.wanted:
            raise InferenceError("unavailable", "The message broker was restarted during this request. Try again.")
        if waiting.process and not signs.alive:
            raise InferenceError("unavailable", "The model server was restarted during this request. Try again.")
        if now - alive_at > START_GRACE_S:
            raise InferenceError("unavailable", "The model server is not running. It is started by `./studio up` or "
                                                "`./studio inference`; its log says why it is away.")
        if not waiting.process and now - since > ACCEPT_WITHIN_S:
            raise InferenceError("unavailable", "The model server does not take requests. Try again in a few seconds.")
