"""The built-in tools as the API runs them. What they do is ``minimind.tools``; here are the shapes of asking."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.core.rest import RequestBody
from minimind import tools

MAX_NAME_CHARS = 200  # longer than any tool's: a model's wrong name is answered, not refused


class ToolList(BaseModel):
    """OpenAI's definitions, to be sent as ``tools`` of a chat completion."""

    items: list[dict[str, Any]]


class ToolCall(RequestBody):
    """``arguments`` as an object, or as the JSON text that a model wrote."""

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)]
    arguments: dict[str, Any] | Annotated[str, Field(max_length=tools.MAX_ARGUMENTS_CHARS)] = {}


class ToolAnswer(BaseModel):
    """``content`` is the text of the ``tool`` message; of a call that went wrong it says why."""

    name: str
    content: str
    is_error: bool


def run(call: ToolCall) -> ToolAnswer:
    result = tools.run(call.name, call.arguments)
    return ToolAnswer(name=call.name, content=result.content, is_error=result.is_error)
