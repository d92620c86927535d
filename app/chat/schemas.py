"""Conversations as the API reads and shows them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from app.core.models import Conversation
from app.core.rest import Name, RequestBody, is_id, rfc3339

MAX_CONTENT_CHARS = 100_000
MAX_MESSAGES = 1000
#: all messages of a conversation as JSON in UTF-8
MAX_MESSAGES_BYTES = 2 << 20
MAX_COUNT = 2**31 - 1


def _speakable(value: Any) -> Any:
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


Said = Annotated[str, Field(max_length=MAX_CONTENT_CHARS), BeforeValidator(_speakable)]
CheckpointId = Annotated[str, Field(max_length=32), AfterValidator(_checkpoint)]
Moment = Annotated[str, Field(max_length=40), AfterValidator(_moment)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]


class Usage(RequestBody):
    prompt_tokens: Count
    completion_tokens: Count


class Message(RequestBody):
    """One turn; an assistant's also says how it ended and which checkpoint spoke, with which one's adapter."""

    role: Literal["user", "assistant", "system"]
    content: Said
    finish_reason: Literal["stop", "length", "cancelled", "error"] | None = None
    checkpoint_id: CheckpointId | None = None
    adapter_checkpoint_id: CheckpointId | None = None
    usage: Usage | None = None
    created_at: Moment | None = None


class SamplingChoice(RequestBody):
    """How answers are drawn; what is left out is the server's default."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Count | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-2**63, le=2**63 - 1)] | None = None


def _not_too_much(messages: list[Message]) -> list[Message]:
    if len(json.dumps(stored(messages), ensure_ascii=False).encode()) > MAX_MESSAGES_BYTES:
        raise ValueError(f"a conversation holds at most {MAX_MESSAGES_BYTES >> 20} MiB; begin a new one")
    return messages


def stored(messages: list[Message]) -> list[dict[str, Any]]:
    """``messages`` as the database keeps them: what is null is left out."""
    return [m.model_dump(mode="json", exclude_none=True) for m in messages]


Messages = Annotated[list[Message], Field(max_length=MAX_MESSAGES), AfterValidator(_not_too_much)]


class ConversationCreate(RequestBody):
    """Everything may be left out. Without ``title`` the first user message gives it, once there is one."""

    title: Name | None = None
    checkpoint_id: CheckpointId | None = None
    adapter_checkpoint_id: CheckpointId | None = None
    system: Said = ""
    sampling: SamplingChoice = SamplingChoice()
    messages: Messages = []


class ConversationPatch(RequestBody):
    """What changes; ``messages`` replaces the whole list. ``version`` is the one that the change was made from."""

    title: Name | None = Field(None, description="null: take it from the first user message again.")
    checkpoint_id: CheckpointId | None = None
    adapter_checkpoint_id: CheckpointId | None = Field(None, description="Its adapter is laid over the checkpoint; "
                                                                         "null: none is.")
    system: Said | None = None
    sampling: SamplingChoice | None = None
    messages: Messages | None = None
    version: Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)] | None = None


class ConversationItem(BaseModel):
    """A conversation in a list, without what was said."""

    id: str
    title: str
    checkpoint_id: str | None
    adapter_checkpoint_id: str | None
    message_count: int
    version: int
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, row: Conversation) -> ConversationItem:
        return cls(**_facts(row))


class ConversationOut(ConversationItem):
    """A whole conversation. ``title`` is empty until it was given or there is a user message to take it from."""

    system: str
    sampling: SamplingChoice
    messages: list[Message]

    @classmethod
    def of(cls, row: Conversation) -> ConversationOut:
        return cls(**_facts(row), system=row.system, sampling=SamplingChoice(**row.sampling),
                   messages=[Message(**m) for m in row.messages])


def _facts(row: Conversation) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in (
        "id", "title", "checkpoint_id", "adapter_checkpoint_id", "message_count", "version")}
    return plain | {name: rfc3339(getattr(row, name)) for name in ("created_at", "updated_at")}
