"""From logits to the next token: what is pushed up or down, what is cut off, and the draw.

In this order, on logits [V] in float32:

1. ``logit_bias`` is added; penalties are taken (``penalized``).
2. A constraint (``minimind.constrain``) leaves the tokens that its grammar allows.
3. Temperature 0 takes the largest. Else softmax of ``logits / temperature``, cut to the ``top_k`` largest, then to the
   smallest head that holds ``top_p`` of what is left (Holtzman et al., arXiv:1904.09751), then to what has at least
   ``min_p`` of the largest one's probability (Nguyen et al., arXiv:2407.01082); the rest is drawn from.

Log probabilities that are reported are those of the unmodified softmax.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minimind.errors import MiniMindError


class GenerationError(MiniMindError):
    """A request that cannot be answered: wrong sampling options or a prompt that does not fit."""

    code = "GENERATION"


class ContextLengthError(GenerationError):
    """The prompt leaves no room in the model's context."""

    code = "CONTEXT_LENGTH"


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when to stop.

    ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 cut nothing. ``repetition_penalty`` counts the prompt too,
    ``presence_penalty`` and ``frequency_penalty`` only what was generated. ``max_tokens`` counts the end token; 0 reads
    the prompt alone. ``stop`` strings are not part of the text. ``ignore_eos`` never draws the end token.
    """

    temperature: float = 0.7
    top_p: float = 0.92
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, rule: str) -> None:
            if not (math.isfinite(getattr(self, name)) and holds):
                raise GenerationError(f"{name} is {getattr(self, name)}; it must be {rule}.", field=name)

        check("temperature", self.temperature >= 0, "0 or larger")
        check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        check("top_k", self.top_k >= 0, "0 (no limit) or larger")
        check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        check("repetition_penalty", self.repetition_penalty > 0, "above 0 (1 changes nothing)")
        check("presence_penalty", True, "a number")
        check("frequency_penalty", True, "a number")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise GenerationError(f"max_tokens is {self.max_tokens}; it must be 0 or larger.", field="max_tokens")
        if any(not s for s in self.stop):
            raise GenerationError("A stop string is empty.", field="stop", hint="Leave it out.")
        if not all(math.isfinite(value) for value in self.logit_bias.values()):
            raise GenerationError("logit_bias holds a value that is not a number.", field="logit_bias",
                                  hint="Use -100 to ban a token and 100 to demand it.")

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the next token is simply the largest logit; with ``ignore_eos``, where that is no end token."""
        return self.temperature == 0 and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        """Apart from ``ignore_eos``."""
        return bool(self.logit_bias or self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


def penalized(logits: Tensor, params: SamplingParams, prompt: Counter[int], generated: Counter[int]) -> Tensor:
    """``logits`` [V] with bias and penalties; a copy.

    Repetition (Keskar et al., arXiv:1909.05858): a token that occurred has a positive logit divided and a negative one
    multiplied by the penalty. Presence and frequency (OpenAI's): subtracted once, and per occurrence.
    """
    logits = logits.clone()
    if params.logit_bias:
        ids, values = _columns(params.logit_bias)
        logits[ids] += values
    seen = prompt | generated
    if params.repetition_penalty != 1 and seen:
        ids = torch.tensor(list(seen))
        found = logits[ids]
        logits[ids] = torch.where(found > 0, found / params.repetition_penalty, found * params.repetition_penalty)
    if generated and (params.presence_penalty or params.frequency_penalty):
        ids, counts = _columns(generated)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    return logits


def _columns(values: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(list(values)), torch.tensor(list(values.values()), dtype=torch.float32)


def distribution(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Candidates and probabilities, most likely first, for a temperature above 0 (see the top of this file)."""
    size = logits.shape[-1]
    scaled = logits.float() / params.temperature
    # Without a limit, a head of 256 nearly always holds top_p: sorting it is a tenth of sorting 6,400.
    head = min(params.top_k or (256 if params.top_p < 1 or params.min_p > 0 else size), size)
    values, ids = torch.topk(scaled, head)
    total = torch.logsumexp(values if params.top_k else scaled, dim=-1)
    probabilities = torch.exp(values - total)
    if not params.top_k and head < size and not _holds_the_cut(probabilities, params):
        values, ids = torch.sort(scaled, descending=True)
        probabilities = torch.exp(values - total)
    kept = len(ids)
    if params.top_p < 1:
        mass_before = probabilities.cumsum(-1) - probabilities
        kept = max(1, int((mass_before < params.top_p).sum()))
    if params.min_p > 0:
        kept = max(1, min(kept, int((probabilities >= params.min_p * probabilities[0]).sum())))
    return ids[:kept], probabilities[:kept] / probabilities[:kept].sum()


def _holds_the_cut(probabilities: Tensor, params: SamplingParams) -> bool:
    """Whether everything behind this head is cut off anyway."""
    return bool((params.top_p < 1 and probabilities.sum() - probabilities[-1] >= params.top_p)
                or (params.min_p > 0 and probabilities[-1] < params.min_p * probabilities[0]))


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """The next token for ``logits`` [V] (CPU); draws from ``generator`` alone, never from the global RNG."""
    largest = logits.max()
    if not torch.isfinite(largest):  # the largest of numbers with a NaN among them is NaN
        raise not_finite()
    if params.temperature == 0:
        return int(logits.argmax())
    ids, probabilities = distribution(logits, params)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def not_finite() -> GenerationError:
    return GenerationError("The model's output is not finite: its weights hold NaN or infinity.",
                           hint="Use an earlier checkpoint of the run.")


def logprobs_of(logits: Tensor, token: int, alternatives: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural log probabilities under softmax(``logits`` [V]): of ``token``, and of the likeliest ``alternatives``."""
    values = torch.log_softmax(logits.float(), dim=-1)
    top = torch.topk(values, min(alternatives, len(values))) if alternatives else None
    return float(values[token]), list(zip(top.indices.tolist(), top.values.tolist())) if top else []


class StopText:
    """Passes text on, except what is or may still become a stop string."""

    def __init__(self, stop: Sequence[str]):
        self._stop = list(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of all text so far that is now certain to be shown. Sets ``found`` at a stop string."""
        if not self._stop:
            return text
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
