"""Talking to a model: a checkpoint, its tokenizer and a batch of requests behind one door.

``Engine.stream`` yields one ``Delta`` per token; the joined texts equal ``Engine.generate``'s text, also where a
character or a stop string spans tokens. Many requests at once: ``Engine.generate_many``, or ``Engine.batch`` step by
step (``minimind.batching``). Arithmetic is float32 on a CPU unless asked otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minimind.batching import Answering, Batch, Delta
from minimind.decoding import Decoder
from minimind.model import MiniMindForCausalLM
from minimind.prefixes import Prefixes
from minimind.sampling import ContextLengthError, GenerationError, SamplingParams
from minimind.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minimind.constrain import Grammar

__all__ = ["ContextLengthError", "Delta", "Engine", "Generation", "GenerationError", "SamplingParams"]

#: ``weights`` of an engine -> what it means
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}

GRAMMARS_KEPT = 32


@dataclass(frozen=True)
class Generation:
    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Engine:
    """A model and its tokenizer, ready to answer. ``prefix_bytes``: memory for beginnings that were read before;
    ``cache_bytes``: for what is being read and written (None: no limit).

    A model that is being trained stays as it is (``owns`` False); one that was loaded for this becomes part of the
    engine.
    """

    def __init__(self, model: MiniMindForCausalLM, tokenizer: Tokenizer, device: str | torch.device = "cpu", *,
                 owns: bool = False, weights: str = "full", base: Decoder | None = None, prefix_bytes: int = 0,
                 cache_bytes: int | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.max_positions: int = model.config.max_position_embeddings
        self.end_ids = {tokenizer.eos_id, tokenizer.pad_id}
        self.decoder = Decoder(model, owns=owns, weights=weights, base=base)
        self._weights, self._prefix_bytes, self._cache_bytes = weights, prefix_bytes, cache_bytes
        self._grammars: dict[str, Grammar] = {}

    @classmethod
    def from_checkpoint(cls, path: Path | str, device: str | torch.device = "cpu", adapter: Path | str | None = None, *,
                        weights: str = "fp32", compile: bool = False, context_factor: float = 1.0,
                        prefix_bytes: int = 0, cache_bytes: int | None = None) -> Engine:
        """Load a checkpoint directory, of the stage lora with its adapters merged into its base. ``adapter``: merged
        into it on top (see ``with_adapter``). ``weights``: fp32, bf16 or int8. ``compile``: make the step of a single
        sequence fast before anything is asked (``Decoder.compile``). ``context_factor``: stretch the context by YaRN
        (``minimind.rope``). Raises ``CheckpointError`` where one is missing, damaged, or does not fit."""
        from minimind.checkpoint import load_model  # the trainer imports this module and is imported by that one

        if weights not in WEIGHTS:
            raise GenerationError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}.", field="weights")
        model, tokenizer = load_model(Path(path), device, adapter)
        if context_factor != 1.0:
            model.config = stretched(model, context_factor)
        model = model.to(WEIGHTS[weights]).eval().requires_grad_(False)
        engine = cls(model, tokenizer, device, owns=True, weights="int8" if weights == "int8" else "full",
                     prefix_bytes=prefix_bytes, cache_bytes=cache_bytes)
        if compile and engine.decoder.can_compile:
            engine.decoder.compile()
        return engine

    def with_adapter(self, path: Path | str) -> Engine:
        """Another engine on the same weights with an adapter (``formats.adapters.read_adapter``) beside them: ready in
        milliseconds and as small as the adapter, for a slower decode. Raises ``CheckpointError``."""
        from minimind.formats.adapters import read_adapter
        from minimind.lora import laid_over

        adapter, weights = read_adapter(path)
        return Engine(laid_over(self.model, adapter, weights, path), self.tokenizer, self.device,
                      weights=self._weights, base=self.decoder, prefix_bytes=self._prefix_bytes,
                      cache_bytes=self._cache_bytes)

    @cached_property
    def batch(self) -> Batch:
        """The requests that this engine works on."""
        return Batch(self.decoder, self.tokenizer, self.end_ids, self.max_positions, Prefixes(self._prefix_bytes),
                     max_cache_bytes=self._cache_bytes)

    def grammar(self, constraint: dict[str, Any]) -> Grammar:
        """``constraint`` (see ``minimind.constrain``) compiled for this vocabulary; those used last are kept. Raises
        ``ConstraintError``."""
        from minimind.constrain import Grammar  # whose library the core alone does not need

        key = json.dumps(constraint, sort_keys=True)
        if key not in self._grammars:
            if len(self._grammars) >= GRAMMARS_KEPT:
                self._grammars.pop(next(iter(self._grammars)))
            self._grammars[key] = Grammar.compile(self.tokenizer, self.model.config.vocab_size, constraint)
        return self._grammars[key]

    def num_bytes(self) -> int:
        """Memory of the weights, tied ones counted once."""
        return self.decoder.num_bytes()

    def stream(self, prompt_ids: Sequence[int], params: SamplingParams | None = None,
               should_stop: Callable[[], bool] = lambda: False) -> Iterator[Delta]:
        """Yield one ``Delta`` per token; the last has a ``finish_reason``. ``should_stop`` is asked before each
        token. Raises ``GenerationError`` (``ContextLengthError``), for a request that cannot be answered before the
        first delta."""
        asked = self.batch.add(prompt_ids, params or SamplingParams())
        try:
            while asked.finish_reason is None:
                if should_stop():
                    yield Delta("", None, "cancelled")
                    return
                for answering, delta in self.batch.step():
                    if answering is not asked:
                        continue
                    if asked.error is not None:
                        raise asked.error
                    yield delta
        finally:
            self.batch.cancel(asked)

    def generate(self, prompt_ids: Sequence[int], params: SamplingParams | None = None,
                 should_stop: Callable[[], bool] = lambda: False) -> Generation:
        """The whole answer at once."""
        deltas = list(self.stream(prompt_ids, params, should_stop))
        tokens = [d.token_id for d in deltas if d.token_id is not None]
        return Generation("".join(d.text for d in deltas), tokens, str(deltas[-1].finish_reason),
                          len(prompt_ids), len(tokens))

    def generate_many(self, prompts: Sequence[Sequence[int]],
                      params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[Generation]:
        """The answers to all ``prompts``, made together. ``params``: for all, or one for each."""
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        assert len(params) == len(prompts), "one SamplingParams for each prompt"
        asked: list[Answering] = []
        texts: dict[int, list[str]] = {}
        try:
            for prompt, wish in zip(prompts, params):
                asked.append(self.batch.add(prompt, wish))
                texts[id(asked[-1])] = []
            while any(one.finish_reason is None for one in asked):
                for one, delta in self.batch.step():
                    if one.error is not None:
                        raise one.error
                    if id(one) in texts:
                        texts[id(one)].append(delta.text)
        finally:
            for one in asked:
                self.batch.cancel(one)
        return [Generation("".join(texts[id(one)]), one.ids[one.prompt_tokens:], str(one.finish_reason),
                           one.prompt_tokens, one.completion_tokens) for one in asked]

    def encode_chat(self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]] | None = None,
                    open_thinking: bool = False, continue_final: bool = False) -> list[int]:
        """Prompt tokens of a conversation in the checkpoint's own chat format; with ``continue_final`` up to the end of
        its last message, an assistant's that is to be gone on with. Raises ``DataError``."""
        from minimind.chat_format import encode_continuation, encode_prompt  # jinja2 is needed by chat alone

        encode = encode_continuation if continue_final else encode_prompt
        return encode(self.tokenizer, messages, tools, open_thinking)


def stretched(model: MiniMindForCausalLM, factor: float) -> Any:
    """The shape of ``model`` with a context ``factor`` times as long (YaRN, arXiv:2309.00071). One that is stretched
    already keeps its original length and its other settings."""
    config = model.config
    if not factor >= 1:
        raise GenerationError(f"context_factor is {factor}; it must be 1 or larger.", field="context_factor")
    scaling = dict(config.rope_scaling or {})
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    total = factor * config.max_position_embeddings / original
    scaling |= {"rope_type": "yarn", "factor": total, "original_max_position_embeddings": original}
    scaling.pop("attention_factor", None)  # it follows from the factor
    return replace(config, rope_scaling=scaling, max_position_embeddings=int(config.max_position_embeddings * factor))
