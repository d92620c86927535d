"""Dialogues as tokens: the prompt for an answer, and which tokens of a dialogue are learnt.

The loss mask covers every assistant turn from behind its header ``<|im_start|>assistant\\n`` to the closing
``<|im_end|>\\n``, a think block included; nothing else. Text is cut at these two places before it is turned into
ids, so the ids of a prompt are the ids that stand before the same answer in training, whatever the answer
begins with.

What people write cannot become a control token: ``<|im_end|>`` inside a message is encoded as ten ordinary
characters. (Reasoning and tool tags are not control tokens; they are one id each wherever they stand.)
"""

from __future__ import annotations

import json
import re
from typing import Any

from minimind.chat_template import render_template
from minimind.errors import DataError
from minimind.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")


def render(tokenizer: Tokenizer, messages: list[dict], *, tools: list[dict] | None = None,
           add_generation_prompt: bool = False, open_thinking: bool = False) -> str:
    """The dialogue as text, through the tokenizer's own chat template.

    ``messages`` have ``role`` and ``content`` and may have ``reasoning_content``, ``tool_calls`` (a list, or
    JSON text as MiniMind's files have it) and, on the first system message, ``tools``. Raises ``DataError``.
    """
    messages, tools = normalize(messages, tools)
    return render_template(
        tokenizer.chat_template, messages=messages, tools=tools, add_generation_prompt=add_generation_prompt,
        open_thinking=open_thinking, enable_thinking=open_thinking,
        bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token)


def encode_prompt(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None,
                  open_thinking: bool = False) -> list[int]:
    """Ids up to where the assistant's next answer begins."""
    marks = _Marks(tokenizer, messages)
    text = render(tokenizer, marks.hide(messages), tools=tools, add_generation_prompt=True,
                  open_thinking=open_thinking)
    return [i for part, _ in _parts(tokenizer, text) for i in marks.encode(part)]


def encode_conversation(tokenizer: Tokenizer, messages: list[dict],
                        tools: list[dict] | None = None) -> tuple[list[int], list[bool]]:
    """Ids of a whole dialogue and, for each, whether it is learnt (see the top of this file).

    Raises ``DataError`` when the template's assistant turns cannot be found.
    """
    marks = _Marks(tokenizer, messages)
    text = render(tokenizer, marks.hide(messages), tools=tools)
    ids: list[int] = []
    mask: list[bool] = []
    answers = 0
    for part, is_answer in _parts(tokenizer, text):
        part_ids = marks.encode(part)
        ids += part_ids
        mask += [is_answer] * len(part_ids)
        answers += is_answer
    if answers != sum(message["role"] == "assistant" for message in messages):
        raise DataError("The assistant's turns cannot be found in what the chat template writes.",
                        field="chat_template",
                        hint=f"Fine-tuning needs turns of the form {tokenizer.bos_token}assistant ... "
                             f"{tokenizer.eos_token}, as MiniMind's and Qwen's templates write them.")
    return ids, mask


def normalize(messages: list[dict], tools: list[dict] | None = None) -> tuple[list[dict], list[dict] | None]:
    """Messages as templates expect them: JSON texts read, ``tools`` taken from the system message."""
    if not messages:
        raise DataError("The conversation has no messages.", field="messages", hint="Send at least one.")
    if isinstance(tools, str):
        tools = _json_list(tools, "tools", 0)
    result = []
    for number, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"Message {number + 1} has the role {role!r}.", field="role",
                            hint=f"Roles are {', '.join(ROLES)}.")
        content = message.get("content")
        plain = {"role": role, "content": content if isinstance(content, str) else ""}
        if isinstance(message.get("reasoning_content"), str) and message["reasoning_content"]:
            plain["reasoning_content"] = message["reasoning_content"]
        if message.get("tool_calls"):
            plain["tool_calls"] = _json_list(message["tool_calls"], "tool_calls", number)
        if role == "system" and message.get("tools") and not tools:
            tools = _json_list(message["tools"], "tools", number)
        result.append(plain)
    return result, tools or None


def _json_list(value: Any, field: str, number: int) -> list[dict]:
    """``value`` itself, or what its JSON text says: a list of objects."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{field} of message {number + 1} is not a JSON list of objects.", field=field,
                        hint=f'Write it like [{{"name": ...}}], or leave {field} out.')
    return value


def _parts(tokenizer: Tokenizer, text: str) -> list[tuple[str, bool]]:
    """``text`` cut into ``(part, is an assistant's closed turn)``; the parts joined are the text."""
    header = f"{tokenizer.bos_token}assistant\n"
    turn = re.compile(f"(?<={re.escape(header)})(.*?{re.escape(tokenizer.eos_token)}\n?)", re.DOTALL)
    pieces = turn.split(text)  # odd places are turns
    parts = [(piece, place % 2 == 1) for place, piece in enumerate(pieces)]
    open_header = parts[-1][0].rfind(header)
    if open_header >= 0:  # a prompt: what follows the header is cut off as in a whole turn
        last = parts.pop()[0]
        cut = open_header + len(header)
        parts += [(last[:cut], False), (last[cut:], False)]
    return [part for part in parts if part[0]]


class _Marks:
    """Takes control tokens out of what people wrote before the template runs, and encodes them as plain text after.

    A template works on one text in which its own ``<|im_end|>`` and a user's look the same. So a user's is
    replaced by a mark of private-use characters that no message contains.
    """

    def __init__(self, tokenizer: Tokenizer, messages: list[dict]):
        self._tokenizer = tokenizer
        self._specials = re.compile("|".join(map(re.escape, tokenizer.special_tokens)) or r"(?!)")
        self._found: list[str] = []
        written = json.dumps(messages, ensure_ascii=False, default=str)
        number = 0
        while f"\ue000{number}:" in written:
            number += 1
        self._prefix = f"\ue000{number}:"
        self._mark = re.compile(f"{self._prefix}(\\d+)\ue001")

    def hide(self, value: Any) -> Any:
        """``value`` with each control token in any of its texts replaced by a mark."""
        if isinstance(value, str):
            return self._specials.sub(self._remember, value)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {key: self.hide(item) for key, item in value.items()}
        return value

    def _remember(self, match: re.Match) -> str:
        self._found.append(match.group())
        return f"{self._prefix}{len(self._found) - 1}\ue001"

    def encode(self, text: str) -> list[int]:
        if not self._found:
            return self._tokenizer.encode(text)
        ids: list[int] = []
        for place, piece in enumerate(self._mark.split(text)):  # odd places are numbers of marks
            if place % 2:
                ids += self._tokenizer.encode_text(self._found[int(piece)])
            elif piece:
                ids += self._tokenizer.encode(piece)
        return ids
