"""``/tools``: the built-in tools that a model in the chat may call. They touch nothing: no file, network or process."""

from __future__ import annotations

from fastapi import APIRouter

from app.auth.deps import User
from app.chat import tools
from app.chat.tools import ToolAnswer, ToolCall, ToolList
from minimind.tools import definitions

router = APIRouter(prefix="/tools", tags=["conversations"])


@router.get("")
def list_tools(user: User) -> ToolList:
    """The built-in tools. ``calc``, ``phone``, ``weather`` and ``clock`` are those of the starter corpus; its telephone
    book and its weather are invented."""
    return ToolList(items=definitions())


@router.post("/run")
def run_tool(call: ToolCall, user: User) -> ToolAnswer:
    """Call a built-in tool. A call that went wrong is an answer too: ``is_error``, and a sentence for the model."""
    return tools.run(call)
