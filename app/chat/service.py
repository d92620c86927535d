"""Asks the inference process for text, without torch and without blocking the event loop."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.core import inference as protocol
from app.core.errors import AppError
from app.core.inference import GenerationRequest, Keys, Reply, Sampling
from app.core.logging import get_logger

log = get_logger(__name__)

#: a process that is being (re)started shows a sign of life within this time
START_GRACE_S = 15.0
#: a living process takes a request off the stream within this time
ACCEPT_WITHIN_S = 20.0
_RENEW_EVERY_S = protocol.WANTED_TTL_S / 4


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


@dataclass
class _Progress:
    """What is known of one request."""

    since: float = field(default_factory=time.monotonic)
    heard_of_process: float = field(default_factory=time.monotonic)
    renewed: float = field(default_factory=time.monotonic)
    process: str | None = None  # that accepted it


class InferenceClient:
    """One per web process. Methods belong to the event loop that first used them."""

    def __init__(self, redis_url: str, prefix: str = "studio"):
        self._keys = Keys(prefix)
        # Reading blocks for a second at most; a broker that is silent for longer than the socket timeout is gone.
        self._broker = redis.asyncio.Redis.from_url(redis_url, socket_timeout=10, socket_connect_timeout=5,
                                                    retry=Retry(NoBackoff(), 1), max_connections=512)
        self._farewells: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await asyncio.gather(*self._farewells, return_exceptions=True)
        await self._broker.aclose()

    async def status(self) -> dict[str, Any] | None:
        """The inference process's last sign of life, or None where there is none."""
        try:
            raw = await self._broker.get(self._keys.heartbeat)
        except RedisError:
            return None
        return json.loads(raw) if raw else None

    async def replies(self, checkpoint: str, *, adapter: str | None = None,
                      messages: Sequence[dict[str, Any]] | None = None, prompt: str | None = None,
                      open_thinking: bool = False, sampling: Sampling | None = None) -> AsyncGenerator[Reply, None]:
        """Yield ``accepted``, maybe ``loading``, ``started``, ``delta``..., ``done``; raises ``InferenceError``.

        ``checkpoint`` is an absolute directory from the database; so is ``adapter``, whose adapter is laid over it.
        Closing the generator, or cancelling the task that reads it, ends the generation within a token.
        """
        request = GenerationRequest(id=secrets.token_urlsafe(16), checkpoint=checkpoint, adapter=adapter, prompt=prompt,
                                    messages=list(messages) if messages is not None else None,
                                    open_thinking=open_thinking, sampling=sampling or Sampling())
        try:
            await self._submit(request)
            progress, last_id = _Progress(), b"0"
            while True:
                entries = await self._read(request.id, last_id)
                await self._check(request.id, progress, silent=not entries)
                for entry_id, fields in entries:
                    last_id = entry_id
                    reply = Reply.from_fields(fields)
                    if reply.type == "error":
                        raise InferenceError(reply.kind or "internal", reply.message, param=reply.param)
                    if reply.type == "accepted":
                        progress.process = reply.process
                    yield reply
                    if reply.type == "done":
                        return
        except RedisError as error:
            log.warning("broker_away", request=request.id, error=str(error))
            raise InferenceError("unavailable", "The message broker is away. Try again in a few seconds.") from error
        finally:
            self._leave(request.id)

    async def _submit(self, request: GenerationRequest) -> None:
        fields = request.fields()
        if len(fields["json"]) > protocol.MAX_REQUEST_BYTES // 4:  # UTF-8 takes at most four bytes a character
            raise InferenceError("request", "The conversation is too long for this server.", param="messages")
        if await self._broker.xlen(self._keys.requests) >= protocol.MAX_WAITING:
            raise InferenceError("busy", f"{protocol.MAX_WAITING} requests already wait for the model server. "
                                         "Try again in a few seconds.")
        async with self._broker.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.wanted(request.id), 1, ex=protocol.WANTED_TTL_S)
            pipe.xadd(self._keys.requests, fields)
            await pipe.execute()

    async def _read(self, request_id: str, last_id: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Replies after ``last_id``; waits a second for the first one."""
        answer = await self._broker.xread({self._keys.reply(request_id): last_id}, count=200, block=1000)
        if not answer:
            return []
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
        return [entry for entries in streams for entry in entries]

    async def _check(self, request_id: str, progress: _Progress, *, silent: bool) -> None:
        """Keep the request wanted, and notice when nobody can answer it any more."""
        now = time.monotonic()
        if not silent:
            progress.heard_of_process = now
            if now - progress.renewed < _RENEW_EVERY_S:
                return
        alive_key = self._keys.process(progress.process) if progress.process else self._keys.heartbeat
        async with self._broker.pipeline(transaction=False) as pipe:
            pipe.expire(self._keys.wanted(request_id), protocol.WANTED_TTL_S)
            pipe.exists(alive_key)
            kept, alive = await pipe.execute()
        progress.renewed = now
        if alive:
            progress.heard_of_process = now
        if not silent:
            return
        if not kept:
            raise InferenceError("unavailable", "The message broker was restarted during this request. Try again.")
        if progress.process and not alive:
            raise InferenceError("unavailable", "The model server was restarted during this request. Try again.")
        if now - progress.heard_of_process > START_GRACE_S:
            raise InferenceError("unavailable", "The model server is not running. It is started by `./studio up` or "
                                                "`./studio inference`; its log says why it is away.")
        if not progress.process and now - progress.since > ACCEPT_WITHIN_S:
            raise InferenceError("unavailable", "The model server does not take requests. Try again in a few seconds.")

    def _leave(self, request_id: str) -> None:
        """Tell the process that nobody listens; in a task of its own, because the present one may be cancelled."""
        async def forget() -> None:
            try:
                await self._broker.delete(self._keys.wanted(request_id), self._keys.reply(request_id))
            except RedisError as error:
                log.info("wish_expires_by_itself", request=request_id, error=str(error))

        task = asyncio.get_running_loop().create_task(forget())
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)
