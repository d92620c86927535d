"""Text generation with a key/value cache: prefill, decode, sample as small pure functions.

``Engine.stream`` yields one ``Delta`` per token; the joined texts equal ``Engine.generate``'s text, also
where a character or a stop string spans tokens. One request at a time; arithmetic is float32 on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.errors import MiniMindError
from minimind.model import KVCache, MiniMindForCausalLM
from minimind.tokenizer import Tokenizer

#: prompt tokens per prefill call: between two calls a request can be cancelled
PREFILL_CHUNK = 512
#: new tokens when the request names no number; the context may end earlier
DEFAULT_MAX_TOKENS = 1024


class GenerationError(MiniMindError):
    """A request that cannot be answered: wrong sampling options or a prompt that does not fit."""

    code = "GENERATION"


class ContextLengthError(GenerationError):
    """The prompt leaves no room in the model's context."""

    code = "CONTEXT_LENGTH"


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when to stop. ``temperature`` 0 is greedy; ``top_k`` 0 and
    ``top_p`` 1 cut nothing; ``max_tokens`` counts the end token; ``stop`` strings are not part of the text."""

    temperature: float = 0.7
    top_p: float = 0.92
    top_k: int = 0
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise GenerationError(f"temperature is {self.temperature}; it must be 0 or larger.", field="temperature")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p is {self.top_p}; it must be above 0 and at most 1.", field="top_p")
        if self.top_k < 0:
            raise GenerationError(f"top_k is {self.top_k}; it must be 0 (no limit) or larger.", field="top_k")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise GenerationError(f"max_tokens is {self.max_tokens}; it must be at least 1.", field="max_tokens")
        if any(not s for s in self.stop):
            raise GenerationError("A stop string is empty.", field="stop", hint="Leave it out.")


@dataclass(frozen=True)
class Delta:
    """What one token added. ``token_id`` is None for the last delta of a cancelled request.
    ``finish_reason``: None, or on the last delta ``stop``, ``length`` or ``cancelled``."""

    text: str
    token_id: int | None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Generation:
    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def prefill(model: MiniMindForCausalLM, ids: Tensor, cache: KVCache, start: int) -> Tensor:
    """Run prompt tokens ``ids`` [1, T] at positions ``start``..``start + T - 1``; logits [V] after the last one."""
    hidden = model.hidden(ids, cache=cache, start=start)
    return F.linear(hidden[0, -1], model.output_weight)  # the output layer for one position, not for T


def decode(model: MiniMindForCausalLM, token: int, cache: KVCache, position: int) -> Tensor:
    """Run one token at ``position``; logits [V] of its successor."""
    ids = torch.tensor([[token]], device=cache.device)
    return model(ids, cache=cache, start=position)[0, -1]


def distribution(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Candidates and probabilities, most likely first: softmax of ``logits / temperature`` [V] cut to the
    ``top_k`` largest, then to the smallest head whose mass (of what top_k left) reaches ``top_p``
    (Holtzman et al., arXiv:1904.09751)."""
    size = logits.shape[-1]
    values, ids = torch.topk(logits.float() / params.temperature, min(params.top_k or size, size))
    probabilities = torch.softmax(values, dim=-1)
    if params.top_p < 1:
        mass_before = probabilities.cumsum(-1) - probabilities
        kept = max(1, int((mass_before < params.top_p).sum()))
        ids, probabilities = ids[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return ids, probabilities


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """The next token for ``logits`` [V]; draws from ``generator`` (CPU) alone, never from the global RNG."""
    logits = logits.detach().float().cpu()
    if not torch.isfinite(logits.max()) or torch.isnan(logits).any():
        raise GenerationError("The model's output is not finite: its weights hold NaN or infinity.",
                              hint="Use an earlier checkpoint of the run.")
    if params.temperature == 0:
        return int(logits.argmax())
    ids, probabilities = distribution(logits, params)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


class StopText:
    """Passes text on, except what is or may still become a stop string."""

    def __init__(self, stop: Sequence[str]):
        self._stop = list(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of all text so far that is now certain to be shown. Sets ``found`` at a stop string."""
        self._held += text
        starts = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if starts:
            self.found = True
            shown, self._held = self._held[:min(starts)], ""
            return shown
        cut = len(self._held) - self._open_length()
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        shown, self._held = self._held, ""
        return shown

    def _open_length(self) -> int:
        """Length of the longest tail of the held text that a stop string begins with."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0


class Engine:
    """A model and its tokenizer, ready to answer."""

    def __init__(self, model: MiniMindForCausalLM, tokenizer: Tokenizer, device: str | torch.device = "cpu"):
        self.model = model
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.max_positions: int = model.config.max_position_embeddings
        self.end_ids = {tokenizer.eos_id, tokenizer.pad_id}
        parameter = next(model.parameters())
        self.dtype = parameter.dtype

    @classmethod
    def from_checkpoint(cls, path: Path | str, device: str | torch.device = "cpu",
                        adapter: Path | str | None = None) -> Engine:
        """Load a checkpoint directory, of the stage lora with its adapters merged into its base. ``adapter``: merged
        into it on top (see ``with_adapter``). Raises ``CheckpointError`` where one is missing, damaged, or does not
        fit."""
        from minimind.checkpoint import load_model  # the trainer imports this module and is imported by that one

        model, tokenizer = load_model(Path(path), device, adapter)
        return cls(model.eval(), tokenizer, device)

    def with_adapter(self, path: Path | str) -> Engine:
        """Another engine on the same weights with an adapter (``formats.adapters.read_adapter``) beside them: ready in
        milliseconds and as small as the adapter, for a slower decode. Raises ``CheckpointError``."""
        from minimind.formats.adapters import read_adapter
        from minimind.lora import laid_over

        adapter, weights = read_adapter(path)
        return Engine(laid_over(self.model, adapter, weights, path), self.tokenizer, self.device)

    def num_bytes(self) -> int:
        """Memory of the weights, tied ones counted once."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def stream(self, prompt_ids: Sequence[int], params: SamplingParams | None = None,
               should_stop: Callable[[], bool] = lambda: False) -> Iterator[Delta]:
        """Yield one ``Delta`` per token; the last has a ``finish_reason``. ``should_stop`` is asked before each
        token. Raises ``GenerationError`` (``ContextLengthError``) before the first delta."""
        params = params or SamplingParams()
        budget = self._budget(len(prompt_ids), params)
        cache = KVCache(self.model.config, 1, len(prompt_ids) + budget, self.device, self.dtype)
        generator = torch.Generator()
        if params.seed is None:
            generator.seed()  # from the operating system
        else:
            generator.manual_seed(params.seed % 2**63)
        text, decoder = StopText(params.stop), self.tokenizer.stream_decoder()

        logits = self._prefill(prompt_ids, cache, should_stop)
        for count in range(1, budget + 1):
            if logits is None or should_stop():
                yield Delta("", None, "cancelled")
                return
            token = sample(logits, params, generator)
            shown = "" if token in self.end_ids else text.push(decoder.push(token))
            if token in self.end_ids or text.found or count == budget:
                if not text.found:
                    shown += text.push(decoder.flush())
                if not text.found:
                    shown += text.flush()
                yield Delta(shown, token, "stop" if token in self.end_ids or text.found else "length")
                return
            yield Delta(shown, token)
            with torch.no_grad():
                logits = decode(self.model, token, cache, len(prompt_ids) + count - 1)

    def generate(self, prompt_ids: Sequence[int], params: SamplingParams | None = None,
                 should_stop: Callable[[], bool] = lambda: False) -> Generation:
        """The whole answer at once."""
        deltas = list(self.stream(prompt_ids, params, should_stop))
        tokens = [d.token_id for d in deltas if d.token_id is not None]
        return Generation("".join(d.text for d in deltas), tokens, str(deltas[-1].finish_reason),
                          len(prompt_ids), len(tokens))

    def encode_chat(self, messages: list[dict[str, Any]], *, open_thinking: bool = False) -> list[int]:
        """Prompt tokens of a conversation in the checkpoint's own chat format."""
        from minimind.chat_format import encode_prompt  # jinja2 is needed by chat alone

        return encode_prompt(self.tokenizer, messages, open_thinking=open_thinking)

    def _budget(self, prompt_tokens: int, params: SamplingParams) -> int:
        """New tokens that may be made."""
        if not prompt_tokens:
            raise GenerationError("The prompt is empty.", field="messages", hint="Send at least one token.")
        room = self.max_positions - prompt_tokens
        if room < 1:
            raise ContextLengthError(
                f"The prompt has {prompt_tokens} tokens and this model's context is {self.max_positions}: there is no "
                "room for an answer.", field="messages", hint="Shorten the conversation.")
        return min(params.max_tokens or DEFAULT_MAX_TOKENS, room)

    def _prefill(self, prompt_ids: Sequence[int], cache: KVCache, should_stop: Callable[[], bool]) -> Tensor | None:
        """Logits [V] after the prompt, or None where the request was cancelled on the way."""
        ids = torch.tensor([list(prompt_ids)], device=self.device)
        logits = None
        for start in range(0, ids.shape[1], PREFILL_CHUNK):
            if should_stop():
                return None
            with torch.no_grad():
                logits = prefill(self.model, ids[:, start:start + PREFILL_CHUNK], cache, start)
        return logits
