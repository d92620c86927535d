"""Dialogues as tokens: the prompt for an answer, and which tokens of a dialogue are learnt.

The loss mask covers every assistant turn from behind its header ``<|im_start|>assistant\\n`` to the closing
``<|im_end|>\\n``, a think block and calls of tools included; nothing else. Text is cut at these two places before it
is turned into ids, so the ids of a prompt are the ids that stand before the same answer in training, whatever the
answer begins with.

What people write cannot become a control token: ``<|im_end|>`` inside a message is encoded as ten ordinary
characters. (Reasoning and tool tags are not control tokens; they are one id each wherever they stand.)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from minimind.chat_template import render_template
from minimind.errors import DataError
from minimind.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
#: a think block in which nothing is thought, at the beginning of an answer
_EMPTY_THINKING = re.compile(r"\A\s*(?:<think>\s*)?</think>\n*")

#: texts of a dialogue one behind the other as ids, and whether each is an assistant's closed turn
Parts = list[tuple[list[int], bool]]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two sides of a preference; in both, ``prompt_tokens`` equal ids stand before the first learnt one."""

    chosen_ids: list[int]
    chosen_mask: list[bool]
    rejected_ids: list[int]
    rejected_mask: list[bool]
    prompt_tokens: int


def render(tokenizer: Tokenizer, messages: list[dict], *, tools: list[dict] | None = None,
           add_generation_prompt: bool = False, open_thinking: bool = False) -> str:
    """The dialogue as text, through the tokenizer's own chat template.

    ``messages`` have ``role`` and ``content`` and may have ``reasoning_content``, ``tool_calls`` (a list, or
    JSON text as MiniMind's files have it) and, on the first system message, ``tools``. Raises ``DataError``.
    """
    messages, tools = normalize(messages, tools)
    return _rendered(tokenizer, messages, tools, add_generation_prompt, open_thinking)


def encode_prompt(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None,
                  open_thinking: bool = False) -> list[int]:
    """Ids up to where the assistant's next answer begins."""
    messages, tools = normalize(messages, tools)
    return [i for ids, _ in _encoded(tokenizer, messages, tools, True, open_thinking) for i in ids]


def encode_continuation(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None,
                        open_thinking: bool = False) -> list[int]:
    """Ids up to the end of the last message, an assistant's, as if its words had just been generated. Raises
    ``DataError``."""
    messages, tools = normalize(messages, tools)
    last = messages[-1]
    if last["role"] != "assistant" or len(messages) == 1 or last.get("tool_calls"):
        raise DataError("Only an assistant's answer to something, without calls of tools, can be gone on with.",
                        field="messages", hint="Let the last message be the answer that is to be continued.")
    prompt = [i for ids, _ in _encoded(tokenizer, messages[:-1], tools, True, open_thinking) for i in ids]
    said = last["content"]
    if last.get("reasoning_content"):
        closed = f"{last['reasoning_content']}\n</think>\n\n{said}" if said else last["reasoning_content"]
        opens = tokenizer.decode(prompt[-8:], skip_special=False).rstrip().endswith("<think>")
        said = closed if opens else f"<think>\n{closed}"
    marks = _Marks(tokenizer, [said])
    return prompt + marks.encode(marks.hide(said))


def encode_conversation(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None, *,
                        add_generation_prompt: bool = False,
                        open_thinking: bool = False) -> tuple[list[int], list[bool]]:
    """Ids of a whole dialogue and, for each, whether it is learnt (see the top of this file).

    With ``add_generation_prompt`` what ``encode_prompt`` gives, and what of it was learnt. Raises ``DataError`` when
    the template's assistant turns cannot be found.
    """
    messages, tools = normalize(messages, tools)
    parts = _encoded(tokenizer, messages, tools, add_generation_prompt, open_thinking)
    return _learnt(tokenizer, messages, parts)


