"""LoRA's arithmetic: against the formula on plain tensors, against peft where it is installed, merged and shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minimind import lora
from minimind.attention import Segments
from minimind.config import ADAPTABLE, parse_config
from minimind.engine import Engine, SamplingParams
from minimind.errors import CheckpointError, ConfigError
from minimind.formats.adapter_files import write_peft
from minimind.formats.adapters import read_adapter
from minimind.formats.huggingface import save_huggingface
from minimind.lora import AdapterConfig, LoRALinear, adapter_for, adapter_shapes, adapter_weights
from minimind.model import MiniMindForCausalLM
from minimind.optim import Optimizer
from minimind.presets import ModelConfig
from minimind.tokenizer import Tokenizer
from tests.minimind.shapes import LLAMA, MOE, QWEN, SHAPES, SHARED_MOE, model_of, random_weights

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SMALL = replace(QWEN, num_hidden_layers=2)
IDS = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(3))


def random_adapter(adapter: AdapterConfig, model: ModelConfig, seed: int = 5) -> dict[str, Tensor]:
    """B is not zero here: it would hide everything."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in
            adapter_shapes(adapter, model).items()}


def adapted(model: ModelConfig, adapter: AdapterConfig) -> MiniMindForCausalLM:
    made = model_of(model, random_weights(model))
    lora.attach(made, adapter)
    lora.load_adapter(made, random_adapter(adapter, model))
    return made


def test_a_layer_is_the_formula_with_its_gradients() -> None:
    """y = W x + alpha / r B A x, by autograd on tensors that know nothing of the module."""
    generator = torch.Generator().manual_seed(1)
    w, a, b, x, up = (torch.randn(shape, generator=generator) for shape in
                      ((7, 5), (3, 5), (7, 3), (2, 4, 5), (2, 4, 7)))
    linear = nn.Linear(5, 7, bias=False)
    linear.weight = nn.Parameter(w, requires_grad=False)
    layer = LoRALinear(linear, AdapterConfig(3, 12.0))
    assert torch.equal(layer(x), linear(x)), "B begins as zeros"
    with torch.no_grad():
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
    plain_a, plain_b, plain_x = (t.clone().requires_grad_() for t in (a, b, x))
    expected = torch.einsum("oi,bti->bto", w, plain_x) + 12 / 3 * torch.einsum("or,ri,bti->bto", plain_b, plain_a,
                                                                                plain_x)
    given_x = x.clone().requires_grad_()
    out = layer(given_x)
    assert torch.allclose(out, expected, atol=1e-5)
    (out * up).sum().backward()
    (expected * up).sum().backward()
    for mine, other in ((layer.lora_A, plain_a), (layer.lora_B, plain_b), (given_x, plain_x)):
        assert torch.allclose(mine.grad, other.grad, atol=1e-4)
    assert layer.weight.grad is None


def test_dropout_is_for_the_adapter_alone_and_for_training_alone() -> None:
    linear = nn.Linear(64, 64, bias=False)
    layer = LoRALinear(linear, AdapterConfig(64, 64.0, dropout=0.5))
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(64))
        layer.lora_B.copy_(torch.eye(64))
    x = torch.ones(1000, 64)
    change = (layer(x) - linear(x)).detach()
    near = change[..., None].sub(torch.tensor([0.0, 2.0])).abs().min(-1).values
    assert float(near.max()) < 1e-4 and float(change.mean()) == pytest.approx(1, abs=0.05)
    layer.eval()
    assert torch.allclose(layer(x), linear(x) + x, atol=1e-5)


