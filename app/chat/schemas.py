"""Conversations and presets as the API reads and shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from app.chat.messages import MAX_COUNT, CheckpointId, Count, Message, MessageId, Messages, Said, kept, speakable
from app.core.models import ChatPreset, Conversation
from app.core.rest import Name, RequestBody, rfc3339

Mode = Literal["chat", "text"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
StopText = Annotated[str, Field(min_length=1, max_length=1000), BeforeValidator(speakable)]


class SamplingChoice(RequestBody):
    """How answers are drawn; what is left out is the server's default. ``tools``: the studio's tools may be called;
    ``thinking``: it is to think before it answers."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-2**63, le=2**63 - 1)] | None = None
    stop: Annotated[list[StopText], Field(max_length=16)] | None = None
    tools: bool | None = None
    thinking: bool | None = None


class ConversationCreate(RequestBody):
    """Everything may be left out. Without ``title`` the first user message gives it, once there is one."""

    title: Name | None = None
    checkpoint_id: CheckpointId | None = None
    adapter_checkpoint_id: CheckpointId | None = None
    system: Said = ""
    sampling: SamplingChoice = SamplingChoice()
    messages: Messages = []
    head: MessageId | None = Field(None, description="Where the branch that is shown ends; null: at the last message.")
    mode: Mode | None = Field(None, description="text: the model goes on with what was written; null: what suits it.")


class ConversationPatch(RequestBody):
    """What changes; ``messages`` replaces all of them. ``version`` is the one that the change was made from."""

    title: Name | None = Field(None, description="null: take it from the first user message again.")
    checkpoint_id: CheckpointId | None = None
    adapter_checkpoint_id: CheckpointId | None = Field(None, description="Its adapter is laid over the checkpoint; "
                                                                         "null: none is.")
    system: Said | None = None
    sampling: SamplingChoice | None = None
    messages: Messages | None = None
    head: MessageId | None = Field(None, description="Where the branch that is shown ends; null: at the last message.")
    mode: Mode | None = Field(None, description="null: what suits the checkpoint.")
    version: Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)] | None = None


class _Facts(BaseModel):
    id: str
    title: str
    checkpoint_id: str | None
    adapter_checkpoint_id: str | None
    mode: Mode | None
    message_count: int
    version: int
    created_at: str
    updated_at: str


class ConversationItem(_Facts):
    """A conversation in a list, without what was said. ``excerpt``: where a search found it, null where in its title
    alone or nothing was searched for."""

    excerpt: str | None = None

    @classmethod
    def of(cls, row: Conversation, excerpt: str | None = None) -> ConversationItem:
        return cls(**_facts(row), excerpt=excerpt)


class ConversationOut(_Facts):
    """A whole conversation. ``title`` is empty until it was given or there is a user message to take it from.

    ``messages`` are a tree: each with an ``id`` behind the one that it follows; ``head`` ends the branch that is shown.
    """

    system: str
    sampling: SamplingChoice
    messages: list[Message]
    head: str | None

    @classmethod
    def of(cls, row: Conversation) -> ConversationOut:
        messages = kept(row.messages)
        return cls(**_facts(row), system=row.system, sampling=SamplingChoice(**row.sampling), messages=messages,
                   head=head_of(messages, row.head))


def head_of(messages: list[Message], wanted: str | None) -> str | None:
    """The id ``wanted`` where a message has it, else that of the last one."""
    if any(m.id == wanted for m in messages):
        return wanted
    return messages[-1].id if messages else None


def _facts(row: Conversation) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in (
        "id", "title", "checkpoint_id", "adapter_checkpoint_id", "mode", "message_count", "version")}
    return plain | {name: rfc3339(getattr(row, name)) for name in ("created_at", "updated_at")}


class PresetCreate(RequestBody):
    """Sampling and a system prompt under a name of one's own."""

    name: Name
    system: Said = ""
    sampling: SamplingChoice = SamplingChoice()


class PresetPatch(RequestBody):
    """What changes; null is as if it were left out."""

    name: Name | None = None
    system: Said | None = None
    sampling: SamplingChoice | None = None


class PresetOut(BaseModel):
    id: str
    name: str
    system: str
    sampling: SamplingChoice
    created_at: str

    @classmethod
    def of(cls, row: ChatPreset) -> PresetOut:
        return cls(id=row.id, name=row.name, system=row.system, sampling=SamplingChoice(**row.sampling),
                   created_at=rfc3339(row.created_at) or "")
