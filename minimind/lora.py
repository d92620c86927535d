"""LoRA: frozen matrices with small ones beside them that learn (Hu et al., arXiv:2106.09685).

    y = W x + alpha / r * B A drop(x)

A [r, in] starts random and B [out, r] as zeros, so that training begins with the base model itself. An adapter of rank
r has r * (in + out) numbers in place of in * out, and no optimizer state for the rest. ``alpha / r`` keeps the size of
the change where another rank is tried.

``attach`` puts adapters into a model, ``detach`` takes them out again, ``merge`` makes them part of its matrices, after
which it costs nothing. A model says in ``model.adapter`` what it carries. Weights of adapters are called as their
modules are: ``model.layers.0.self_attn.q_proj.lora_A`` and ``..._proj.lora_B``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.config import ADAPTABLE, ADAPTABLE_WITH_EXPERTS, LoraConfig
from minimind.errors import CheckpointError, ConfigError
from minimind.formats.tensors import tensor_shapes
from minimind.presets import ModelConfig

if TYPE_CHECKING:
    from minimind.model import MiniMindForCausalLM

A, B = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class AdapterConfig:
    """``targets``: names of the matrices, in every block."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ADAPTABLE

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def as_dict(self) -> dict:
        return {**asdict(self), "targets": list(self.targets)}


def adapter_for(config: LoraConfig, model: ModelConfig) -> AdapterConfig:
    """What the options ask for on a model of this shape; all targets, the default, are those that it has.

    Raises ``ConfigError`` where adapters are asked for beside experts.
    """
    wanted = [name for name in ADAPTABLE if name in config.lora_targets]
    if model.use_moe and len(wanted) == len(ADAPTABLE):
        wanted = list(ADAPTABLE_WITH_EXPERTS)
    beside_experts = [name for name in wanted if model.use_moe and name not in ADAPTABLE_WITH_EXPERTS]
    if beside_experts:
        raise ConfigError([{"field": "lora_targets", "message": f"lora_targets names {', '.join(beside_experts)}, and "
                                                                "the base checkpoint has experts there.",
                            "hint": f"Beside experts there are no adapters: use {', '.join(ADAPTABLE_WITH_EXPERTS)}."}])
    return AdapterConfig(config.lora_rank, config.alpha_of_adapter, config.lora_dropout, tuple(wanted))


class LoRALinear(nn.Linear):
    """A linear layer with a frozen weight [out, in] and an adapter beside it; the weight is ``layer``'s own tensor."""

    def __init__(self, layer: nn.Linear, adapter: AdapterConfig):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight
        self.dropout = adapter.dropout
        self.scale = adapter.scale
        place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(adapter.rank, layer.in_features, **place))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, adapter.rank, **place))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear begins, and peft
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        seen = F.dropout(x, self.dropout, self.training) if self.dropout else x
        small = F.linear(seen, self.lora_A)  # [..., r]
        y = F.linear(x, self.weight)
        # y + scale * small B^T in one call: sum and product as calls of their own take a sixth longer on a CPU
        return torch.addmm(y.flatten(0, -2), small.flatten(0, -2), self.lora_B.T, alpha=self.scale).view(y.shape)

    def without(self) -> nn.Linear:
        """The layer that was there, with the very same weight."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = self.weight
        return plain.train(self.training)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + alpha / r * B A, computed in float32."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def _layers(model: MiniMindForCausalLM, targets: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """``(module, name in it, linear layer)`` of every target, block after block."""
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            yield from [(part, name, layer) for name, layer in part.named_children()
                        if name in targets and isinstance(layer, nn.Linear)]


def attach(model: MiniMindForCausalLM, adapter: AdapterConfig) -> None:
    """New adapters (A from torch's global generator, B zeros); everything else is frozen from now on."""
    assert model.adapter is None, "the model carries an adapter already"
    model.requires_grad_(False)
    for part, name, layer in _layers(model, adapter.targets):
        setattr(part, name, LoRALinear(layer, adapter))
    model.adapter = adapter


def detach(model: MiniMindForCausalLM) -> None:
    """Take the adapters away: the base model again, bit for bit, all of it free to learn."""
    if model.adapter is not None:
        for part, name, layer in _layers(model, model.adapter.targets):
            setattr(part, name, layer.without())
    model.adapter = None
    model.requires_grad_(True)


@torch.no_grad()
def merge(model: MiniMindForCausalLM) -> None:
    """Make the adapters part of the matrices: the same function, an ordinary model. New tensors: a base that shares
    the old ones keeps them."""
    if model.adapter is not None:
        for part, name, layer in _layers(model, model.adapter.targets):
            plain = layer.without()
            plain.weight = nn.Parameter(merged_weight(layer.weight, layer.lora_A, layer.lora_B, layer.scale))
            setattr(part, name, plain)
    model.adapter = None
    model.requires_grad_(True)


def is_adapter(name: str) -> bool:
    """Whether a tensor of a state dict belongs to an adapter."""
    return name.endswith((A, B))


def adapter_weights(model: MiniMindForCausalLM) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if is_adapter(name)}