@pytest.mark.parametrize("model", [SMALL, LLAMA], ids=["qwen3", "llama"])
def test_only_adapters_learn_and_weights_keep_their_names(model: ModelConfig) -> None:
    weights = random_weights(model)
    made = model_of(model, weights)
    before = made(IDS)
    lora.attach(made, AdapterConfig(4, 8.0, targets=("q_proj", "down_proj")))
    assert torch.equal(made(IDS), before)
    learnt = {name for name, p in made.named_parameters() if p.requires_grad}
    assert learnt == {f"model.layers.{i}.{part}.lora_{side}" for i in range(model.num_hidden_layers)
                      for part in ("self_attn.q_proj", "mlp.down_proj") for side in "AB"}
    assert made.named_weights().keys() == weights.keys() and adapter_weights(made).keys() == learnt
    other = {name: tensor + 1 for name, tensor in weights.items()}
    small = {name: tensor.clone() for name, tensor in adapter_weights(made).items()}
    made.load_weights(other)
    assert all(torch.equal(t, other[n]) for n, t in made.named_weights().items())
    assert all(torch.equal(t, small[n]) for n, t in adapter_weights(made).items())
    with pytest.raises(RuntimeError):
        made.load_weights({n: t for n, t in other.items() if "norm" not in n})


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_has_the_adapters_alone(name: str) -> None:
    made = adapted(SMALL, AdapterConfig(4, 8.0))
    before = {n: p.detach().clone() for n, p in made.named_parameters()}
    optimizer = Optimizer(made, name, weight_decay=0.1, beta2=0.95)
    assert list(optimizer.parts) == [name]
    for _ in range(2):
        made(IDS, targets=IDS.roll(-1)).loss.backward()
        optimizer.step(1e-2)
        optimizer.zero_grad()
    for n, parameter in made.named_parameters():
        assert torch.equal(parameter, before[n]) != lora.is_adapter(n), n
    moments = [v for part in optimizer.state_dict().values() for s in part["state"].values() for v in s.values()]
    learnt = sum(t.numel() for t in adapter_weights(made).values())
    assert sum(m.numel() for m in moments if m.ndim == 2) == learnt * {"adamw": 2, "muon": 1}[name]
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("model", [QWEN, LLAMA, MOE], ids=["qwen3", "llama", "moe"])
def test_merged_is_unmerged(model: ModelConfig) -> None:
    adapter = AdapterConfig(4, 6.0, targets=ADAPTABLE if not model.use_moe else ATTENTION)
    made = adapted(model, adapter)
    unmerged = made(IDS)
    weights, small = made.named_weights(), adapter_weights(made)
    assert not torch.allclose(unmerged, model_of(model, random_weights(model))(IDS), atol=0.1), "it changes something"
    by_names = model_of(model, lora.merged(weights, adapter, small))
    lora.merge(made)
    assert made.adapter is None and all(p.requires_grad for p in made.parameters())
    assert not any(isinstance(m, LoRALinear) for m in made.modules())
    assert torch.allclose(made(IDS), unmerged, atol=1e-5)
    assert torch.equal(by_names(IDS), made(IDS))


def test_detached_is_the_base_again() -> None:
    base = model_of(SMALL, random_weights(SMALL))
    before = base(IDS)
    adapter = AdapterConfig(4, 8.0)
    lora.attach(base, adapter)
    lora.load_adapter(base, random_adapter(adapter, SMALL))
    assert not torch.allclose(base(IDS), before)
    lora.detach(base)
    assert torch.equal(base(IDS), before) and not adapter_weights(base)


def test_several_stand_over_one_base() -> None:
    """They share its tensors and leave it as it is."""
    base = model_of(SMALL, random_weights(SMALL))
    before = base(IDS)
    first, second = AdapterConfig(4, 8.0), AdapterConfig(2, 2.0, targets=("v_proj",))
    models = [lora.laid_over(base, a, random_adapter(a, SMALL, seed)) for seed, a in enumerate((first, second))]
    places = {p.data_ptr() for p in base.parameters()}
    for model, adapter in zip(models, (first, second)):
        own = sum(p.numel() for p in model.parameters() if p.data_ptr() not in places)
        assert own == sum(a * b for a, b in adapter_shapes(adapter, SMALL).values())
        assert not model.training
    outs = [model(IDS) for model in models]
    assert not torch.allclose(outs[0], outs[1]) and torch.equal(base(IDS), before)
    lora.merge(models[0])
    assert torch.allclose(models[0](IDS), outs[0], atol=1e-5) and torch.equal(base(IDS), before)


def test_engines_share_a_base(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["some words to learn from"] * 5, 300)
    model = replace(SMALL, vocab_size=300)
    adapter = AdapterConfig(4, 8.0)
    weights = random_adapter(adapter, model)
    engine = Engine(model_of(model, random_weights(model)), tokenizer)
    path = write_peft(tmp_path / "peft", adapter, weights)
    other = engine.with_adapter(path)
    merged = Engine(model_of(model, lora.merged(random_weights(model), adapter, weights)), tokenizer)
    greedy = SamplingParams(temperature=0.0, max_tokens=12)
    texts = [e.generate([1, 5, 9], greedy).token_ids for e in (engine, other, merged)]
    assert texts[1] == texts[2] != texts[0]
    with pytest.raises(CheckpointError, match=r"self_attn.q_proj.lora_A in .*peft has the shape \[4, 64\]"):
        Engine(MiniMindForCausalLM(replace(model, hidden_size=32)).eval(), tokenizer).with_adapter(path)


def test_matrices_that_do_not_fit_are_named() -> None:
    adapter = AdapterConfig(4, 8.0, targets=ATTENTION)
    weights = random_adapter(adapter, SMALL)
    for model, says in ((replace(SMALL, num_hidden_layers=1), "has the matrix model.layers.1.self_attn.q_proj.lora_A, "
                                                              "and the model has no layer for it"),
                        (QWEN, "lacks the matrix model.layers.2.self_attn.q_proj.lora_A"),
                        (replace(SMALL, num_key_value_heads=2),
                         r"layers.0.self_attn.k_proj.lora_B in .* has the shape \[64, 4\], and the model needs "
                         r"\[32, 4\]")):
        with pytest.raises(CheckpointError, match=says) as raised:
            lora.check_adapter(weights, adapter, model, "The file x")
        assert "base that it was trained on" in str(raised.value)


