"""From replies of the inference process to OpenAI's objects, streamed and whole: what chat and plain text share.

Both ways run the same choices over the same replies, so joined deltas equal the whole answer.
"""

from __future__ import annotations

import abc
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.chat.service import InferenceError
from app.core.answers import answer
from app.core.inference import Reply, Timings
from app.openai.generations import Generations
from app.openai.schemas import SamplingFields


class Choice(abc.ABC):
    """One of the answers to a request."""

    def __init__(self, index: int):
        self.index = index

    @abc.abstractmethod
    def opening(self, started: Reply) -> list[dict[str, Any]]:
        """Choices of the chunks that come before the first delta."""

    @abc.abstractmethod
    def push(self, delta: Reply) -> list[dict[str, Any]]:
        """Choices of the chunks that a reply makes; none while it is not known what its text is."""

    @abc.abstractmethod
    def finish(self, done: Reply) -> list[dict[str, Any]]:
        """Those of the last chunks; the very last has the reason of the end."""

    @abc.abstractmethod
    def whole(self) -> dict[str, Any]:
        """The unstreamed choice, after ``finish``."""

    @abc.abstractmethod
    def text(self) -> str:
        """What was said so far, for the log."""


@dataclass
class Account:
    """What a request cost. ``prompts``: tokens by place of the prompt, each counted once."""

    began: float = field(default_factory=time.monotonic)
    prompts: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    completion_tokens: int = 0
    choices: int = 0
    first_token_s: float | None = None
    finish_reason: str | None = None
    timings: list[Timings] = field(default_factory=list)

    def take(self, prompt: int, reply: Reply) -> None:
        if reply.type == "started":
            self.prompts.setdefault(prompt, reply.prompt_tokens)
            self.cached.setdefault(prompt, reply.cached_tokens)
        elif reply.type == "delta" and self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began
        elif reply.type == "done":
            self.prompts[prompt] = reply.prompt_tokens or self.prompts.get(prompt, 0)
            self.completion_tokens += reply.completion_tokens
            self.choices += 1
            if reply.timings is not None:
                self.timings.append(reply.timings)

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompts.values())

    @property
    def cached_tokens(self) -> int:
        return sum(self.cached.values())

    def usage(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": self.cached_tokens}}

    def seconds(self) -> dict[str, float | None]:
        """Our own field ``timings``: of several answers, which run side by side, the longest of each."""
        longest = {name: max((getattr(t, name) for t in self.timings), default=0.0)
                   for name in ("queue_s", "prefill_s", "decode_s")}
        later = self.completion_tokens - self.choices  # behind the first token of each, where decode_s begins
        per_s = later / longest["decode_s"] if longest["decode_s"] > 0 and later > 0 else None
        rounded = {**longest, "tokens_per_s": per_s, "first_token_s": self.first_token_s}
        return {name: None if value is None else round(value, 4) for name, value in rounded.items()}


class Completion(abc.ABC):
    """The answers to ``request``. ``start`` must be awaited first: it waits until the model has begun, so that
    every refusal still has its HTTP status. ``close`` ends the generation."""

    id_prefix: str
    object_name: str
    chunk_name: str

    def __init__(self, request: SamplingFields, sources: Sequence[AsyncGenerator[Reply, None]],
                 choices: Sequence[Choice]):
        self.id = f"{self.id_prefix}-{secrets.token_urlsafe(18)}"
        self.created = int(time.time())
        self.request = request
        self.choices = choices
        self.account = Account()
        #: code of the error that ended the answer in its middle
        self.error: str | None = None
        self._generations = Generations(sources)

    async def start(self) -> None:
        """Raises ``InferenceError``."""
        await self._generations.start()

    async def close(self) -> None:
        await self._generations.close()

    async def whole(self) -> dict[str, Any]:
        """The unstreamed answer. Raises ``InferenceError``."""
        async for choice, reply in self._replies():
            self._parts(choice, reply)
        return {**self._head(self.object_name), "choices": [c.whole() for c in self.choices],
                "usage": self.account.usage(), "timings": self.account.seconds()}

    async def events(self) -> AsyncIterator[str]:
        """The streamed answer as server-sent events: text as it comes, the reason of the end, the usage if asked,
        ``[DONE]``. A failure in the middle is one event with ``error``, the last one."""
        try:
            async for choice, reply in self._replies():
                parts = self._parts(choice, reply)
                last = reply.type == "done" and self.account.choices == len(self.choices)
                for at, part in enumerate(parts):
                    more = {"timings": self.account.seconds()} if last and at == len(parts) - 1 else {}
                    yield self._chunk(part, more)
            if self.request.stream_options.include_usage:
                yield _event({**self._head(self.chunk_name), "choices": [], "usage": self.account.usage()})
        except InferenceError as error:
            self.error = error.code
            yield f"data: {bytes(answer('/v1/', error).body).decode()}\n\n"
            return
        yield "data: [DONE]\n\n"

    async def _replies(self) -> AsyncIterator[tuple[Choice, Reply]]:
        async for at, reply in self._generations.replies():
            self.account.take(at // self.request.n, reply)
            yield self.choices[at], reply

    def _parts(self, choice: Choice, reply: Reply) -> list[dict[str, Any]]:
        if reply.type == "started":
            return choice.opening(reply)
        if reply.type == "delta":
            return choice.push(reply)
        parts = choice.finish(reply)
        self.account.finish_reason = self.account.finish_reason or parts[-1]["finish_reason"]
        return parts

    def _chunk(self, choice: dict[str, Any], more: dict[str, Any]) -> str:
        chunk = {**self._head(self.chunk_name), "choices": [choice], **more}
        if self.request.stream_options.include_usage:
            chunk["usage"] = None
        return _event(chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}


def reason_of(done: Reply) -> str:
    return "length" if done.finish_reason == "length" else "stop"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
