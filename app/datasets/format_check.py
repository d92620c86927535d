"""A conversation that somebody types, as a model reads it: the rendered text, its tokens, which of them are learnt.

It goes through the same functions as training and chat do (``minimind.chat_format``), so what is shown is what happens.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.auth.deps import User
from app.core.db import reading
from app.core.errors import Invalid
from app.core.rest import RequestBody
from app.datasets.schemas import PreviewToken
from app.datasets.tokens import MAX_DIALOGUE_CHARS, chars_of, loaded, tokenizer_dir, tokens_of
from minimind.chat_format import ROLES, encode_conversation, render
from minimind.tokenizer import SMALLEST_VOCABULARY, Tokenizer, clean_unicode

router = APIRouter(tags=["datasets"])
MAX_MESSAGES = 500

#: every kind of turn once: who speaks, thoughts, tools, a call, its result
EXAMPLE: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You help at the harbour."},
        {"role": "user", "content": "Can the ferry leave now?"},
        {"role": "assistant", "content": "", "reasoning_content": "It needs two metres of water: look at the tide.",
         "tool_calls": [{"name": "get_tide", "arguments": {"harbour": "Lisbon"}}]},
        {"role": "tool", "content": '{"height_m": 2.4}'},
        {"role": "assistant", "content": "Yes, the tide is 2.4 m high.", "reasoning_content": "2.4 is more than 2."},
        {"role": "user", "content": "Thank you!"},
        {"role": "assistant", "content": "You are welcome."},
    ],
    "tools": [{"name": "get_tide", "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}}}],
}


class Message(BaseModel):
    """``tool_calls``, and ``tools`` of the system message, are lists or their JSON texts. Other keys are not read."""

    model_config = ConfigDict(extra="ignore")

    role: Literal[ROLES]
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | str | None = None
    tools: list[dict[str, Any]] | str | None = None


class FormatRequest(RequestBody):
    """``tokenizer_id`` or ``checkpoint_id``: whose words and whose chat template; without either each byte is a token
    and the template is the studio's. ``add_generation_prompt``: with what stands before the next answer, which thinks
    first with ``open_thinking``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    tools: list[dict[str, Any]] | str | None = None
    tokenizer_id: Annotated[str, Field(max_length=64)] | None = None
    checkpoint_id: Annotated[str, Field(max_length=64)] | None = None
    add_generation_prompt: Annotated[bool, Field(strict=True)] = False
    open_thinking: Annotated[bool, Field(strict=True)] = False


class FormatOut(BaseModel):
    """``is_target``: fine-tuning learns this token. ``tokens`` are the first 2,000 of ``num_tokens``; their texts,
    joined, are the beginning of ``text``. ``num_targets`` counts all that are learnt."""

    text: str
    tokens: list[PreviewToken]
    num_tokens: int
    num_targets: int
    tokens_cut: bool


@router.post("/chat_format")
def check_chat_format(asked: FormatRequest, user: User) -> FormatOut:
    """A conversation as a model reads it: text, tokens, and which of them fine-tuning learns. Nothing is kept."""
    return checked(asked)


def checked(asked: FormatRequest) -> FormatOut:
    """Raises ``Invalid``, and ``DataError`` for what no training could read."""
    with reading() as session:
        try:
            directory = tokenizer_dir(session, asked.tokenizer_id, asked.checkpoint_id)
        except Invalid as error:  # there the fields are called as the preview's query calls them
            raise Invalid(error.message, field=f"{error.field}_id", hint=error.hint) from None
    tokenizer = loaded(directory) if directory else bytes_alone()
    messages = [message.model_dump(exclude_none=True) for message in asked.messages]
    if chars_of(messages) + len(str(asked.tools or "")) > MAX_DIALOGUE_CHARS:
        raise Invalid(f"The conversation is longer than {MAX_DIALOGUE_CHARS:,} characters.", field="messages",
                      hint="Shorten it, or import it as a dataset and look at it there.")
    options = {"add_generation_prompt": asked.add_generation_prompt, "open_thinking": asked.open_thinking}
    ids, mask = encode_conversation(tokenizer, messages, asked.tools, **options)
    tokens = tokens_of(tokenizer, ids, mask, is_whole=True)
    return FormatOut(text=clean_unicode(render(tokenizer, messages, tools=asked.tools, **options)), tokens=tokens,
                     num_tokens=len(ids), num_targets=sum(mask), tokens_cut=len(tokens) < len(ids))


@cache
def bytes_alone() -> Tokenizer:
    """The tokenizer of who has learnt no word yet: control tokens, and one token for each byte."""
    return Tokenizer.train(["a"], SMALLEST_VOCABULARY)
