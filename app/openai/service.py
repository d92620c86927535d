"""Finds the checkpoint that a model id means, and turns replies of the inference process into OpenAI's objects."""

from __future__ import annotations

import abc
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from app.chat.service import InferenceClient, InferenceError
from app.checkpoints.adapters import misfit
from app.core.db import reading
from app.core.errors import AppError, answer
from app.core.inference import Reply
from app.core.models import Checkpoint, Run
from app.core.rest import is_id
from app.openai.schemas import ChatRequest, CompletionRequest, SamplingFields

OWNER = "minimind-studio"
#: checkpoints that ``/v1/models`` names, newest first: clients show the whole list in a menu
MAX_LISTED = 1000
#: between a model and the checkpoint whose adapter is laid over it
PLUS = "+"


@dataclass(frozen=True)
class Model:
    """Who answers: a checkpoint (one of the stage lora with its own base), maybe with another one's adapter over it."""

    checkpoint: Checkpoint
    adapter: Checkpoint | None = None

    @property
    def places(self) -> dict[str, str | None]:
        """As ``InferenceClient.replies`` wants them."""
        return {"checkpoint": self.checkpoint.path, "adapter": self.adapter.path if self.adapter else None}


def list_models() -> list[dict[str, Any]]:
    with reading() as session:
        rows = session.scalars(select(Checkpoint).where(Checkpoint.state == "ready")
                               .order_by(Checkpoint.created_at.desc(), Checkpoint.step.desc()).limit(MAX_LISTED))
        return [_model_object(row.id, Model(row)) for row in rows]


def get_model(model_id: str) -> dict[str, Any]:
    """Raises ``AppError`` as ``find_model``."""
    return _model_object(model_id, find_model(model_id))


def find_model(model_id: str) -> Model:
    """``ID``, or ``BASE+ADAPTER``: the adapter of one checkpoint over another. Raises ``AppError``: 404 where one is
    not there, 400 where they do not go together."""
    base, plus, adapter = model_id.partition(PLUS)
    if not plus:
        return Model(find_checkpoint(model_id))
    if PLUS in adapter:
        raise AppError(400, "invalid_value", "One adapter can be laid over a model: BASE+ADAPTER.", "model")
    model = Model(find_checkpoint(base), find_checkpoint(adapter))
    problem = misfit(model.checkpoint, model.adapter)
    if problem is not None:
        raise AppError(400, "adapter_misfit", problem, "model")
    return model


def find_checkpoint(model_id: str) -> Checkpoint:
    """The checkpoint of that id, or the latest one of the run of that id. Raises ``AppError`` 404."""
    if not is_id(model_id):  # nothing else is ever asked of the database
        raise AppError(404, "model_not_found", "There is no checkpoint or run of this name. GET /v1/models lists the "
                                               "checkpoints.", "model")
    with reading() as session:
        found = session.get(Checkpoint, model_id)
        if found is not None and found.state == "ready":
            return found
        # a later attempt supersedes what earlier ones saved, also at a higher step
        of_run = select(Checkpoint).where(Checkpoint.run_id == model_id, Checkpoint.state == "ready")
        latest = session.scalars(of_run.order_by(Checkpoint.attempt.desc(), Checkpoint.step.desc()).limit(1)).first()
        if latest is not None:
            return latest
        if found is not None:
            reason = f"The checkpoint {model_id!r} is {found.state}; choose another one of run {found.run_id}."
        elif session.get(Run, model_id) is not None:
            reason = f"The run {model_id!r} has no checkpoint yet."
        else:
            reason = f"There is no checkpoint or run {model_id!r}. GET /v1/models lists the checkpoints."
    raise AppError(404, "model_not_found", reason, "model")


def _model_object(model_id: str, model: Model) -> dict[str, Any]:
    row = model.checkpoint
    return {"id": model_id, "object": "model", "created": int(row.created_at), "owned_by": OWNER,
            "checkpoint": row.id, "run": row.run_id, "stage": row.stage, "step": row.step,
            "adapter": model.adapter.id if model.adapter else None}


class Completion(abc.ABC):
    """One answer to ``request``. ``start`` must be awaited first: it waits until the model has begun, so that
    every refusal still has its HTTP status. ``close`` ends the generation."""

    id_prefix: str
    object_name: str
    chunk_name: str

    def __init__(self, request: SamplingFields, replies: AsyncGenerator[Reply, None]):
        self.id = f"{self.id_prefix}-{secrets.token_urlsafe(18)}"
        self.created = int(time.time())
        self.request = request
        self._replies = replies

    @abc.abstractmethod
    def choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """The one choice of the unstreamed answer."""

    @abc.abstractmethod
    def delta(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        """The one choice of a chunk; ``text`` is None in the last one."""

    def opening(self) -> list[dict[str, Any]]:
        """Choices of the chunks that come before any text."""
        return []

    async def start(self) -> None:
        """Raises ``InferenceError``."""
        while (await anext(self._replies)).type != "started":
            pass

    async def close(self) -> None:
        await self._replies.aclose()

    async def whole(self) -> dict[str, Any]:
        """The unstreamed answer. Raises ``InferenceError``."""
        parts: list[str] = []
        async for reply in self._replies:
            parts.append(reply.text)
        choice = self.choice("".join(parts), _finish_reason(reply))
        return {**self._head(self.object_name), "choices": [choice], "usage": _usage(reply)}

    async def events(self) -> AsyncIterator[str]:
        """The streamed answer as server-sent events: the role, text as it comes, the reason of the end, the usage
        if asked, ``[DONE]``. A failure in the middle is one event with ``error``, the last one."""
        for choice in self.opening():
            yield self._chunk(choice)
        try:
            async for reply in self._replies:
                if reply.type == "delta":
                    yield self._chunk(self.delta(reply.text, None))
                elif reply.type == "done":
                    yield self._chunk(self.delta(None, _finish_reason(reply)))
                    if self.request.stream_options.include_usage:
                        yield _event({**self._head(self.chunk_name), "choices": [], "usage": _usage(reply)})
        except InferenceError as error:
            yield f"data: {bytes(answer('/v1/', error).body).decode()}\n\n"
            return
        yield "data: [DONE]\n\n"

    def _chunk(self, choice: dict[str, Any]) -> str:
        chunk = {**self._head(self.chunk_name), "choices": [choice]}
        if self.request.stream_options.include_usage:
            chunk["usage"] = None
        return _event(chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}


class ChatCompletion(Completion):
    """The next turn of a conversation."""

    id_prefix, object_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, client: InferenceClient, request: ChatRequest, model: Model):
        super().__init__(request, client.replies(
            **model.places, messages=[m.for_template() for m in request.messages],
            open_thinking=request.open_thinking(), sampling=request.sampling()))

    def choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}

    def delta(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}

    def opening(self) -> list[dict[str, Any]]:
        return [{**self.delta(None, None), "delta": {"role": "assistant", "content": ""}}]


class TextCompletion(Completion):
    """The continuation of a text, tokenized with nothing added: what a pretrained checkpoint can do."""

    id_prefix, object_name, chunk_name = "cmpl", "text_completion", "text_completion"

    def __init__(self, client: InferenceClient, request: CompletionRequest, model: Model):
        super().__init__(request, client.replies(**model.places, prompt=request.prompt, sampling=request.sampling()))

    def choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def delta(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        return self.choice(text or "", finish_reason)


def _finish_reason(reply: Reply) -> str:
    return "length" if reply.finish_reason == "length" else "stop"


def _usage(reply: Reply) -> dict[str, int]:
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
