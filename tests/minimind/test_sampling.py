"""Choosing a token, against a reference that is written out in plain Python."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from minimind.sampling import SamplingParams, distribution, logprobs_of, penalized


def plain_distribution(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """The cuts one after the other, as their definitions read."""
    weights = {i: math.exp(x / params.temperature) for i, x in enumerate(logits) if x > -math.inf}
    order = sorted(weights, key=lambda i: -weights[i])
    if params.top_k:
        order = order[:params.top_k]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass >= params.top_p and kept:
            break
        kept.append(i)
        mass += weights[i] / total
    kept = [i for i in kept if weights[i] >= params.min_p * weights[order[0]]]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


@pytest.mark.parametrize("seed", range(60))
def test_cuts_equal_the_written_out_reference(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.choice([5, 300, 2000])
    logits = [chance.gauss(0, chance.choice([0.3, 1, 4])) for _ in range(size)]
    for banned in chance.sample(range(size), size // 4):
        logits[banned] = -math.inf
    params = SamplingParams(temperature=chance.choice([0.3, 1.0, 1.7]), top_p=chance.choice([0.05, 0.5, 0.92, 1.0]),
                            top_k=chance.choice([0, 1, 3, 40]), min_p=chance.choice([0.0, 0.02, 0.5]))
    ids, probabilities = distribution(torch.tensor(logits), params)
    expected = plain_distribution(logits, params)
    found = dict(zip(ids.tolist(), probabilities.tolist()))
    found = {i: p for i, p in found.items() if p > 0}
    assert set(found) ^ set(expected) <= {i for i in set(found) | set(expected)
                                          if min(abs(params.top_p - 1), 1) and expected.get(i, found.get(i)) < 1e-4}
    for i in set(found) & set(expected):
        assert found[i] == pytest.approx(expected[i], abs=1e-3)
    assert probabilities.tolist() == sorted(probabilities.tolist(), reverse=True)


@pytest.mark.parametrize("seed", range(20))
def test_penalties_equal_the_written_out_reference(seed: int) -> None:
    chance = random.Random(seed)
    logits = [chance.gauss(0, 2) for _ in range(50)]
    prompt, generated = (Counter(chance.choices(range(50), k=30)) for _ in range(2))
    params = SamplingParams(repetition_penalty=chance.choice([1.0, 1.3, 0.8]),
                            presence_penalty=chance.choice([0.0, 0.5]), logit_bias={3: 5.0, 7: -100.0},
                            frequency_penalty=chance.choice([0.0, -0.4, 1.1]))
    expected = []
    for i, x in enumerate(logits):
        x += params.logit_bias.get(i, 0)
        if i in prompt or i in generated:
            x = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
        expected.append(x - params.frequency_penalty * generated[i] - params.presence_penalty * (generated[i] > 0))
    before = torch.tensor(logits)
    found = penalized(before, params, prompt, generated)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert before.tolist() == pytest.approx(logits), "the logits themselves stay: they are reported"


def test_logprobs_are_natural_logarithms() -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    chosen, top = logprobs_of(logits, 0, 2)
    assert chosen == pytest.approx(math.log(0.1), abs=1e-6)
    assert [i for i, _ in top] == [1, 2] and top[0][1] == pytest.approx(math.log(0.6), abs=1e-6)
    assert logprobs_of(logits, 1, 0)[1] == []
