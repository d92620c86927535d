"""Learning rate, AdamW's decay rule, and Muon against an exact orthogonalization."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from minimind.model import MiniMindForCausalLM
from minimind.optim import MUON_MOMENTUM, MUON_RMS, Optimizer, learning_rate_at, orthogonalize
from minimind.presets import ModelConfig

CONFIG = ModelConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                     head_dim=8, intermediate_size=32)


def test_learning_rate_rises_then_falls_to_its_end() -> None:
    rates = [learning_rate_at(s, 100, 2.0, 10, 0.1) for s in range(1, 101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0) and rates[-1] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert learning_rate_at(1, 1, 2.0, 0, 0.1) == pytest.approx(0.2)


def test_orthogonalized_singular_values_are_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 16, 48), (2, 48, 16), (1, 16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert 0.5 < float(values.min()) and float(values.max()) < 1.3


def trained(optimizer: str, steps: int = 3) -> tuple[MiniMindForCausalLM, Optimizer]:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(CONFIG)
    made = Optimizer(model, optimizer, weight_decay=0.1, beta2=0.95)
    for step in range(steps):
        ids = torch.randint(0, 40, (1, 12), generator=torch.Generator().manual_seed(step))
        model(ids, targets=ids.roll(-1, 1)).loss.backward()
        made.step(1e-2)
        made.zero_grad()
    return model, made


def test_only_matrices_decay() -> None:
    model = MiniMindForCausalLM(CONFIG)
    for name in ("adamw", "muon"):
        optimizer = Optimizer(model, name, weight_decay=0.1, beta2=0.95)
        decays = {id(p): g["weight_decay"] for part in optimizer.parts.values() for g in part.param_groups
                  for p in g["params"]}
        assert len(decays) == len(list(model.parameters()))
        assert all(decays[id(p)] == (0.1 if p.ndim == 2 else 0.0) for p in model.parameters())


def test_muon_takes_the_blocks_matrices_and_makes_the_step_it_should() -> None:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(CONFIG)
    optimizer = Optimizer(model, "muon", weight_decay=0.1, beta2=0.95)
    inside = {id(p) for g in optimizer.parts["muon"].param_groups for p in g["params"]}
    assert inside == {id(p) for n, p in model.named_parameters() if "_proj" in n}
    weight = model.model.layers[1].mlp.up_proj.weight
    before = weight.detach().clone()
    ids = torch.randint(0, 40, (1, 12))
    model(ids, targets=ids.roll(-1, 1)).loss.backward()
    grad = weight.grad.clone()
    optimizer.step(1e-2)
    # first step: momentum (1 - b) g, Nesterov mixes it with g; the direction is g's
    direction = orthogonalize(((1 - MUON_MOMENTUM) * MUON_MOMENTUM * grad + (1 - MUON_MOMENTUM) * grad)[None])[0]
    expected = before * (1 - 1e-2 * 0.1) - 1e-2 * MUON_RMS * math.sqrt(32) * direction
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=1e-4)


def test_experts_are_stepped_one_by_one() -> None:
    """A stack [E, n, m] is as E parameters; the router stays with AdamW."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(replace(CONFIG, num_experts=3))
    optimizer = Optimizer(model, "muon", weight_decay=0.1, beta2=0.95)
    decays = {id(p): g["weight_decay"] for part in optimizer.parts.values() for g in part.param_groups
              for p in g["params"]}
    assert all(decays[id(p)] == (0.1 if p.ndim >= 2 else 0.0) for p in model.parameters())
    experts = model.model.layers[0].mlp.experts
    inside = {id(p) for g in optimizer.parts["muon"].param_groups for p in g["params"]}
    assert all(id(p) in inside and p.ndim == 3 for p in experts.parameters())
    assert id(model.model.layers[0].mlp.gate.weight) not in inside
    before = {name: p.detach().clone() for name, p in experts.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    grads = {name: p.grad.clone() for name, p in experts.named_parameters()}
    optimizer.step(1e-2)
    for name, stack in grads.items():
        stepped = torch.stack([orthogonalize(m[None])[0] * MUON_RMS * math.sqrt(max(m.shape)) for m in stack])
        torch.testing.assert_close(getattr(experts, name).detach(), before[name] * (1 - 1e-3) - 1e-2 * stepped,
                                   atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_not_finite_is_held_back_on_the_device(name: str) -> None:
    model, optimizer = trained(name)
    weights = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizer.step(1e-2, found_inf=torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    for part, values in optimizer.state_dict().items():
        for number, moments in values["state"].items():
            assert all(torch.equal(value, state[part]["state"][number][key]) for key, value in moments.items())
    whole, other = trained(name, 4)
    one, plain = trained(name, 3)
    ids = torch.randint(0, 40, (1, 12), generator=torch.Generator().manual_seed(3))
    one(ids, targets=ids.roll(-1, 1)).loss.backward()
    plain.step(1e-2, found_inf=torch.zeros(()))  # to look changes nothing
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), one.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_through_a_file_bit_for_bit(name: str, tmp_path) -> None:
    whole, _ = trained(name, 4)
    model, optimizer = trained(name, 2)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    fresh = Optimizer(model, name, weight_decay=0.1, beta2=0.95)
    fresh.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    for step in (2, 3):
        ids = torch.randint(0, 40, (1, 12), generator=torch.Generator().manual_seed(step))
        model(ids, targets=ids.roll(-1, 1)).loss.backward()
        fresh.step(1e-2)
        fresh.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters()))


def test_forget_and_changed_decay() -> None:
    model, optimizer = trained("adamw")
    state = optimizer.state_dict()
    optimizer.forget()
    assert not optimizer.parts["adamw"].state
    other = Optimizer(model, "adamw", weight_decay=0.3, beta2=0.9)
    other.load_state_dict(state)
    assert other.parts["adamw"].param_groups[0]["weight_decay"] == 0.3
    assert other.parts["adamw"].param_groups[0]["betas"] == (0.9, 0.9)
