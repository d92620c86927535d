"""The engines in turn on the same prompts, and what the machine could do meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

import torch

from benchmarks._serve_engines import Contestant, Ours
from benchmarks._serve_material import Material
from benchmarks.train.contestants import matmul_rate

#: prompt of the first turn, and the user's words in the second
FIRST_TURN, NEXT_TURN = 256, 20
#: prompts that were not asked before: engines that keep what they have read shall not profit from it
_WARM_UP = 10_000_000


@dataclass
class Speed:
    """One engine's rounds. ``whole``: new tokens a second of the whole call, prompt included; ``decode``: without what
    a call for a single token takes. ``same``: share of Hugging Face's text before the first difference, the mean of
    all answers, and whether all were equal."""

    name: str
    weight_bytes: float
    whole: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)

    def ratios(self, first: Speed) -> list[float]:
        """Of the rounds, in order of size."""
        return sorted(a / b for a, b in zip(self.whole, first.whole))


def bandwidth(num_bytes: float, device: str = "cpu", clock: Callable[[], float] = time.process_time) -> float:
    """Bytes a second of reading ``num_bytes`` over and over, at best: the fastest of many readings, by the faster of
    two ways, because others use the machine's memory too. What a smaller model gains from caches is in it."""
    values = torch.ones(max(1, int(num_bytes) // 4), device=device)
    fastest = 0.0
    for read in (values.sum, lambda: torch.dot(values, values)):
        read()
        for _ in range(30):
            start = clock()
            read()
            read()
            fastest = max(fastest, 2 * values.numel() * 4 / max(clock() - start, 1e-9))
    return fastest


def race(engines: Sequence[Contestant], material: Material, batch: int, rounds: int, prompt_tokens: int,
         new_tokens: int) -> list[Speed]:
    """All ``engines`` in turn, each round with prompts of its own."""
    found = [Speed(engine.name, engine.weight_bytes) for engine in engines]
    for engine in engines:
        engine.answer(_prompts(material, prompt_tokens, batch, _WARM_UP + batch), new_tokens)
    for number in range(rounds):
        texts: list[str] | None = None
        prompts = _prompts(material, prompt_tokens, batch, 1000 * (2 * number))
        others = _prompts(material, prompt_tokens, batch, 1000 * (2 * number + 1))
        for engine, speed in zip(engines, found):
            _, first_s = engine.answer(others, 1)
            said, seconds = engine.answer(prompts, new_tokens)
            speed.whole.append(batch * new_tokens / seconds)
            more_s = seconds - first_s  # not above 0 where a toy is lost in the noise
            speed.decode.append(batch * (new_tokens - 1) / more_s if more_s > 0 else float("nan"))
            texts = texts or said
            speed.same += [len(commonprefix([a, b])) / max(len(b), 1) for a, b in zip(said, texts)]
    return found


def _prompts(material: Material, tokens: int, batch: int, number: int) -> list[list[int]]:
    return [material.prompt(tokens, number + i) for i in range(batch)]


@dataclass
class FirstToken:
    """Seconds of the rounds until the first token: of a fresh prompt, and of the next turn of that conversation (of
    engines that keep what they have read)."""

    name: str
    fresh: list[float] = field(default_factory=list)
    next_turn: list[float] = field(default_factory=list)


def first_tokens(engines: Sequence[Contestant], material: Material, rounds: int,
                 new_tokens: int) -> tuple[list[FirstToken], float]:
    """The engines in turn, and the rate of float32 products, FLOPs a second, in the same rounds."""
    found = [FirstToken(engine.name) for engine in engines]
    rates = []
    for engine in engines:
        engine.answer([material.prompt(FIRST_TURN, _WARM_UP)], 1)
        engine.answer([material.prompt(FIRST_TURN, _WARM_UP + 1)], 1)
    for number in range(rounds):
        rates.append(matmul_rate())
        for engine, first in zip(engines, found):
            prompt = material.prompt(FIRST_TURN, number)
            first.fresh.append(engine.answer([prompt], 1)[1])
            if isinstance(engine, Ours):
                engine.answer([prompt], new_tokens)  # the first turn's whole answer
                conversation = prompt + engine.last_ids[0] + material.prompt(NEXT_TURN, 1000 + number)
                first.next_turn.append(engine.answer([conversation], 1)[1])
        rates.append(matmul_rate())
    return found, statistics.median(rates)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (lowest to highest)``."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def as_json(speeds: Sequence[Speed]) -> list[dict[str, Any]]:
    return [{"name": s.name, "tokens_per_s": statistics.median(s.whole), "decode_per_s": statistics.median(s.decode),
             "ratios": s.ratios(speeds[0]), "same": statistics.mean(s.same)} for s in speeds]
