"""Messages of any of the usual kinds as ours: ``{"role", "content", "reasoning_content"?, "tool_calls"?}``."""

from __future__ import annotations

import json
from typing import Any

from minimind.data.rows import kind_of
from minimind.errors import DataError

ROLE_OF = {
    **dict.fromkeys(("user", "human", "usr", "prompter", "customer", "client", "patient", "student", "question"),
                    "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatgpt", "chatbot", "bing", "bard", "claude", "model", "ai", "agent",
                     "doctor", "teacher", "answer", "assistant_response", "output"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "tool_result",
                     "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
ROLE_KEYS = ("from", "role", "speaker", "author", "user_type")
CONTENT_KEYS = ("value", "content", "text", "message", "utterance", "sentence")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking", "reasoning_text")
_CALL_PARTS = ("tool_call", "tool_use", "function_call")
#: Python's words for types, as some collections of tools have them, in JSON Schema's
TYPE_WORDS = {"dict": "object", "float": "number", "double": "number", "int": "integer", "long": "integer",
              "str": "string", "char": "string", "bool": "boolean", "list": "array", "tuple": "array", "set": "array",
              "hashmap": "object", "arraylist": "array"}


class LeaveOut(Exception):
    """A row that nothing can be learnt from: left out and counted. ``field`` says where in the row."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field, self.message = field, message


def messages_of(value: Any, mapping: dict, name: str, *, merges: bool = False) -> list[dict]:
    """A conversation, checked. ``name``: its column; ``merges``: what one speaker says in a row is one message.

    Raises ``LeaveOut``, and ``DataError`` for a call whose JSON is broken.
    """
    value = _parsed(value, name) if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise LeaveOut(name, f"{name} is {'empty' if value in ('', [], {}) else kind_of(value) + ', not a list'}")
    roles = _roles_of(value, mapping, name)
    result: list[dict] = []
    for place, (element, role) in enumerate(zip(value, roles, strict=True)):
        where = f"{name}[{place}]"
        message = _message(element, role, mapping, where)
        if message is None:
            continue
        last = result[-1] if result else {}
        if role == "call" and last.get("tool_calls") and not last["content"]:
            last["tool_calls"] += message["tool_calls"]  # calls that stand one by one are one turn
        elif merges and last.get("role") == message["role"] in ("user", "assistant"):
            last["content"] += "\n" + message["content"]
        else:
            result.append(message)
    if not result:  # a system's message that says nothing is none
        raise LeaveOut(name, f"{name} has nothing but an empty message")
    return result


def answered(messages: list[dict], name: str) -> list[dict]:
    """The same messages. Raises ``LeaveOut`` where the assistant says nothing."""
    if not any(message["role"] == "assistant" for message in messages):
        raise LeaveOut(name, f"{name} has no message of the assistant")
    return messages


def _roles_of(value: list, mapping: dict, name: str) -> list[str]:
    """The role of each element; without a column for it, or with names of people, the speakers take turns."""
    words = {mapping[key].lower(): role for key, role in (("user", "user"), ("assistant", "assistant"),
             ("system_role", "system"), ("tool", "tool")) if mapping.get(key)}
    said = []
    for place, element in enumerate(value):
        if not isinstance(element, dict | str):
            raise LeaveOut(f"{name}[{place}]", f"{name}[{place}] is {kind_of(element)}, not a message")
        key = mapping.get("role") or next((k for k in ROLE_KEYS if isinstance(element, dict) and k in element), None)
        said.append(element.get(key) if isinstance(element, dict) and key else None)
    if all(word is None for word in said):
        return ["user" if place % 2 == 0 else "assistant" for place in range(len(value))]
    known = {**ROLE_OF, "sys": "assistant" if "usr" in said else "system", **words}
    if not any(str(word).lower() in known for word in said) and len(set(map(str, said))) == 2 and None not in said:
        return ["user" if word == said[0] else "assistant" for word in said]  # two speakers: the first one asks
    roles = []
    for place, word in enumerate(said):
        role = known.get(word.lower()) if isinstance(word, str) else None
        if role is None:
            raise LeaveOut(f"{name}[{place}]", f"{name}[{place}] is said by {str(word)[:40]!r}, which is no known role")
        roles.append(role)
    return roles


def _message(element: Any, role: str, mapping: dict, where: str) -> dict | None:
    if isinstance(element, str):
        element = {"content": element}
    key = mapping.get("content") or next((k for k in CONTENT_KEYS if k in element), "content")
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": calls_of(element.get(key), f"{where}.{key}")}
    content, reasoning, calls = _parts(element.get(key), f"{where}.{key}", role)
    message: dict[str, Any] = {"role": role, "content": content}
    if role == "assistant":
        reasoning = reasoning or next((element[k] for k in ("reasoning_content", "reasoning", "thinking")
                                       if isinstance(element.get(k), str)), "")
        for name in ("tool_calls", "function_call"):
            if element.get(name):
                calls += calls_of(element[name], f"{where}.{name}")
        if reasoning.strip():
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
    if role == "system" and element.get("tools") and (tools := tools_of(element["tools"], f"{where}.tools")):
        message["tools"] = tools
    if not content.strip() and len(message) == 2 and role != "tool":
        if role == "system":
            return None
        raise LeaveOut(f"{where}.{key}", f"{where}.{key} is empty")
    return message


def _parts(value: Any, where: str, role: str) -> tuple[str, str, list[dict]]:
    """Text, reasoning and calls of a content, which is a text or a list of parts."""
    if value is None or isinstance(value, str):
        return value or "", "", []
    if role == "tool" and not (isinstance(value, list) and all(isinstance(v, dict) and "type" in v for v in value)):
        return json.dumps(value, ensure_ascii=False), "", []
    if not isinstance(value, list):
        raise LeaveOut(where, f"{where} is {kind_of(value)}, not text")
    texts, reasons, calls = [], [], []
    for place, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else "text" if isinstance(part, str) else None
        keys = ("text", "value", "thinking", "reasoning", str(kind)) if isinstance(part, dict) else ()
        said = part if isinstance(part, str) else next((part[k] for k in keys if part.get(k) is not None), "")
        if kind in _CALL_PARTS:
            calls += calls_of(said if said and isinstance(said, str | dict) else part, f"{where}[{place}]")
        elif kind in _TEXT_PARTS + _REASONING_PARTS and isinstance(said, str):
            (texts if kind in _TEXT_PARTS else reasons).append(said)
        else:
            raise LeaveOut(f"{where}[{place}]", f"{where}[{place}] is a part of the type {str(kind)[:40]!r}, not text")
    return "\n".join(texts), "\n".join(reasons), calls


def calls_of(value: Any, where: str) -> list[dict]:
    """``[{"name", "arguments": {...}}]`` of one call or several, as objects or as JSON texts.

    Raises ``DataError`` where it is none: a model that learns it would call nothing.
    """
    value = _parsed(value, where) if isinstance(value, str) else value
    calls = []
    for call in value if isinstance(value, list) else [value]:
        call = _parsed(call, where) if isinstance(call, str) else call
        called = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(called, dict) or not isinstance(called.get("name"), str) or not called["name"]:
            raise DataError(f"{where} is a call without a name.", field=where,
                            hint='A call looks like {"name": ..., "arguments": {...}}.')
        given = next((called[k] for k in ("arguments", "parameters", "input", "args") if k in called), {})
        given = _parsed(given or "{}", f"{where}.arguments") if isinstance(given, str) else given
        if given is not None and not isinstance(given, dict):
            raise DataError(f"{where}.arguments is {kind_of(given)}, not an object.", field=where,
                            hint='A call looks like {"name": ..., "arguments": {...}}.')
        calls.append({"name": called["name"], "arguments": given or {}})
    if not calls:
        raise DataError(f"{where} holds no call.", field=where, hint="Leave it out where there is none.")
    return calls


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON: {error.msg} at character {error.pos + 1}.", field=where,
                        hint="Correct the JSON there, or remove the row.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not usable JSON.", field=where, hint="Correct it, or remove the row.") from None


def tools_of(value: Any, where: str = "tools") -> list[dict]:
    """Definitions of tools as a list, with JSON Schema's words for types; none where there is nothing."""
    value = _parsed(value, where) if isinstance(value, str) and value.strip() else value
    if not value or isinstance(value, str):
        return []
    value = [_parsed(v, where) if isinstance(v, str) else v for v in (value if isinstance(value, list) else [value])]
    if not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where} is not a list of objects.", field=where, hint="Leave tools out where there are none.")
    return [_in_schema_words(tool) for tool in value]


def _in_schema_words(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list) and depth < 64:
        return [_in_schema_words(item, depth + 1) for item in value]
    if not isinstance(value, dict) or depth >= 64:
        return value
    result = {}
    for key, item in value.items():
        if key == "type" and isinstance(item, str):
            word = item.split(",")[0].split("[")[0].strip().lower()  # "str, optional", "List[int]"
            if word == "any":
                continue  # a schema without a type takes everything
            result[key] = TYPE_WORDS.get(word, word if word in _SCHEMA_WORDS else item)
        else:
            result[key] = item if key in ("default", "enum") else _in_schema_words(item, depth + 1)
    return result


_SCHEMA_WORDS = ("object", "array", "string", "number", "integer", "boolean", "null")
