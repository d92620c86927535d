"""Log probabilities as OpenAI's two APIs show them. Natural logarithms of the unmodified softmax."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from app.core.inference import Alternative, TokenLogprob

#: JSON knows no infinity; what is impossible has this, as at OpenAI
IMPOSSIBLE = -9999.0


def of_chat(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The ``logprobs`` of a choice of a chat, or of its chunk."""
    return {"content": [{**_entry(t), "top_logprobs": [_entry(a) for a in t.top]} for t in tokens], "refusal": None}


def _entry(token: Alternative) -> dict[str, Any]:
    return {"token": token.text, "logprob": _number(token.logprob), "bytes": token.bytes}


class TextLogprobs:
    """The ``logprobs`` of plain completions, for one chunk after the other. Offsets are in characters."""

    def __init__(self) -> None:
        self._offset = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, tokens: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        return {"tokens": [_name(t) for t in tokens], "token_logprobs": [_number(t.logprob) for t in tokens],
                "top_logprobs": [_top(t) for t in tokens], "text_offset": [self._place(t) for t in tokens]}

    def _place(self, token: TokenLogprob) -> int:
        at = self._offset
        self._offset += len(self._utf8.decode(bytes(token.bytes)))
        return at


def joined(logprobs: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """What ``TextLogprobs`` said in pieces as one."""
    return {key: [entry for piece in logprobs for entry in piece[key]]
            for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}


def text_of(tokens: Sequence[TokenLogprob]) -> str:
    return b"".join(bytes(t.bytes) for t in tokens).decode("utf-8", "replace")


def _top(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens and this one; of two that read the same, the likelier. None behind nothing."""
    if token.logprob is None:
        return None
    named: dict[str, float] = {}
    for each in (*token.top, token):
        name, value = _name(each), _number(each.logprob)
        if value is not None and (name not in named or named[name] < value):
            named[name] = value
    return named


def _name(token: Alternative) -> str:
    """Its text; bytes that are no whole character as ``bytes:\\xe4``, so that different tokens read differently."""
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, IMPOSSIBLE)
