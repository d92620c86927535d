"""Which of llama.cpp's architectures computes what a model of ours does, and how its file calls shape and tensors.

``qwen3`` and ``qwen3moe`` are ours as they stand. Models without q/k norm are ``llama``, whose program turns channel
pairs (2i, 2i + 1) of a head and not (i, i + D / 2): rows of the query and key matrices are put into that order, which
changes no sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind.errors import CheckpointError
from minimind.formats.tensors import EMBEDDING, HEAD, check_sizes, mlp_names, tensor_shapes
from minimind.presets import ModelConfig
from minimind.rope import BETA_FAST, BETA_SLOW, inverse_frequencies

ARCHITECTURES = ("qwen3", "qwen3moe", "llama")
#: our names within a block, and llama.cpp's
_IN_BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}


def architecture_of(config: ModelConfig) -> str:
    """Raises ``CheckpointError`` that says what no architecture of llama.cpp's computes as this model does."""
    missing = None
    if config.num_shared_experts:
        missing = "experts that every token passes beside the chosen ones"
    elif config.num_experts and not config.norm_topk_prob:
        missing = "experts whose weights do not sum to 1"
    elif config.rope_scaling and not config.rope_scaling.get("truncate", True):
        missing = "a YaRN scaling whose bounds are not rounded"
    if missing is not None:
        raise CheckpointError(f"llama.cpp has no architecture for this model: it has {missing}.", field="format",
                              hint="Export it as a .pth file, or as a Hugging Face folder where that is possible.")
    return "llama" if not config.qk_norm else "qwen3moe" if config.num_experts else "qwen3"


def shape_keys(config: ModelConfig, architecture: str) -> dict[str, int | float | str]:
    """The keys behind ``ARCHITECTURE.``; floats are stored in 32 bits."""
    keys: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta), "rope.dimension_count": config.head_dim}
    if config.num_experts:
        keys |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        if architecture == "qwen3moe":
            keys["expert_feed_forward_length"] = config.intermediate_size
    if config.rope_scaling:
        keys |= _yarn_keys(config)
    return keys


def _yarn_keys(config: ModelConfig) -> dict[str, int | float | str]:
    scaling = config.rope_scaling or {}
    _, attention_factor = inverse_frequencies(config)
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    factor = scaling.get("factor") or config.max_position_embeddings / original
    return {"rope.scaling.type": "yarn", "rope.scaling.factor": float(factor),
            "rope.scaling.original_context_length": int(original),
            # llama.cpp multiplies this by YaRN's own 0.1 ln factor + 1
            "rope.scaling.attn_factor": attention_factor / _own_attention_factor(factor),
            "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast") or BETA_FAST),
            "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow") or BETA_SLOW)}


def _own_attention_factor(factor: float) -> float:
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


