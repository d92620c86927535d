"""Experts against a loop over tokens, the router's gradient against finite differences, both against Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind import moe
from minimind.errors import CheckpointError
from minimind.moe import MoE, balance_loss, choose_experts, split_experts, stack_experts
from minimind.presets import ModelConfig
from tests.minimind.shapes import MOE, model_of, random_weights
from tests.minimind.training import TINY, curve, run, write_texts

ALIGNED, ODD = (24, 40), (21, 7)  # hidden_size, intermediate_size; rows of whole 16 bytes, and not


def moe_of(size: tuple[int, int] = ALIGNED, seed: int = 1, **shape: Any) -> MoE:
    torch.manual_seed(seed)
    layer = MoE(ModelConfig(hidden_size=size[0], intermediate_size=size[1], **{"num_experts": 4, **shape}))
    layer.reset_parameters(0.3)
    return layer


def tokens(size: tuple[int, int] = ALIGNED, *rows: int) -> Tensor:
    return torch.randn(*(rows or (2, 9)), size[0], generator=torch.Generator().manual_seed(7))


def swiglu(x: Tensor, weights: dict[str, Tensor], prefix: str) -> Tensor:
    gate, up, down = (weights[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return down @ ((gate @ x) * torch.sigmoid(gate @ x) * (up @ x))


def naive(layer: MoE, x: Tensor) -> Tensor:
    """One token after the other, in float64."""
    weights = {k: v.detach().double() for k, v in split_experts(layer.state_dict()).items()}
    rows = []
    for token in x.detach().double().flatten(0, -2):
        probs = torch.softmax(weights["gate.weight"] @ token, 0)
        chosen = sorted(range(len(probs)), key=lambda e: -float(probs[e]))[:layer.num_experts_per_tok]
        total = sum(probs[e] for e in chosen) if layer.norm_topk_prob else 1.0
        row = sum(probs[e] / total * swiglu(token, weights, f"experts.{e}") for e in chosen)
        for e in range(len(layer.shared_experts)):
            row = row + swiglu(token, weights, f"shared_experts.{e}")
        rows.append(row)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("size", [ALIGNED, ODD], ids=["grouped", "looped"])
@pytest.mark.parametrize("shape", [{}, {"norm_topk_prob": False}, {"num_experts_per_tok": 2},
                                   {"num_experts_per_tok": 3, "norm_topk_prob": False},
                                   {"num_experts_per_tok": 2, "num_shared_experts": 2}, {"num_experts": 16}])
def test_layer_is_a_loop_over_tokens(size: tuple[int, int], shape: dict) -> None:
    layer = moe_of(size, **shape)
    x = tokens(size)
    assert moe.can_group(x.flatten(0, 1), layer.experts.up_proj) == (size == ALIGNED)
    y, routing = layer(x)
    torch.testing.assert_close(y.double(), naive(layer, x), atol=1e-5, rtol=1e-4)
    assert routing.load.sum() == 18 * layer.num_experts_per_tok
    one, _ = layer.eval()(x[:1, 4:5])
    torch.testing.assert_close(one, y[:1, 4:5], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("k", "normalize"), [(1, True), (1, False), (2, True), (3, False)])
def test_layer_and_gradients_are_hugging_faces(k: int, normalize: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
    ours = moe_of(num_experts_per_tok=k, norm_topk_prob=normalize)
    config = transformers.Qwen3MoeConfig(hidden_size=24, moe_intermediate_size=40, num_experts=4,
                                         num_experts_per_tok=k, norm_topk_prob=normalize)
    config._experts_implementation = "eager"
    theirs = Qwen3MoeSparseMoeBlock(config)
    stacks = ours.experts
    theirs.load_state_dict({"gate.weight": ours.gate.weight, "experts.down_proj": stacks.down_proj,
                            "experts.gate_up_proj": torch.cat((stacks.gate_proj, stacks.up_proj), 1)})
    x, grad = tokens().requires_grad_(), tokens(ALIGNED, 2, 9).flip(0)
    (y, _), other = ours(x), theirs(x)
    torch.testing.assert_close(y, other, atol=1e-5, rtol=1e-5)
    names = ["x", "gate", "gate_proj", "up_proj", "down_proj"]
    got = dict(zip(names, torch.autograd.grad(
        y, (x, ours.gate.weight, stacks.gate_proj, stacks.up_proj, stacks.down_proj), grad)))
    dx, router, gate_up, down = torch.autograd.grad(
        other, (x, theirs.gate.weight, theirs.experts.gate_up_proj, theirs.experts.down_proj), grad)
    expected = dict(zip(names, (dx, router, *gate_up.chunk(2, 1), down)))
    if (k, normalize) == (1, True):  # where theirs never learns, and tells nothing below it how experts are chosen
        assert got.pop("gate").abs().max() > 1000 * expected.pop("gate").abs().max()
        assert (got.pop("x") - expected.pop("x")).abs().max() > 0
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_single_expert_has_weight_one_exactly_and_its_router_learns() -> None:
    """The gradient is that of the same output with the probability's change as the weight's change."""
    layer = moe_of()
    x = tokens().flatten(0, 1)
    mix = torch.randn(18, 24, generator=torch.Generator().manual_seed(3)).double()
    y, _ = layer(x)
    (y.double() * mix).sum().backward()

    weights = {k: v.detach().double() for k, v in split_experts(layer.state_dict()).items()}
    router = weights["gate.weight"]
    chosen = [int((router @ t.double()).argmax()) for t in x]
    outputs = torch.stack([swiglu(t.double(), weights, f"experts.{e}") for t, e in zip(x, chosen)])
    torch.testing.assert_close(y.double(), outputs, atol=1e-6, rtol=1e-5)
    one, _ = choose_experts(torch.rand(10_000, 4).softmax(-1).requires_grad_(), 1, True)
    assert torch.equal(one, torch.ones(10_000, 1))

    def surrogate(router: Tensor) -> Tensor:
        return (torch.softmax(x.double() @ router.T, -1)[range(18), chosen, None] * outputs * mix).sum()

    step = 1e-6
    for e, c in ((0, 0), (1, 5), (2, 11), (3, 23)):
        change = torch.zeros_like(router)
        change[e, c] = step
        slope = (surrogate(router + change) - surrogate(router - change)) / (2 * step)
        assert abs(slope) > 1e-3
        assert abs(layer.gate.weight.grad[e, c] - slope) < 1e-4 * max(1.0, abs(slope))


def test_the_language_models_loss_alone_teaches_every_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a whole model with one normalised expert a token; with plain p / p instead none of them would learn."""
    ids = torch.randint(0, MOE.vocab_size, (2, 40), generator=torch.Generator().manual_seed(3))

    def logits_and_gates() -> tuple[Tensor, list[float]]:
        model = model_of(MOE, random_weights(MOE)).train()
        assert MOE.num_experts_per_tok == 1 and MOE.norm_topk_prob
        model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
        share = [layer.mlp.gate.weight.grad.norm() / layer.mlp.experts.up_proj.grad.norm()
                 for layer in model.model.layers]
        return model(ids).detach(), [float(s) for s in share]

    def plain(probs: Tensor, k: int, normalize: bool) -> tuple[Tensor, Tensor]:
        weights, chosen = probs.topk(k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen

    logits, ours = logits_and_gates()
    monkeypatch.setattr(moe, "choose_experts", plain)
    unchanged, never = logits_and_gates()
    assert torch.equal(logits, unchanged)
    assert min(ours) > 0.01 and max(never) < 1e-6, (ours, never)


def test_balance_loss_by_hand() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    load = torch.tensor([3, 0, 1])
    assert balance_loss(probs, load).item() == pytest.approx(3 * (3 / 4 * 2.0 / 4 + 1 / 4 * 0.8 / 4))
    even = torch.full((4, 4), 0.25)
    assert balance_loss(even, torch.tensor([2, 2, 2, 2])).item() == pytest.approx(2)  # k where all is even


@pytest.mark.parametrize("k", [1, 2])
def test_balance_loss_and_load_are_hugging_faces(k: int) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func
    layer = moe_of(num_experts_per_tok=k, router_aux_loss_coef=0.01)
    _, routing = layer(tokens())
    logits = layer.gate(tokens()).flatten(0, 1)
    theirs = load_balancing_loss_func((logits,), 4, k)
    torch.testing.assert_close(routing.balance_loss, 0.01 * theirs)
    torch.testing.assert_close(torch.autograd.grad(routing.balance_loss, layer.gate.weight),
                               torch.autograd.grad(0.01 * theirs, layer.gate.weight))
    assert routing.load.tolist() == logits.topk(k).indices.flatten().bincount(minlength=4).tolist()
    assert not routing.load.requires_grad
    _, resting = layer.eval()(tokens())
    assert resting.balance_loss == 0 and torch.equal(resting.load, routing.load)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_product_is_the_loop_gradients_included(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(4, 8, 16, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(20, 8, generator=generator).to(dtype)
    results = []
    for can in (True, False):
        monkeypatch.setattr(moe, "can_group", lambda *_, can=can: can)
        for ends in ([5, 5, 19, 20], [0, 0, 0, 20], [20, 20, 20, 20]):  # an expert without tokens among them
            out = moe.grouped_linear(x, weight, torch.tensor(ends, dtype=torch.int32))
            results.append((out, *torch.autograd.grad(out, (x, weight), grad)))
    assert all(t.dtype == dtype for r in results for t in r)
    for one, other in zip(results[:3], results[3:]):
        torch.testing.assert_close(one, other)
    assert not results[2][2][1:].any() and results[2][2][0].any()  # no tokens, no gradient


def test_operators_tell_torch_the_truth() -> None:
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    for size in ALIGNED, ODD:
        x, weight = (torch.randn(6, size[0], requires_grad=True),
                     torch.randn(3, size[1], size[0], requires_grad=True))
        torch.library.opcheck(moe.grouped_linear, (x, weight, ends), test_utils=(
            "test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own doing
def test_compiled_without_a_break_for_any_number_of_tokens() -> None:
    layer = moe_of(num_experts_per_tok=2, num_shared_experts=1)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (5, 11):
        x = tokens(ALIGNED, 1, count).requires_grad_()
        results = []
        for each in layer, compiled:
            y, routing = each(x)
            loss = y.square().sum() + routing.balance_loss
            results.append((y, routing.load, *torch.autograd.grad(loss, [x, *layer.parameters()])))
        torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_autocast_and_frozen_experts() -> None:
    layer = moe_of(num_experts_per_tok=2)
    plain, _ = layer(tokens())
    for parameter in layer.experts.parameters():
        parameter.requires_grad_(False)
    x = tokens().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = layer(x)
    assert y.dtype == torch.bfloat16 and routing.balance_loss.dtype == torch.float32
    assert F.cosine_similarity(y.float().flatten(), plain.flatten(), dim=0) > 0.99
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and layer.gate.weight.grad.any() and layer.experts.up_proj.grad is None


def test_initial_weights() -> None:
    layer = moe_of((64, 128), num_shared_experts=1)
    layer.reset_parameters(0.02)
    for name, parameter in layer.named_parameters():
        assert abs(float(parameter.detach().std()) - 0.02) < 3e-3, name


def test_names_of_single_experts_and_back() -> None:
    layer = moe_of(num_shared_experts=1)
    prefix = "model.layers.0.mlp."
    state = {f"{prefix}{k}": v for k, v in layer.state_dict().items()} | {"model.norm.weight": torch.ones(24)}
    single = split_experts(state)
    assert set(single) == {"model.norm.weight", f"{prefix}gate.weight"} | {
        f"{prefix}{where}.{part}_proj.weight" for part in ("gate", "up", "down")
        for where in ("shared_experts.0", *(f"experts.{e}" for e in range(4)))}
    assert torch.equal(single[f"{prefix}experts.2.up_proj.weight"], layer.experts.up_proj[2])
    back = stack_experts(single)
    assert set(back) == set(state) and all(torch.equal(back[k], state[k]) for k in state)
    # Hugging Face's stack of both
    both = {f"{prefix}experts.gate_up_proj": torch.cat((layer.experts.gate_proj, layer.experts.up_proj), 1),
            f"{prefix}experts.down_proj": layer.experts.down_proj}
    assert all(torch.equal(t, single[k]) for k, t in split_experts(both).items())


def test_incomplete_experts_are_named() -> None:
    single = split_experts({f"mlp.{k}": v for k, v in moe_of().state_dict().items()})
    with pytest.raises(CheckpointError, match=r"mlp\.experts\.1\.up_proj\.weight is missing"):
        stack_experts({k: v for k, v in single.items() if k != "mlp.experts.1.up_proj.weight"})
    name = "mlp.experts.3.down_proj.weight"
    with pytest.raises(CheckpointError, match=r"experts\.3\.down_proj\.weight has the shape \[24, 41\]"):
        stack_experts(single | {name: torch.zeros(24, 41)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_kernel_is_the_loop() -> None:
    x = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([7, 7, 200, 300], device="cuda", dtype=torch.int32)
    assert moe.can_group(x, weight)
    grad = torch.randn(300, 128, device="cuda", dtype=torch.bfloat16)
    out = moe.grouped_linear(x, weight, ends)
    dx, dweight = torch.autograd.grad(out, (x, weight), grad)
    for got, expected in ((out, moe.looped_linear(x, weight, ends)), (dx, moe.looped_linear(grad, weight.mT, ends)),
                          (dweight, moe.looped_outer(grad, x, ends))):
        torch.testing.assert_close(got, expected, atol=0.3, rtol=2e-2)


def test_experts_share_the_tokens_of_a_training(tmp_path: Path) -> None:
    """With a weight of 5e-4 one expert has all tokens of a layer (4 times an even share) after 30 steps."""
    assert run("pretrain", *TINY, "--out", tmp_path / "run", "--data_path", write_texts(tmp_path / "data.jsonl", 300),
               "--cache_dir", tmp_path / "cache", "--max_steps", 40, "--num_experts", 4, "--batch_size", 8,
               "--learning_rate", 1e-3, "--eval_interval", 0, "--sample_interval", 0) == 0
    assert max(dict(point)["expert_load_max"] for step, point in curve(tmp_path / "run").items() if step > 10) < 1.8
