"""What is said in a conversation: a tree of messages, of which one branch is shown.

Each message names the one that it follows (``parent_id``). An edited question and an answer that was asked for again
are siblings of what stood there before; nothing is overwritten. Conversations from before there were branches are a
list without ids: they are read as a chain.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from app.core.rest import RequestBody, is_id, rfc3339

MAX_CONTENT_CHARS = 100_000
MAX_MESSAGES = 1000
#: all messages of a conversation as JSON in UTF-8
MAX_MESSAGES_BYTES = 2 << 20
MAX_COUNT = 2**31 - 1
MAX_TOOL_CALLS = 32


def speakable(value: Any) -> Any:
    """Any Unicode text, line breaks and all; what no database and no answer can hold is refused."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("it holds a zero byte, which is no text; take it out")
        if any(0xD800 <= ord(c) < 0xE000 for c in value):
            raise ValueError("it holds half of a surrogate pair, which is not Unicode text")
    return value


def _checkpoint(value: str) -> str:
    if not is_id(value):
        raise ValueError("must be the id of a checkpoint")
    return value


def _moment(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
        shown = rfc3339(moment.timestamp()) if moment.tzinfo is not None else None
    except (ValueError, OverflowError, OSError):
        shown = None
    if shown is None:
        raise ValueError("must be a time such as 2026-01-31T12:00:00Z")
    return shown


Said = Annotated[str, Field(max_length=MAX_CONTENT_CHARS), BeforeValidator(speakable)]
CheckpointId = Annotated[str, Field(max_length=32), AfterValidator(_checkpoint)]
MessageId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{6,32}$")]
Moment = Annotated[str, Field(max_length=40), AfterValidator(_moment)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
#: what a model or a client calls a tool or one of its calls
Label = Annotated[str, Field(min_length=1, max_length=200), BeforeValidator(speakable)]
Positive = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Usage(RequestBody):
    prompt_tokens: Count
    completion_tokens: Count


class Speed(RequestBody):
    """How fast an answer came: tokens a second, and seconds until the first one."""

    tokens_per_s: Positive | None = None
    first_token_s: Positive | None = None


class ToolCall(RequestBody):
    """``arguments``: as the model wrote them, JSON if it is a good one."""

    id: Label
    name: Label
    arguments: Said = ""


class Message(RequestBody):
    """One turn; an assistant's also says how it ended and which checkpoint spoke, with which one's adapter.

    ``id`` is made by whoever wrote the message. Either every message of a conversation has one, or none: then each
    follows the one before it.
    """

    id: MessageId | None = None
    parent_id: MessageId | None = Field(None, description="The message that this one follows; null: it is a first one.")
    role: Literal["user", "assistant", "system", "tool"]
    content: Said
    reasoning: Said | None = Field(None, description="What an assistant thought before it answered.")
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: Label | None = Field(None, description="Role tool: the call that this is the result of.")
    name: Label | None = Field(None, description="Role tool: which tool.")
    is_error: bool | None = Field(None, description="Role tool: it failed, and content says why.")
    finish_reason: Literal["stop", "length", "tool_calls", "cancelled", "error"] | None = None
    checkpoint_id: CheckpointId | None = None
    adapter_checkpoint_id: CheckpointId | None = None
    usage: Usage | None = None
    speed: Speed | None = None
    created_at: Moment | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        if self.role != "assistant" and (self.reasoning is not None or self.tool_calls is not None):
            raise ValueError("only an assistant has reasoning and tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("a message of the role tool, and no other, has a tool_call_id")
        if self.role != "tool" and (self.name is not None or self.is_error is not None):
            raise ValueError("only a message of the role tool has a name and is_error")
        return self


def chained(messages: list[Message]) -> list[Message]:
    """``messages``, where none has an id each with one and behind the one before it. The same ids every time."""
    if not messages or any(m.id is not None for m in messages):
        return messages
    ids = [f"m{place:06}" for place in range(len(messages))]
    return [m.model_copy(update={"id": id, "parent_id": parent})
            for m, id, parent in zip(messages, ids, [None, *ids], strict=False)]


def _tree(messages: list[Message]) -> list[Message]:
    """Every message once and behind its parent, which leaves no room for circles."""
    if any(m.parent_id is not None and m.id is None for m in messages):
        raise ValueError("a message with a parent_id needs an id")
    seen: set[str] = set()
    for place, message in enumerate(messages := chained(messages)):
        if message.id is None:
            raise ValueError(f"message {place} has no id while others have one; give every message one, or none")
        if message.id in seen:
            raise ValueError(f"the id {message.id} is there twice")
        if message.parent_id is not None and message.parent_id not in seen:
            raise ValueError(f"no message before message {place} has the id {message.parent_id}, its parent_id")
        seen.add(message.id)
    if len(json.dumps(stored(messages), ensure_ascii=False).encode()) > MAX_MESSAGES_BYTES:
        raise ValueError(f"a conversation holds at most {MAX_MESSAGES_BYTES >> 20} MiB; begin a new one")
    return messages


def stored(messages: list[Message]) -> list[dict[str, Any]]:
    """``messages`` as the database keeps them: what is null is left out."""
    return [m.model_dump(mode="json", exclude_none=True) for m in messages]


def kept(rows: list[dict[str, Any]]) -> list[Message]:
    """Messages that the database holds; those of old conversations get ids."""
    return chained([Message(**row) for row in rows])


def branch(messages: list[Message], head: str | None) -> list[Message]:
    """From a first message to the one with the id ``head``: what is shown."""
    by_id = {m.id: m for m in messages}
    found = []
    at = by_id.get(head)
    while at is not None:
        found.append(at)
        at = by_id.get(at.parent_id)
    return found[::-1]


Messages = Annotated[list[Message], Field(max_length=MAX_MESSAGES), AfterValidator(_tree)]
