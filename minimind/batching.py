"""Continuous batching: sequences join and leave between steps (Orca, Yu et al., OSDI 2022).

A ``Batch`` serves one model. Each ``step`` is one pass over the weights: it makes a token for every sequence whose
prompt is read and, beside them, reads a part of the waiting prompts, no more than fits into a tenth of a second
(Sarathi-Serve, Agrawal et al., OSDI 2024). So a long prompt does not silence those who are being answered, reading
costs them no pass of its own, and whoever leaves is gone at the next step.

What a finished sequence has read and written stays for a while (``minimind.prefixes``): the next turn of a
conversation begins with it, and reads only what is new.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minimind.caches import SequenceCache
from minimind.decoding import Decoder, Piece
from minimind.errors import MiniMindError
from minimind.prefixes import Prefixes
from minimind.sampling import (
    ContextLengthError,
    GenerationError,
    SamplingParams,
    StopText,
    logprobs_of,
    not_finite,
    penalized,
    sample,
)
from minimind.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minimind.constrain import Matcher

#: seconds that one step may spend on reading prompts
PREFILL_S = 0.08
#: and in how many times what the last step took to write, so that nobody's pause is much longer than his others'
PREFILL_STEPS = 4.0
#: tokens that are read at least, and at most, in one step
MIN_CHUNK, MAX_CHUNK = 16, 512
#: new tokens when the request names no number; the context may end earlier
DEFAULT_MAX_TOKENS = 1024
#: tokens a second that are read, until the first chunk says better
FIRST_RATE = 1500.0


@dataclass(frozen=True)
class TokenLogprob:
    """``logprob`` None: a first token, which nothing stands before. ``top``: the likeliest (id, logprob) there."""

    token_id: int
    logprob: float | None
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Delta:
    """What one token added. ``token_id`` is None where no token was made: at the end of a cancelled request, and of one
    that asked for none. ``finish_reason``: None, or on the last delta ``stop``, ``length`` or ``cancelled``."""

    text: str
    token_id: int | None
    finish_reason: str | None = None
    logprob: TokenLogprob | None = None


@dataclass
class Timings:
    """Moments of the monotonic clock, seconds; 0 where it did not come to that."""

    begun: float = 0.0  # reading the prompt
    first_token: float = 0.0
    ended: float = 0.0


class Answering:
    """One request on its way. Made by ``Batch.add``."""

    def __init__(self, prompt_ids: Sequence[int], params: SamplingParams, tokenizer: Tokenizer, budget: int,
                 end_ids: set[int], logprobs: int | None, echo: bool, matcher: Matcher | None):
        self.ids = list(prompt_ids)  #: of the prompt and behind it of the answer
        self.prompt_tokens = len(prompt_ids)
        self.params, self.budget, self.end_ids = params, budget, end_ids
        self.logprobs, self.echo, self.matcher = logprobs, echo, matcher
        self.cache: SequenceCache | None = None
        self.cached_tokens = 0  #: of the prompt, that needed not be read again
        self.prompt_logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self.error: MiniMindError | None = None
        self.timings = Timings()
        self._text, self._decoder = StopText(params.stop), tokenizer.stream_decoder()
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()  # from the operating system
        else:
            self._generator.manual_seed(params.seed % 2**63)
        self._seen_in_prompt = Counter(self.ids) if params.repetition_penalty != 1 else Counter()
        self._generated: Counter[int] = Counter()

    @property
    def completion_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.cache is not None and self.cache.length >= self.prompt_tokens

    def choose(self, logits: Tensor, greedy: int) -> Delta:
        """Take the next token for ``logits`` [V], float32 on the CPU; ``greedy``: its largest."""
        is_allowed = not self.params.ignore_eos or greedy not in self.end_ids
        if self.params.is_plain_greedy and is_allowed and self.matcher is None:
            token = greedy
        else:
            token = sample(self._changed(logits), self.params, self._generator)
        self.ids.append(token)
        if self.params.changes_logits:
            self._generated[token] += 1
        if self.matcher is not None:
            self.matcher.accept(token)
        found = None if self.logprobs is None else TokenLogprob(token, *logprobs_of(logits, token, self.logprobs))
        return self._told(token, found)

    def _changed(self, logits: Tensor) -> Tensor:
        if self.params.changes_logits:
            logits = penalized(logits, self.params, self._seen_in_prompt, self._generated)
        if self.params.ignore_eos and self.matcher is None:  # a grammar ends where it ends
            logits = logits.index_fill(0, torch.tensor(sorted(self.end_ids)), -torch.inf)
        if self.matcher is not None:
            mask = self.matcher.mask()
            logits = logits.masked_fill(~mask, -torch.inf)
        return logits

    def take(self, token: int) -> Delta:
        """A next token that somebody else has chosen."""
        self.ids.append(token)
        return self._told(token, None)

    def _told(self, token: int, logprob: TokenLogprob | None) -> Delta:
        is_end = token in self.end_ids
        shown = "" if is_end else self._text.push(self._decoder.push(token))
        is_whole = self.matcher is not None and self.matcher.is_finished
        is_last = is_end or self._text.found or is_whole or self.completion_tokens >= self.budget
        if not is_last:
            return Delta(shown, token, None, logprob)
        if not self._text.found:
            shown += self._text.push(self._decoder.flush())
        if not self._text.found:
            shown += self._text.flush()
        self.finish_reason = "stop" if is_end or self._text.found or is_whole else "length"
        return Delta(shown, token, self.finish_reason, logprob)


def budget_of(prompt_ids: Sequence[int], params: SamplingParams, vocab_size: int, max_positions: int) -> int:
    """New tokens that may be made. Raises ``GenerationError`` (``ContextLengthError``)."""
    if not prompt_ids:
        raise GenerationError("The prompt is empty.", field="messages", hint="Send at least one token.")
    if not all(0 <= i < vocab_size for i in prompt_ids):
        raise GenerationError(f"The prompt holds a token id outside of this model's vocabulary of {vocab_size}.",
                              field="prompt", hint="Send ids of this model's own tokenizer.")
    if not all(0 <= i < vocab_size for i in params.logit_bias):
        raise GenerationError(f"logit_bias names a token outside of this model's vocabulary of {vocab_size}.",
                              field="logit_bias", hint="Send ids of this model's own tokenizer.")
    room = max_positions - len(prompt_ids)
    wanted = DEFAULT_MAX_TOKENS if params.max_tokens is None else params.max_tokens
    if room < (1 if wanted else 0):
        raise ContextLengthError(
            f"The prompt has {len(prompt_ids)} tokens and this model's context is {max_positions}: there is "
            "no room for an answer.", field="messages", hint="Shorten the conversation.")
    return min(wanted, room)


class Batch:
    """The sequences that one model works on. Not for several threads at once.

    No more than ``max_sequences`` are read and written at a time, and no more than are likely to fit into
    ``max_cache_bytes`` (one always is); the others wait.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, end_ids: set[int], max_positions: int,
                 prefixes: Prefixes | None = None, max_sequences: int = 128, max_cache_bytes: int | None = None):
        self.decoder, self.tokenizer, self.end_ids, self.max_positions = decoder, tokenizer, end_ids, max_positions
        self.prefixes = prefixes if prefixes is not None else Prefixes(max_bytes=0)
        self.max_sequences, self.max_cache_bytes = max_sequences, max_cache_bytes
        self.slots = decoder.new_slots()  #: of those that are being written
        self.waiting: deque[Answering] = deque()
        self.active: list[Answering] = []  #: in the order in which they came
        self._tokens_per_s = FIRST_RATE  # that are read; learnt from each chunk
        self._step_s = 0.0  # what the last token of all took

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.active)

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, *, logprobs: int | None = None,
            echo: bool = False, matcher: Matcher | None = None) -> Answering:
        """Queue a request. ``logprobs``: alternatives that are reported with each token; ``echo``: of the prompt's too.
        Raises ``GenerationError`` (``ContextLengthError``)."""
        budget = budget_of(prompt_ids, params, self.decoder.config.vocab_size, self.max_positions)
        made = Answering(prompt_ids, params, self.tokenizer, budget, self.end_ids, logprobs, echo, matcher)
        self.waiting.append(made)
        return made

    def cancel(self, sequence: Answering) -> None:
        """End a sequence now; nothing more will be told of it. What it has read stays for others."""
        if sequence.finish_reason is None and sequence.error is None:
            sequence.finish_reason = "cancelled"
            self._leave(sequence)

    def step(self) -> list[tuple[Answering, Delta]]:
        """Read some, write one token for each; what there is to tell. A sequence whose ``error`` is set has ended with
        an empty ``cancelled`` delta."""
        self._admit()
        writing, reading = self._writing(), self._reading()
        pieces = [Piece(s.cache, s.ids[-1:]) for s in writing] + [piece for _, piece in reading]
        if not pieces:
            return []
        began = time.perf_counter()
        hidden = self.decoder.hidden(pieces)
        rows, told = list(range(len(writing))), []
        done, end = list(writing), len(writing)
        for sequence, piece in reading:
            start, end = end, end + len(piece.ids)
            if sequence.echo:
                self._echo(sequence, self.decoder.logits(hidden[start:end]).cpu(), piece)
            if not sequence.is_read:
                continue
            if sequence.budget == 0:
                told.append(self._ended_unwritten(sequence))
            else:
                done.append(sequence)
                rows.append(end - 1)
        if done:
            told += self._choose(done, self.decoder.logits(hidden if len(rows) == len(hidden) else hidden[rows]))
        self._learn(time.perf_counter() - began, end - len(writing))
        return told

    # -- parts of a step -------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self.waiting and len(self.active) < self.max_sequences and self._has_room(self.waiting[0]):
            sequence = self.waiting.popleft()
            sequence.timings.begun = time.monotonic()
            if not sequence.echo:  # the logits of a whole prompt are not in any cache
                sequence.cache = self.prefixes.take(sequence.ids[:-1], self.active)
            sequence.cache = sequence.cache or self.decoder.new_cache()
            sequence.cached_tokens = sequence.cache.length
            self.active.append(sequence)

    def _has_room(self, sequence: Answering) -> bool:
        """Whether its prompt and a quarter of the longest answer fit: few answers are as long as they may be."""
        if self.max_cache_bytes is None or not self.active:
            return True

        def expected(one: Answering) -> int:
            held = one.cache.num_bytes() if one.cache is not None else 0
            return max(held, (one.prompt_tokens + one.budget // 4) * self.decoder.cache_bytes_per_token)

        wanted = sum(map(expected, [*self.active, sequence])) + self.slots.free_bytes()
        return wanted <= self.max_cache_bytes

    def _writing(self) -> list[Answering]:
        """Who gets his next token: the members of each group of slots together, in the order of their slots."""
        found = [s for s in self.active if s.is_read]
        self.slots.hold(s.cache for s in found)
        return sorted(found, key=lambda s: (s.cache.capacity, s.cache.slot))

    def _reading(self) -> list[tuple[Answering, Piece]]:
        """A chunk of the prompts that are not read yet, the oldest first."""
        room, found = self._chunk(), []
        for sequence in self.active:
            if sequence.is_read:
                continue
            if room <= 0:
                break
            start = sequence.cache.length
            count = min(room, sequence.prompt_tokens - start)
            if 0 < sequence.prompt_tokens - start - count < MIN_CHUNK:
                count = sequence.prompt_tokens - start  # no tiny rest
            found.append((sequence, Piece(sequence.cache, sequence.ids[start:start + count])))
            room -= count
        return found

    def _learn(self, seconds: float, tokens_read: int) -> None:
        """What a step took that read so many tokens."""
        if tokens_read == 0:
            self._step_s = seconds
        elif tokens_read >= MIN_CHUNK:
            rate = tokens_read / max(seconds, 1e-6)
            self._tokens_per_s = rate if self._tokens_per_s == FIRST_RATE else 0.7 * self._tokens_per_s + 0.3 * rate

    def _chunk(self) -> int:
        seconds = PREFILL_S
        if self._step_s and any(s.is_read for s in self.active):
            seconds = min(seconds, PREFILL_STEPS * self._step_s)
        return int(min(max(seconds * self._tokens_per_s, MIN_CHUNK), MAX_CHUNK))

    def _ended_unwritten(self, sequence: Answering) -> tuple[Answering, Delta]:
        sequence.finish_reason = "length"
        self._leave(sequence)
        return sequence, Delta("", None, "length")

    def _choose(self, sequences: list[Answering], logits: Tensor) -> list[tuple[Answering, Delta]]:
        largest, greedy = (found.tolist() for found in logits.max(-1))
        logits, told, at = logits.cpu(), [], time.monotonic()
        for sequence, row, top, token in zip(sequences, logits, largest, greedy):
            sequence.timings.first_token = sequence.timings.first_token or at
            try:
                if not abs(top) < float("inf"):
                    raise not_finite()
                delta = sequence.choose(row, token)
            except MiniMindError as error:
                sequence.error = error
                sequence.finish_reason = "cancelled"
                delta = Delta("", None, "cancelled")
            if delta.finish_reason is not None:
                sequence.timings.ended = at
                self._leave(sequence)
            told.append((sequence, delta))
        return told

    def _echo(self, sequence: Answering, logits: Tensor, piece: Piece) -> None:
        """Log probabilities of the prompt's tokens, from ``logits`` [T, V] at those that were just read."""
        start = piece.cache.length - len(piece.ids)
        if start == 0:
            sequence.prompt_logprobs.append(TokenLogprob(sequence.ids[0], None, []))
        for position, row in enumerate(logits, start + 1):
            if position < sequence.prompt_tokens:
                token = sequence.ids[position]
                sequence.prompt_logprobs.append(TokenLogprob(token, *logprobs_of(row, token, sequence.logprobs or 0)))

    def _leave(self, sequence: Answering) -> None:
        if sequence in self.active:
            self.active.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.cache is not None:
            own = self.slots.released(sequence.cache)
            if sequence.error is None:
                self.prefixes.keep(sequence.ids[:own.length], own)
        sequence.cache = None


