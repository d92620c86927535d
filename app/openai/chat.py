"""``/v1/chat/completions``: the next turn of a conversation, its reasoning and calls of tools taken out of the text."""

from __future__ import annotations

import secrets
from typing import Any

from app.chat.service import InferenceClient
from app.core.inference import Reply, TokenLogprob
from app.openai import logprobs, service
from app.openai.completion import Choice, Completion, reason_of
from app.openai.schemas import ChatRequest
from minimind.answers import AnswerParser, Part


class ChatChoice(Choice):
    """``one_call``: further calls of tools are left out, as the client asked."""

    def __init__(self, index: int, parser: AnswerParser, *, with_logprobs: bool, one_call: bool):
        super().__init__(index)
        self._parser = parser
        self._with_logprobs = with_logprobs
        self._one_call = one_call
        self._said: dict[str, list[str]] = {"content": [], "reasoning_content": []}
        self._calls: list[dict[str, Any]] = []
        self._waiting: list[TokenLogprob] = []  # whose text was held back
        self._tokens: list[TokenLogprob] = []
        self._finish_reason: str | None = None

    def opening(self, started: Reply) -> list[dict[str, Any]]:
        return [self._choice({"role": "assistant", "content": ""})]

    def push(self, delta: Reply) -> list[dict[str, Any]]:
        if self._with_logprobs:
            self._waiting += delta.tokens or []
        return self._chunks(self._parser.push(delta.text))

    def finish(self, done: Reply) -> list[dict[str, Any]]:
        chunks = self._chunks(self._parser.finish())
        reason = reason_of(done)
        self._finish_reason = "tool_calls" if self._calls and reason == "stop" else reason
        return [*chunks, self._choice({}, self._finish_reason)]

    def whole(self) -> dict[str, Any]:
        content, reasoning = ("".join(self._said[kind]) for kind in ("content", "reasoning_content"))
        message: dict[str, Any] = {"role": "assistant", "content": None if self._calls and not content else content,
                                   "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in self._calls]
        return {"index": self.index, "message": message, "finish_reason": self._finish_reason,
                "logprobs": logprobs.of_chat(self._tokens) if self._with_logprobs else None}

    def text(self) -> str:
        calls = "".join(f"\n{call['function']}" for call in self._calls)
        return "".join(self._said["reasoning_content"] + self._said["content"]) + calls

    def _chunks(self, parts: list[Part]) -> list[dict[str, Any]]:
        return [self._choice(delta) for delta in map(self._delta, parts) if delta]

    def _delta(self, part: Part) -> dict[str, Any] | None:
        if part.kind == "tool_call":
            if self._one_call and self._calls:
                return None
            call = {"index": len(self._calls), "id": f"call_{secrets.token_hex(12)}", "type": "function",
                    "function": {"name": part.name, "arguments": part.text}}
            self._calls.append(call)
            return {"tool_calls": [call]}
        name = "content" if part.kind == "content" else "reasoning_content"
        self._said[name].append(part.text)
        return {name: part.text}

    def _choice(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """Of a chunk; it takes the tokens that wait with it."""
        tokens, self._waiting = self._waiting, []
        self._tokens += tokens
        return {"index": self.index, "delta": delta, "finish_reason": finish_reason,
                "logprobs": logprobs.of_chat(tokens) if tokens else None}


class ChatCompletion(Completion):
    """``thinks``: the chat template opens a think block at the end of the prompt."""

    id_prefix, object_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, client: InferenceClient, request: ChatRequest, model: service.Model, *, thinks: bool):
        constraint, offered = request.constraint, request.offered
        continues = request.continue_final_message
        asked: dict[str, Any] = {
            "messages": [m.for_template() for m in request.messages], "tools": offered or None,
            "open_thinking": request.open_thinking, "continue_final": continues, "constraint": constraint,
            "logprobs": request.top_logprobs if request.logprobs else None}
        thinks = request.continues_thinking if continues else thinks and constraint is None
        sources, choices = [], []
        for at in range(request.n):
            sources.append(client.replies(**model.places, **asked, sampling=request.sampling(at)))
            parser = AnswerParser(is_thinking=thinks, continues=continues, calls=bool(offered))
            choices.append(ChatChoice(at, parser, with_logprobs=request.logprobs,
                                      one_call=not request.parallel_tool_calls))
        super().__init__(request, sources, choices)
