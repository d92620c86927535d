"""``/v1/completions``: texts and token ids continued with nothing added, what a pretrained checkpoint can do."""

from __future__ import annotations

from typing import Any

from app.chat.service import InferenceClient
from app.core.inference import Reply, TokenLogprob
from app.openai import logprobs, service
from app.openai.completion import Choice, Completion, reason_of
from app.openai.schemas import CompletionRequest


class TextChoice(Choice):
    """``prompt``: what an echo begins with; None where the inference process says it."""

    def __init__(self, index: int, prompt: str | None, *, echo: bool, with_logprobs: bool):
        super().__init__(index)
        self._prompt = prompt
        self._echo = echo
        self._logprobs = logprobs.TextLogprobs() if with_logprobs else None
        self._waiting: list[TokenLogprob] = []  # whose text is not whole yet
        self._texts: list[str] = []
        self._pieces: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    def opening(self, started: Reply) -> list[dict[str, Any]]:
        if not self._echo:
            return []
        tokens = started.prompt or []
        self._waiting += tokens
        return [self._choice(logprobs.text_of(tokens) if self._prompt is None else self._prompt)]

    def push(self, delta: Reply) -> list[dict[str, Any]]:
        self._waiting += delta.tokens or []
        return [self._choice(delta.text)] if delta.text else []

    def finish(self, done: Reply) -> list[dict[str, Any]]:
        self._finish_reason = reason_of(done)
        return [self._choice("", self._finish_reason)]

    def whole(self) -> dict[str, Any]:
        return {"index": self.index, "text": self.text(), "finish_reason": self._finish_reason,
                "logprobs": None if self._logprobs is None else logprobs.joined(self._pieces)}

    def text(self) -> str:
        return "".join(self._texts)

    def _choice(self, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        """Of a chunk; it takes the tokens that wait with it."""
        tokens, self._waiting = self._waiting, []
        piece = self._logprobs.take(tokens) if self._logprobs is not None else None
        self._texts.append(text)
        if piece is not None:
            self._pieces.append(piece)
        return {"index": self.index, "text": text, "finish_reason": finish_reason,
                "logprobs": piece if tokens else None}


class TextCompletion(Completion):
    """``n`` choices of the first prompt, then those of the second, as at OpenAI."""

    id_prefix, object_name, chunk_name = "cmpl", "text_completion", "text_completion"

    def __init__(self, client: InferenceClient, request: CompletionRequest, model: service.Model):
        sources, choices = [], []
        for prompt in request.prompt:
            asked: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": prompt}
            text = prompt if isinstance(prompt, str) else None
            with_logprobs = request.logprobs is not None
            # ids that are echoed without log probabilities: these are how the process says their text
            reports = request.echo and (with_logprobs or text is None)
            asked |= {"echo": reports, "logprobs": 0 if reports and not with_logprobs else request.logprobs}
            for at in range(request.n):
                sources.append(client.replies(**model.places, **asked, sampling=request.sampling(at)))
                choices.append(TextChoice(len(choices), text, echo=request.echo, with_logprobs=with_logprobs))
        super().__init__(request, sources, choices)