# -- tensors -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One tensor of the file, made of ``sources``: more than one are stacked (the matrices of a layer's experts).
    ``heads`` > 0: rows are put into llama's order within each of so many heads."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    heads: int = 0

    def build(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Float32."""
        tensors = [weights[name].detach().to("cpu", torch.float32) for name in self.sources]
        if self.heads:
            tensors = [to_pairs(tensor, self.heads) for tensor in tensors]
        return tensors[0] if len(tensors) == 1 else torch.stack(tensors)

    def take(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The inverse of ``build``: our names and tensors."""
        pieces = [tensor] if len(self.sources) == 1 else list(tensor)
        for name, piece in zip(self.sources, pieces, strict=True):
            yield name, from_pairs(piece, self.heads) if self.heads else piece


def parts_of(config: ModelConfig, architecture: str) -> list[Part]:
    """Every tensor of the file, in the order of the computation."""
    shapes, parts = tensor_shapes(config), []
    experts = [name for name in mlp_names(config) if ".experts." in name]
    for name, shape in shapes.items():
        if name in _OUTSIDE:
            parts.append(Part(_OUTSIDE[name], (name,), shape))
            continue
        _, _, layer, inner = name.split(".", 3)
        inner = inner.removesuffix(".weight")
        if inner.startswith("mlp.experts."):
            expert, matrix = inner.removeprefix("mlp.experts.").split(".")
            if expert == "0":
                sources = tuple(f"model.layers.{layer}.{e}.{matrix}.weight" for e in experts)
                parts.append(Part(f"blk.{layer}.{_IN_BLOCK['mlp.' + matrix]}_exps.weight", sources,
                                  (len(sources), *shape)))
            continue
        heads = 0
        if architecture == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if inner.endswith("q_proj") else config.num_key_value_heads
        parts.append(Part(f"blk.{layer}.{_IN_BLOCK[inner]}.weight", (name,), shape, heads))
    return parts


def to_pairs(matrix: Tensor, heads: int) -> Tensor:
    """Rows (0, 1, .. D - 1) of each head in the order 0, D / 2, 1, D / 2 + 1, .."""
    return matrix.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(matrix.shape)


def from_pairs(matrix: Tensor, heads: int) -> Tensor:
    return matrix.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(matrix.shape)


# -- reading ------------------------------------------------------------------------------------------------------


def _short(value: object) -> str:
    """Of what a file says, which may be a list of millions, the beginning."""
    return repr(value[:60] if isinstance(value, str | list) else value)[:80]


def shape_from(keys: Mapping[str, Any], names: Mapping[str, tuple[int, ...]], place: Path) -> ModelConfig:
    """The shape that a file's keys and tensors (``names``: by name, their shapes) describe. Raises
    ``CheckpointError``."""
    architecture, kind = keys.get("general.architecture"), keys.get("general.type", "model")
    if kind != "model":
        raise CheckpointError(f"{place} is a GGUF file of the type {_short(kind)}, and a whole model is needed.",
                              hint="An adapter is read as a peft folder.")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(f"{place} is a model of the architecture {_short(architecture)}.",
                              hint=f"These can be read: {', '.join(ARCHITECTURES)}.")

    def key(name: str, default: Any = None) -> Any:
        return keys.get(f"{architecture}.{name}", default)

    def whole(name: str, default: Any = None) -> int:
        value = key(name, default)
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{place} says {architecture}.{name} is {_short(value)}, which must be a "
                                  "whole number.",
                                  hint="Download or export the file again.")
        return value

    def number(name: str, default: Any = None) -> float:
        value = key(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise CheckpointError(f"{place} says {architecture}.{name} is {_short(value)}, which must be a "
                                  "positive number.",
                                  hint="Download or export the file again.")
        return float(value)

    embedding = names.get(_OUTSIDE[EMBEDDING])
    if embedding is None or len(embedding) != 2:
        raise CheckpointError(f"{place} lacks the tensor {_OUTSIDE[EMBEDDING]}.", hint="Download the file again.")
    for name in names:
        if name.endswith(".bias") or name == "rope_freqs.weight":
            raise CheckpointError(f"{place} has the tensor {_short(name)}, for which our models have no place.",
                                  hint="Models without biases, with plain or YaRN positions, can be read.")
    heads, experts = whole("attention.head_count"), whole("expert_count", 0)
    hidden = whole("embedding_length")
    head_dim = whole("attention.key_length", hidden // heads if heads else 0)
    if whole("attention.value_length", head_dim) != head_dim or whole("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(f"{place} has heads whose keys, values and positions differ in size.",
                              hint="Models whose heads have one size can be read.")
    config = ModelConfig(
        vocab_size=embedding[0], hidden_size=hidden, num_hidden_layers=whole("block_count"),
        num_attention_heads=heads, num_key_value_heads=whole("attention.head_count_kv", heads), head_dim=head_dim,
        intermediate_size=whole("expert_feed_forward_length" if architecture == "qwen3moe" else "feed_forward_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"), rope_theta=number("rope.freq_base", 10000.0),
        max_position_embeddings=whole("context_length"), qk_norm=architecture != "llama",
        tie_word_embeddings=_OUTSIDE[HEAD] not in names, num_experts=experts,
        num_experts_per_tok=whole("expert_used_count") if experts else 1, norm_topk_prob=True)
    check_sizes(config, place)
    kind = key("rope.scaling.type", "none")
    if kind not in ("none", "yarn"):
        raise CheckpointError(f"{place} scales its positions by {_short(kind)}.",
                              hint="Plain rotary positions and YaRN can be read.")
    if kind == "none":
        return config
    factor = number("rope.scaling.factor")
    scaling = {"rope_type": "yarn", "factor": factor,
               "original_max_position_embeddings": whole("rope.scaling.original_context_length"),
               "beta_fast": number("rope.scaling.yarn_beta_fast", BETA_FAST),
               "beta_slow": number("rope.scaling.yarn_beta_slow", BETA_SLOW)}
    if (beside := number("rope.scaling.attn_factor", 1.0)) != 1.0:
        scaling["attention_factor"] = round(beside * _own_attention_factor(factor), 6)
    return ModelConfig.from_dict({**config.as_dict(), "rope_scaling": scaling})
