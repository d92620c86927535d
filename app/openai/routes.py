"""``/v1``: the part of OpenAI's API that a model of one's own can serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from app.auth.deps import require_user
from app.chat.service import InferenceClient
from app.core.errors import AppError, BadRequest, TooLarge
from app.core.inference import MAX_REQUEST_BYTES
from app.core.logging import get_logger
from app.core.settings import get_settings
from app.core.tasks import end
from app.openai import service
from app.openai.schemas import ChatRequest, CompletionRequest, parse

log = get_logger(__name__)


router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[Depends(require_user)])


async def inference_client(request: Request) -> InferenceClient:
    """The web process's one client, made at its first use."""
    state = request.app.state
    if getattr(state, "inference", None) is None:
        state.inference = InferenceClient(get_settings().broker_url, get_settings().redis_prefix)
    return state.inference


@router.get("/models")
def list_models() -> dict[str, Any]:
    return {"object": "list", "data": service.list_models()}


@router.get("/models/{model_id}")
def get_model(model_id: str) -> dict[str, Any]:
    return service.get_model(model_id)


@router.post("/chat/completions")
async def chat_completions(request: Request, client: InferenceClient = Depends(inference_client)) -> Response:
    wanted = parse(ChatRequest, await _json_body(request))
    model = await run_in_threadpool(service.find_model, wanted.model)
    return await _answer(request, service.ChatCompletion(client, wanted, model))


@router.post("/completions")
async def completions(request: Request, client: InferenceClient = Depends(inference_client)) -> Response:
    wanted = parse(CompletionRequest, await _json_body(request))
    model = await run_in_threadpool(service.find_model, wanted.model)
    return await _answer(request, service.TextCompletion(client, wanted, model))


@router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
def unknown(path: str) -> Response:
    raise AppError(404, "unknown_url", f"/v1/{path} does not exist on this server. It serves /v1/models, "
                                       "/v1/models/ID, /v1/chat/completions and /v1/completions.")


async def _answer(request: Request, completion: service.Completion) -> Response:
    if not completion.request.stream:
        return await _unless_gone(request, completion, _whole(completion))
    await _unless_gone(request, completion, completion.start())
    return _EventStream(completion)


async def _whole(completion: service.Completion) -> Response:
    try:
        await completion.start()
        return JSONResponse(await completion.whole())
    finally:
        await completion.close()


class _EventStream(StreamingResponse):
    """The events of a completion; when the client leaves, the generation ends with them."""

    def __init__(self, completion: service.Completion):
        super().__init__(completion.events(), media_type="text/event-stream",
                         headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # not left to the garbage collector, which ends a generator that hung in ``send`` some day
            await self._completion.close()


async def _json_body(request: Request) -> Any:
    size, chunks = 0, []
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_REQUEST_BYTES:
            raise TooLarge(f"The request is larger than {MAX_REQUEST_BYTES} bytes.")
        chunks.append(chunk)
    try:
        return json.loads(b"".join(chunks))
    except (ValueError, RecursionError) as error:
        raise BadRequest("The request body is not valid JSON.") from error


async def _unless_gone(request: Request, completion: service.Completion, work: Coroutine[Any, Any, Any]) -> Any:
    """Await ``work``, and end the generation as soon as the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        log.info("client_left", completion=completion.id)
        return Response(status_code=499)  # nobody reads it
    finally:
        await end(gone)
        if not task.done() or task.cancelled() or task.exception():
            await end(task)
            await completion.close()


async def _hung_up(request: Request) -> None:
    """Returns when the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
