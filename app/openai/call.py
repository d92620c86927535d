"""One request to ``/v1`` from its body to its last byte: read, limited, answered, and logged however it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.auth.service import Identity
from app.chat.service import InferenceClient
from app.core.answers import as_app_error
from app.core.errors import BadRequest, TooLarge
from app.core.inference import MAX_REQUEST_BYTES
from app.core.logging import get_logger
from app.core.settings import get_settings
from app.core.tasks import end
from app.openai.completion import Completion
from app.openai.limits import Limits, Place
from app.openai.request_log import Entry, RequestLogWriter, bounded, one_line

log = get_logger(__name__)

#: what a proxy writes down when the client went away first; nobody reads it
CLIENT_LEFT = 499
#: requests that are looked into at a time: more threads of a crowd would only keep each other, and those who are being
#: answered, from their turn
_MAKING = CapacityLimiter(4)
#: fields of a body that say what was asked
_CONTENT = ("messages", "prompt", "tools")


class Call:
    """``answer`` once. What it holds is given back and written down when the last byte is sent, or none will be."""

    def __init__(self, request: Request, user: Identity):
        self._request = request
        self._entry = Entry(user_id=user.user_id, route=request.url.path[:64],
                            client=one_line(request.headers.get("user-agent", ""), 200))
        self._completion: Completion | None = None
        self._place: Place | None = None

    async def answer(self, make: Callable[[Any, InferenceClient], Completion], client: InferenceClient) -> Response:
        """``make`` turns the body into a completion; it may block. Raises ``AppError``."""
        response = None
        try:
            limits, settings, user_id = self._limits(), get_settings(), self._entry.user_id
            headers = limits.count(user_id, settings.api_requests_per_minute)
            body = await self._body()
            completion = self._completion = await to_thread.run_sync(make, body, client, limiter=_MAKING)
            self._place = limits.enter(user_id, len(completion.choices), settings.api_concurrency)
            response = await self._unless_gone(self._respond(completion, headers))
            return response
        except (ClientDisconnect, asyncio.CancelledError):
            self._entry.status = CLIENT_LEFT
            raise
        except Exception as error:
            known = as_app_error(error)
            self._entry.status, self._entry.error = known.status, known.code.lower()
            raise
        finally:
            if not isinstance(response, _EventStream):
                await self.close()

    async def close(self, *, left: bool = False) -> None:
        """``left``: the client went before the end of its stream."""
        entry, completion = self._entry, self._completion
        if self._place is not None:
            self._place.leave()
        if left:
            entry.status = CLIENT_LEFT
        if completion is not None:
            account = completion.account
            entry.prompt_tokens, entry.cached_tokens = account.prompt_tokens, account.cached_tokens
            entry.completion_tokens, entry.finish_reason = account.completion_tokens, account.finish_reason
            entry.first_token_s = account.first_token_s
            entry.error = entry.error or completion.error
            if entry.content is not None:
                entry.content["answers"] = bounded([choice.text() for choice in completion.choices])
        self._log().add(entry)
        if completion is not None:
            await completion.close()

    async def _body(self) -> Any:
        size, chunks = 0, []
        async for chunk in self._request.stream():
            size += len(chunk)
            if size > MAX_REQUEST_BYTES:
                raise TooLarge(f"The request is larger than {MAX_REQUEST_BYTES} bytes.")
            chunks.append(chunk)
        try:
            body = json.loads(b"".join(chunks))
        except (ValueError, RecursionError) as error:
            raise BadRequest("The request body is not valid JSON.") from error
        if isinstance(body, dict):
            self._entry.model = one_line(body.get("model") or "", 200)
            if get_settings().log_request_content:
                self._entry.content = bounded({name: body[name] for name in _CONTENT if body.get(name)})
        return body

    async def _respond(self, completion: Completion, headers: dict[str, str]) -> Response:
        await completion.start()
        if completion.request.stream:
            return _EventStream(self, completion, headers)
        return JSONResponse(await completion.whole(), headers=headers)

    async def _unless_gone(self, work: Coroutine[Any, Any, Response]) -> Response:
        """What ``work`` makes; as soon as the client hangs up, an answer that nobody reads."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_hung_up(self._request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            log.info("client_left", route=self._entry.route)
            self._entry.status = CLIENT_LEFT
            return Response(status_code=CLIENT_LEFT)
        finally:
            await end(gone, task)

    def _limits(self) -> Limits:
        state = self._request.app.state
        if getattr(state, "api_limits", None) is None:
            state.api_limits = Limits()
        return state.api_limits

    def _log(self) -> RequestLogWriter:
        state = self._request.app.state
        if getattr(state, "request_log", None) is None:
            state.request_log = RequestLogWriter()
        return state.request_log


class _EventStream(StreamingResponse):
    """The events of a completion; when the client leaves, the generation ends with them."""

    def __init__(self, call: Call, completion: Completion, headers: dict[str, str]):
        super().__init__(self._events(completion), media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
        self._call = call
        self._ended = False

    async def _events(self, completion: Completion) -> Any:
        async for event in completion.events():
            yield event
        self._ended = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # not left to the garbage collector, which ends a generator that hung in ``send`` some day
            await self._call.close(left=not self._ended)


async def _hung_up(request: Request) -> None:
    """Returns when the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