def load_adapter(model: MiniMindForCausalLM, weights: Mapping[str, Tensor], place: Path | str = "The adapter") -> None:
    """Fill the adapters that ``attach`` has made. Raises ``CheckpointError`` naming the first that does not fit."""
    assert model.adapter is not None, "attach first"
    check_adapter(weights, model.adapter, model.config, place)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.copy_(weights[name])


def laid_over(base: MiniMindForCausalLM, adapter: AdapterConfig, weights: Mapping[str, Tensor],
              place: Path | str = "The adapter") -> MiniMindForCausalLM:
    """Another model with an adapter over ``base``, whose tensors it shares: it takes the memory of the adapter alone,
    and several can stand over one base. Raises ``CheckpointError`` as ``load_adapter``.

    A token takes longer than with ``merge``, mostly for the calls themselves: rank 16 beside all matrices, one thread,
    1.7 ms in place of 1.2 (tiny-cpu) and 6.2 in place of 5.1 (small-cpu).
    """
    assert base.adapter is None, "an adapter stands over a plain model"
    check_adapter(weights, adapter, base.config, place)
    model = type(base).unfilled(base.config)
    model.load_state_dict(base.state_dict(), assign=True)
    attach(model, adapter)
    load_adapter(model, weights, place)
    return model.train(base.training)


def merged(base: Mapping[str, Tensor], adapter: AdapterConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As ``merge``, of weights by Hugging Face's names."""
    found = dict(base)
    for name in weights:
        if name.endswith(A):
            layer = name.removesuffix(A)
            found[f"{layer}.weight"] = merged_weight(base[f"{layer}.weight"], weights[name], weights[layer + B],
                                                     adapter.scale)
    return found


def adapter_shapes(adapter: AdapterConfig, model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name and shape of every tensor of an adapter on a model of this shape."""
    shapes = {}
    for name, shape in tensor_shapes(model).items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in adapter.targets and "experts" not in layer:
            shapes[layer + A] = (adapter.rank, shape[1])
            shapes[layer + B] = (shape[0], adapter.rank)
    return shapes


def check_adapter(weights: Mapping[str, Tensor], adapter: AdapterConfig, model: ModelConfig,
                  place: Path | str) -> None:
    """Raises ``CheckpointError`` naming the first matrix that is missing, too many or of another shape."""
    expected = adapter_shapes(adapter, model)
    hint = "Lay it over the base that it was trained on, or another model of that shape."
    for name in weights:
        if name not in expected:
            raise CheckpointError(f"{place} has the matrix {name}, and the model has no layer for it.", hint=hint)
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"{place} lacks the matrix {name}: the model has more layers than the adapter.",
                                  hint=hint)
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(f"{name} in {place} has the shape {list(weights[name].shape)}, and the model needs "
                                  f"{list(shape)}.", hint=hint)


def in_words(model: MiniMindForCausalLM) -> str:
    """The adapter of a model as one line of a log."""
    adapter = model.adapter
    assert adapter is not None
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    line = (f"Adapters of rank {adapter.rank}, alpha {adapter.alpha:g}, beside {', '.join(adapter.targets)} of every "
            f"block: {learnt:,} numbers are learnt, {learnt / model.config.num_parameters():.1%} of the base's.")
    return line + (" Beside experts there are none." if model.config.use_moe else "")


def flops_per_token(model: MiniMindForCausalLM, seq_len: float) -> float:
    """As ``ModelConfig.flops_per_token``: a frozen weight takes no gradient, which is a third of its arithmetic."""
    flops = model.config.flops_per_token(seq_len)
    if model.adapter is None:
        return flops
    learnt = sum(tensor.numel() for tensor in adapter_weights(model).values())
    return flops - 2 * model.config.num_active_parameters() + 6 * learnt