def encode_pair(tokenizer: Tokenizer, chosen: list[dict], rejected: list[dict],
                tools: list[dict] | None = None) -> Pair:
    """Two answers to the same prompt, as ids and loss masks.

    The prompt is all messages with which both sides begin. The assistant's turns behind it are learnt, those in it
    are not: they are equal, so they cancel in the difference of the sides.

    Thinking is treated the same way in both sides. An empty think block that somebody wrote into a message is not
    part of the answer: it is taken away before the template runs, which then writes one into every turn without
    reasoning (MiniMind's) or into none (ours). Reasoning that says something stays, also where only one side has
    some: it belongs to what was preferred, and an answer without the thoughts that led to it is another answer.

    Raises ``DataError`` where the sides are equal, have no answer of the assistant behind the prompt, or answer
    different prompts.
    """
    chosen, tools_of_chosen = normalize(chosen, tools)
    rejected, tools_of_rejected = normalize(rejected, tools)
    chosen, rejected = ([_without_empty_thinking(m) for m in side] for side in (chosen, rejected))
    same = DataError("chosen and rejected are the same.", field="rejected",
                     hint="Remove the pair: there is nothing to prefer.")
    if tools_of_chosen != tools_of_rejected:
        raise DataError("chosen and rejected have different tools.", field="rejected",
                        hint="Both sides answer the same prompt, its tools included.")
    if chosen == rejected:
        raise same
    shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not any(m["role"] == "assistant" for m in side[shared:]):
            raise DataError(f"{name} has no message of the assistant behind the {shared} messages that both sides "
                            "begin with.", field=name, hint="Each side needs an answer of its own to the same prompt.")
        if side[shared]["role"] != "assistant":
            raise DataError(f"chosen and rejected have different prompts: {name}[{shared}] is of the role "
                            f"{side[shared]['role']} and only in this side.", field=f"{name}[{shared}]",
                            hint="Both sides begin with the same messages, up to the assistant's.")
    answers = sum(m["role"] == "assistant" for m in chosen[:shared])
    (c_ids, c_mask), (r_ids, r_mask) = (
        _learnt(tokenizer, side, _encoded(tokenizer, side, tools_of_chosen), answers) for side in (chosen, rejected))
    if c_ids == r_ids:
        raise same
    prompt_tokens = c_mask.index(True)
    if prompt_tokens != r_mask.index(True) or c_ids[:prompt_tokens] != r_ids[:prompt_tokens]:
        raise DataError("The chat template writes the prompt of chosen and of rejected differently.",
                        field="chat_template", hint="Use a template in which a turn does not depend on later ones.")
    return Pair(c_ids, c_mask, r_ids, r_mask, prompt_tokens)


def json_list(value: Any, name: str, where: str, field: str) -> list[dict]:
    """``value`` itself, or what its JSON text says: a list of objects. Raises ``DataError`` that calls it ``where``."""
    why = ""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            value, why = None, f": {error.msg} at character {error.pos + 1}"
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{where} is not a JSON list of objects{why}.", field=field,
                        hint=f'Write it like [{{"name": ...}}], or leave {name} out where there are none.')
    return value


def normalize(messages: list[dict], tools: list[dict] | None = None) -> tuple[list[dict], list[dict] | None]:
    """Messages as templates expect them: JSON texts read, ``tools`` taken from the system message."""
    if not messages:
        raise DataError("The conversation has no messages.", field="messages", hint="Send at least one.")
    if tools:
        tools = json_list(tools, "tools", "tools", "tools")
    result = []
    for number, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            raise DataError(f"Message {number + 1} has the role {role!r}.", field="role",
                            hint=f"Roles are {', '.join(ROLES)}.")
        content = message.get("content")
        plain = {"role": role, "content": content if isinstance(content, str) else ""}
        if isinstance(message.get("reasoning_content"), str):  # an empty one says that content holds no reasoning
            plain["reasoning_content"] = message["reasoning_content"]
        if message.get("tool_calls"):
            plain["tool_calls"] = json_list(message["tool_calls"], "tool_calls",
                                            f"tool_calls of message {number + 1}", "tool_calls")
            if role == "assistant":
                _check_calls(plain["tool_calls"], number)
        if role == "system" and message.get("tools") and not tools:
            tools = json_list(message["tools"], "tools", f"tools of message {number + 1}", "tools")
        result.append(plain)
    return result, tools or None


