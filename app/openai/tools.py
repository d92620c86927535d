"""``tools``, ``tool_choice`` and ``response_format`` as clients send them: looked at shallowly, and made into what the
inference process holds an answer to. (Whether a schema can be kept to is found out there.)"""

from __future__ import annotations

import json
import re
from typing import Any

from app.core.inference import Constraint

MAX_TOOLS = 128
#: all tools of a request, or one schema, as JSON
MAX_CHARS = 128 * 1024
MAX_DEPTH = 32
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def read_tools(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Definitions with nothing but what a template shows. Raises ``ValueError``."""
    _bounded(given, "the tools")
    names = set()
    result = []
    for at, tool in enumerate(given):
        if tool.get("type", "function") != "function":
            raise ValueError(f"tool {at} is of the type {str(tool['type'])[:40]!r}; only functions can be offered")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise ValueError(f"tool {at} needs an object in its field function")
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"tool {at} needs a name of 1 to 64 letters, digits, _, . and -")
        if name in names:
            raise ValueError(f"two tools are called {name}")
        if parameters is not None and not isinstance(parameters, dict):
            raise ValueError(f"the parameters of {name} must be a JSON Schema, which is an object")
        if not isinstance(function.get("description", ""), str | None):
            raise ValueError(f"the description of {name} must be text")
        names.add(name)
        shown = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
        result.append({"type": "function", "function": shown})
    return result


def read_choice(choice: Any, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools one of which must be called; none where the model decides. Raises ``ValueError``."""
    if choice in ("auto", "none"):
        return []
    name = choice
    if isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
    elif choice != "required":
        raise ValueError("tool_choice: send none, auto, required or {\"type\": \"function\", \"function\": "
                         "{\"name\": ...}}")
    if not tools:
        raise ValueError("tool_choice: there are no tools to choose from")
    found = tools if choice == "required" else [t for t in tools if t["function"]["name"] == name]
    if not found:
        raise ValueError(f"tool_choice: there is no tool {str(name)[:64]!r}")
    return found


def read_format(given: dict[str, Any]) -> Constraint | None:
    """None for plain text. Raises ``ValueError``."""
    kind = given.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(kind="json_object")
    if kind != "json_schema":
        raise ValueError(f"the type {str(kind)[:40]!r} is not known; send text, json_object or json_schema")
    wrapped = given.get("json_schema")
    schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    if not isinstance(schema, dict):
        raise ValueError("json_schema needs an object in its field schema")
    _bounded(schema, "the schema")
    return Constraint(kind="json_schema", schema=schema)


def read_made_call(call: dict[str, Any]) -> dict[str, Any]:
    """A call that the assistant made before, as templates write it: arguments as the object that the model saw in
    training, where they are one. Raises ``ValueError``."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise ValueError("a call needs function with a name")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, str | dict):
        raise ValueError("the arguments of a call are the text of a JSON object")
    if isinstance(arguments, str):
        arguments = _object_of(arguments) or arguments
    _bounded(arguments, "the arguments of a call")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _object_of(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
        return value if isinstance(value, dict) and _depth(value) <= MAX_DEPTH and json.dumps(
            value, ensure_ascii=False, allow_nan=False).encode() else None
    except (ValueError, RecursionError):
        return None


def _bounded(value: Any, what: str) -> None:
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"{what} are nested deeper than {MAX_DEPTH}")
    if not isinstance(value, str) and len(json.dumps(value)) > MAX_CHARS:
        raise ValueError(f"{what} have more than {MAX_CHARS} characters")


def _depth(value: Any) -> int:
    """Of a JSON value, looked at no deeper than it may be."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        level = [each for item in level if isinstance(item, dict | list)
                 for each in (item.values() if isinstance(item, dict) else item)]
        depth += bool(level)
    return depth
