"""What a row of each layout must be, checked key by key; what is wrong is named by its field.

The file and the line are added by whoever reads (``layouts``, ``foreign``): here there is only the row.
"""

from __future__ import annotations

import json
from typing import Any

from minimind.chat_format import ROLES, json_list, missing_in
from minimind.errors import DataError

SHAPES = {
    "text": '{"text": "..."}',
    "txt": "plain text",
    "conversations": '{"conversations": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "dpo": '{"chosen": [{"role": "user", ...}, ...], "rejected": [...]}',
    "questions": '{"question": "..."}',
}


def check_text(row: dict) -> None:
    text = _required(row, "text", str, SHAPES["text"])
    if not text.strip():
        raise DataError("text is empty.", field="text", hint="Remove the line or give it text.")


def check_question(row: dict) -> None:
    """A question that a teacher is to answer; nothing is learnt from it as it is."""
    if not _required(row, "question", str, SHAPES["questions"]).strip():
        raise DataError("question is empty.", field="question", hint="Remove the line or give it a question.")


def check_conversations(row: dict) -> None:
    _check_messages(_required(row, "conversations", list, SHAPES["conversations"]), "conversations")
    _check_beside(row)


def check_dpo(row: dict) -> None:
    """Both sides begin with the same messages, the prompt; what is behind them differs and holds an answer."""
    for name in ("chosen", "rejected"):
        _check_messages(_required(row, name, list, SHAPES["dpo"]), name)
    chosen, rejected = ([_said(message) for message in row[name]] for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError("chosen and rejected are equal.", field="rejected",
                        hint="A pair needs a better and a worse answer: remove the row or correct one side.")
    shared = shared_messages(row["chosen"], row["rejected"])
    if not shared:
        raise DataError("chosen and rejected begin with different messages.", field="rejected[0]",
                        hint="Both sides must begin with the same prompt, such as the user's question.")
    for name in ("chosen", "rejected"):
        if not any(message["role"] == "assistant" for message in row[name][shared:]):
            raise DataError(f"{name} has no message of the assistant behind the {shared} that both sides share.",
                            field=name, hint="Without an answer on each side there is nothing to compare.")
    for name in ("chosen", "rejected"):
        if (role := row[name][shared]["role"]) != "assistant":
            raise DataError(f"chosen and rejected have different prompts: {name}[{shared}] is of the role {role} and "
                            "only in this side.", field=f"{name}[{shared}]",
                            hint="Both sides begin with the same messages, up to the assistant's.")
    _check_beside(row)


def shared_messages(chosen: list[dict], rejected: list[dict]) -> int:
    """How many messages both sides of a pair begin with: its prompt."""
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if _said(one) != _said(other):
            break
        shared += 1
    return shared


def _said(message: dict) -> tuple:
    """What training reads of a message, so that other keys make no difference."""
    calls = message.get("tool_calls") or None
    if isinstance(calls, str):
        calls = json.loads(calls) or None
    return message.get("role"), message.get("content") or "", message.get("reasoning_content") or "", calls


def _check_beside(row: dict) -> None:
    """Beside the messages: ``tools``, a list or the JSON text of one or nothing; and no system prompt, which would not
    be read. (Where the first row of a file has one, ``foreign`` makes a message of it.)"""
    if row.get("tools"):
        json_list(row["tools"], "tools", "tools", "tools")
    for name in ("system", "system_prompt"):
        if isinstance(row.get(name), str) and row[name].strip():
            raise DataError(f"{name} stands beside the messages, where it is not read.", field=name,
                            hint='Write it as the first message: {"role": "system", "content": "..."}.')


def _check_messages(messages: list, name: str) -> None:
    if not messages:
        raise DataError(f"{name} is empty.", field=name, hint="Give at least a question and an answer.")
    for place, message in enumerate(messages):
        where = f"{name}[{place}]"
        if not isinstance(message, dict):
            raise DataError(f"{where} is a JSON {kind_of(message)}, not an object.", field=where,
                            hint=f"Write {SHAPES['conversations']}.")
        if "role" not in message and "from" in message:
            raise DataError(f"{where} has from/value instead of role/content.", field=where,
                            hint="This looks like ShareGPT's layout: rename from to role and value to content.")
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"{where}.role is {role!r}.", field=f"{where}.role", hint=f"Roles are {', '.join(ROLES)}.")
        content = message.get("content")
        says_otherwise = message.get("tool_calls") or message.get("reasoning_content")
        if not isinstance(content, str) and not (content is None and says_otherwise):
            raise DataError(f"{where}.content is {kind_of(content)}, not text." if "content" in message
                            else f"{where}.content is missing.", field=f"{where}.content",
                            hint="Each message needs its text in content.")
        if role == "user" and not (content or "").strip():
            raise DataError(f"{where}.content is empty.", field=f"{where}.content",
                            hint="Remove the row or give the message text.")
        for number, call in enumerate(_check_json_list(message, "tool_calls", where)):
            if role != "assistant":  # nobody else's calls are read
                continue
            if missing := missing_in(call):
                raise DataError(f"{where}.tool_calls[{number}] has no {missing}.", field=f"{where}.tool_calls",
                                hint='Write a call as {"name": ..., "arguments": {...}}.')
            if not _is_json((call.get("function") or call)["arguments"]):
                raise DataError(f"{where}.tool_calls[{number}].arguments is not valid JSON.",
                                field=f"{where}.tool_calls",
                                hint='Write an object, such as {"city": "Lisbon"}; JSON knows no NaN and no Infinity.')
        _check_json_list(message, "tools", where)
        if not isinstance(message.get("reasoning_content", ""), str | None):
            raise DataError(f"{where}.reasoning_content is {kind_of(message['reasoning_content'])}, not text.",
                            field=f"{where}.reasoning_content", hint="Write the reasoning as text or leave it out.")
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{name} has no message of the assistant.", field=name,
                        hint="Without an answer there is nothing to learn.")


def _check_json_list(message: dict, name: str, where: str) -> list[dict]:
    """``tools`` and ``tool_calls`` are lists of objects, or JSON texts of such lists."""
    value: Any = message.get(name)
    return json_list(value, name, f"{where}.{name}", f"{where}.{name}") if value else []


def _is_json(value: Any) -> bool:
    """Whether a text is JSON, or a value can be written as it: Python's reader takes NaN, a tool's will not."""
    try:
        json.dumps(json.loads(value) if isinstance(value, str) else value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def _required(row: dict, name: str, kind: type, shape: str) -> Any:
    if name not in row:
        raise DataError(f"the field {name} is missing.", field=name, hint=_shape_hint(row, shape))
    if not isinstance(row[name], kind):
        raise DataError(f"{name} is {kind_of(row[name])}, not {'text' if kind is str else 'a list'}.", field=name,
                        hint=f"Rows look like {shape}.")
    return row[name]


def _shape_hint(row: dict, shape: str) -> str:
    for layout, key in (("text", "text"), ("conversations", "conversations"), ("dpo", "chosen")):
        if key in row:
            return f"The row has the layout {layout}: choose that layout, or a stage that learns from it."
    return f"Rows look like {shape}."


def kind_of(value: Any) -> str:
    """What a JSON value is, in a word for a sentence."""
    names = {dict: "object", list: "list", str: "text", bool: "true/false", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