def missing_in(call: dict) -> str | None:
    """Which of its two parts a call of a tool lacks."""
    called = call.get("function") or call
    if not isinstance(called, dict) or not isinstance(called.get("name"), str) or not called["name"].strip():
        return "name"
    return None if "arguments" in called else "arguments"


def _check_calls(calls: list[dict], number: int) -> None:
    for call in calls:
        if missing := missing_in(call):
            raise DataError(f"A tool call of message {number + 1} has no {missing}.", field="tool_calls",
                            hint='Write a call as {"name": ..., "arguments": {...}}.')


def _without_empty_thinking(message: dict) -> dict:
    """An assistant's message without a think block that is there but says nothing."""
    if message["role"] != "assistant":
        return message
    message = dict(message)
    if not message.get("reasoning_content", "").strip():
        message.pop("reasoning_content", None)
    if message["content"].count("</think>") == 1:
        message["content"] = _EMPTY_THINKING.sub("", message["content"])
    return message


def _rendered(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, add_generation_prompt: bool,
              open_thinking: bool) -> str:
    return render_template(
        tokenizer.chat_template, messages=messages, tools=tools, add_generation_prompt=add_generation_prompt,
        open_thinking=open_thinking, enable_thinking=open_thinking,
        bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token)


def _encoded(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None,
             add_generation_prompt: bool = False, open_thinking: bool = False) -> Parts:
    """Normalized messages as ids, cut where the assistant's turns begin and end."""
    try:
        marks = _Marks(tokenizer, [messages, tools])
        text = _rendered(tokenizer, marks.hide(messages), marks.hide(tools), add_generation_prompt, open_thinking)
    except RecursionError:
        raise DataError("A tool or a tool call is nested too deeply.", field="tools",
                        hint="Write plain JSON objects.") from None
    return [(marks.encode(part), is_answer) for part, is_answer in _parts(tokenizer, text)]


def _learnt(tokenizer: Tokenizer, messages: list[dict], parts: Parts,
            prompt_answers: int = 0) -> tuple[list[int], list[bool]]:
    """Ids and mask; the first ``prompt_answers`` turns of the assistant are not learnt. Raises ``DataError``."""
    ids: list[int] = []
    mask: list[bool] = []
    answers = 0
    for part_ids, is_answer in parts:
        answers += is_answer
        ids += part_ids
        mask += [is_answer and answers > prompt_answers] * len(part_ids)
    if answers != sum(message["role"] == "assistant" for message in messages):
        raise DataError("The assistant's turns cannot be found in what the chat template writes.",
                        field="chat_template",
                        hint=f"Fine-tuning needs turns of the form {tokenizer.bos_token}assistant ... "
                             f"{tokenizer.eos_token}, as MiniMind's and Qwen's templates write them.")
    return ids, mask


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

    def __init__(self, tokenizer: Tokenizer, written: Any):
        self._tokenizer = tokenizer
        self._specials = re.compile("|".join(map(re.escape, tokenizer.special_tokens)) or r"(?!)")
        self._found: list[str] = []
        written = json.dumps(written, ensure_ascii=False, default=str)
        number = 0
        while f"\ue000{number}:" in written:
            number += 1
        self._prefix = f"\ue000{number}:"
        self._mark = re.compile(f"{self._prefix}(\\d+)\ue001")

    def hide(self, value: Any) -> Any:
        """``value`` with each control token in any of its texts, keys too, replaced by a mark."""
        if isinstance(value, str):
            return self._specials.sub(self._remember, value)
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
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