def test_beside_experts_there_are_none() -> None:
    """The default means all that there are; what is asked for by name and is not there is said."""
    default = adapter_for(parse_config("lora", {"lora_rank": 8}), MOE)
    assert default == AdapterConfig(8, 16.0, 0.0, ATTENTION)
    assert adapter_for(parse_config("lora", {}), QWEN) == AdapterConfig(16, 32.0, 0.0, ADAPTABLE)
    assert adapter_for(parse_config("lora", {"lora_targets": ["o_proj", "q_proj", "o_proj"], "lora_alpha": 4}),
                       QWEN) == AdapterConfig(16, 4.0, 0.0, ("q_proj", "o_proj"))
    assert adapter_for(parse_config("lora", {"lora_rank": 7, "lora_alpha": 29}), QWEN).alpha == 29  # and not nearly
    with pytest.raises(ConfigError, match="names up_proj, and the base checkpoint has experts there"):
        adapter_for(parse_config("lora", {"lora_targets": ["q_proj", "up_proj"]}), MOE)
    for shape in (MOE, SHARED_MOE):
        model = MiniMindForCausalLM(shape)
        lora.attach(model, default)
        assert {n: tuple(t.shape) for n, t in adapter_weights(model).items()} == adapter_shapes(default, shape)
        assert lora.in_words(model).endswith("Beside experts there are none.")


def losses_of(model: MiniMindForCausalLM) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of two documents and the gradients of the adapters."""
    ids = IDS.view(1, -1)
    model.zero_grad()
    loss = model(ids, segments=Segments((12, 12), "sdpa"), targets=ids.roll(-1)).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_nothing() -> None:
    model = adapted(SMALL, AdapterConfig(4, 8.0)).train()
    loss, grads = losses_of(model)
    model.gradient_checkpointing = True
    again, others = losses_of(model)
    assert torch.equal(loss, again) and grads.keys() == adapter_weights(model).keys()
    assert all(torch.allclose(others[n], g, atol=1e-6) for n, g in grads.items())


def test_arithmetic_without_gradients_of_frozen_weights() -> None:
    model = MiniMindForCausalLM(SMALL)
    whole = lora.flops_per_token(model, 10)
    assert whole == SMALL.flops_per_token(10)
    lora.attach(model, AdapterConfig(4, 8.0))
    learnt = sum(t.numel() for t in adapter_weights(model).values())
    assert lora.flops_per_token(model, 10) == whole - 2 * SMALL.num_parameters() + 6 * learnt


@pytest.mark.filterwarnings("ignore")  # what peft says of transformers
# (The router of a single expert learns here and not there: minimind/moe.py.)
@pytest.mark.parametrize("shape", [QWEN, LLAMA, SHAPES["qwen3_moe, two of four"]], ids=["qwen3", "llama", "moe"])
def test_outputs_and_gradients_are_pefts(tmp_path: Path, shape: ModelConfig) -> None:
    """The same files, read by transformers and peft."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = replace(shape, vocab_size=300, router_aux_loss_coef=0.0)
    tokenizer = Tokenizer.train(["some words to learn from"] * 5, 300)
    adapter = AdapterConfig(4, 6.0, targets=ADAPTABLE if not model.use_moe else ATTENTION)
    weights = random_adapter(adapter, model)
    save_huggingface(tmp_path / "base", model, random_weights(model), tokenizer)
    write_peft(tmp_path / "peft", adapter, weights, str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft", is_trainable=True)
    ours = model_of(model, random_weights(model))
    lora.attach(ours, adapter)
    lora.load_adapter(ours, weights)
    logits, expected = ours(IDS), theirs(IDS).logits
    assert torch.allclose(logits, expected, atol=1e-4)
    up = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * up).sum().backward()
    (expected * up).sum().backward()
    found = {n.removeprefix("base_model.model.").replace(".default.weight", ""): p.grad
             for n, p in theirs.named_parameters() if p.requires_grad}
    assert found.keys() == weights.keys()
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, found[name], rtol=1e-3, atol=1e-3), name
    # and back: what peft saves is read as it was
    theirs.save_pretrained(tmp_path / "again")
    read, tensors = read_adapter(tmp_path / "again")
    assert replace(read, targets=adapter.targets) == adapter
    assert tensors.keys() == weights.keys() and all(torch.equal(tensors[n], t) for n, t in weights.items())
