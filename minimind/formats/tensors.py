"""Which tensors a model has, by Hugging Face's names, and whether given ones fit.

Every file holds one matrix for each expert, ``mlp.experts.{e}.gate_proj.weight``, as Hugging Face and upstream do. The
model stacks the experts of a layer (minimind/moe.py); that form never reaches a disk.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minimind.errors import CheckpointError
from minimind.presets import ModelConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: tables that old programs saved although they follow from the shape
DERIVED = ("rotary_emb.inv_freq", "freqs_cos", "freqs_sin")
#: what ``torch`` can turn into float32 without a scale that stands elsewhere
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: beyond any model of this kind; a file that says more is damaged or hostile
MOST_LAYERS, MOST_EXPERTS, LARGEST_SIZE = 1000, 1024, 1 << 24


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model, in the order of the computation."""
    c, d = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * d, config.num_key_value_heads * d
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, c)}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (c,)
        for name, shape in (("q", (queries, c)), ("k", (keys, c)), ("v", (keys, c)), ("o", (c, queries))):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = shape
        if config.qk_norm:
            shapes[f"{layer}.self_attn.q_norm.weight"] = shapes[f"{layer}.self_attn.k_norm.weight"] = (d,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (c,)
        if config.num_experts:
            shapes[f"{layer}.mlp.gate.weight"] = (config.num_experts, c)
        for mlp in mlp_names(config):
            shapes[f"{layer}.{mlp}.gate_proj.weight"] = shapes[f"{layer}.{mlp}.up_proj.weight"] = (
                config.intermediate_size, c)
            shapes[f"{layer}.{mlp}.down_proj.weight"] = (c, config.intermediate_size)
    shapes["model.norm.weight"] = (c,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, c)
    return shapes


def mlp_names(config: ModelConfig) -> list[str]:
    """Where the SwiGLU layers of a decoder layer stand."""
    if not config.num_experts:
        return ["mlp"]
    return [*(f"mlp.experts.{e}" for e in range(config.num_experts)),
            *(f"mlp.shared_experts.{e}" for e in range(config.num_shared_experts))]


def check_sizes(config: ModelConfig, place: Path) -> None:
    """Raises ``CheckpointError`` where the numbers of a configuration cannot be those of a model."""
    limits = dict.fromkeys(("vocab_size", "hidden_size", "head_dim", "intermediate_size", "max_position_embeddings",
                            "num_attention_heads", "num_key_value_heads"), (1, LARGEST_SIZE))
    limits |= {"num_hidden_layers": (1, MOST_LAYERS), "num_experts": (0, MOST_EXPERTS),
               "num_shared_experts": (0, MOST_EXPERTS),
               "num_experts_per_tok": (1, config.num_experts or MOST_EXPERTS)}
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if type(value) is not int or not least <= value <= most:
            raise CheckpointError(f"{place} says {name} is {value!r}, which must be a whole number from {least} to "
                                  f"{most}.", hint="The file is damaged, or of another kind of model.")
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(f"{place} says num_attention_heads is {config.num_attention_heads}, which is not a "
                              f"multiple of num_key_value_heads {config.num_key_value_heads}.",
                              hint="The file is damaged, or of another kind of model.")
    if config.head_dim % 2:
        raise CheckpointError(f"{place} says head_dim is {config.head_dim}; rotary positions need an even number.",
                              hint="The file is damaged, or of another kind of model.")


def cleaned(weights: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """Without tables that follow from the shape and without the copy of a tied embedding."""
    return {name: tensor for name, tensor in weights.items()
            if not name.endswith(DERIVED) and not (tied and name == HEAD)}


def check_fit(weights: dict[str, Tensor], config: ModelConfig, place: Path) -> None:
    """Raises ``CheckpointError`` that names the first tensor which is missing, too many or of another shape."""
    expected = tensor_shapes(config)
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    if missing:
        raise CheckpointError(f"{place} lacks the tensor {missing[0]}{_more(missing)}.",
                              hint="The file is not whole, or belongs to a model of another shape.")
    if unknown:
        raise CheckpointError(f"{place} has a tensor that the model does not know: {unknown[0]!r}{_more(unknown)}.",
                              hint="It belongs to a model of another shape or kind.")
    for name, shape in expected.items():
        found = tuple(weights[name].shape)
        if found != shape:
            raise CheckpointError(f"{name} in {place} has the shape {list(found)}, and the model needs {list(shape)}.",
                                  hint="Use the weights that belong to this shape of model.")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def to_float32(weights: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
    """Raises ``CheckpointError`` for whole numbers and scaled 8-bit floats: quantised weights."""
    for name, tensor in weights.items():
        if tensor.dtype not in FLOAT_TYPES:
            raise CheckpointError(f"{name!r} in {place} is of the type {str(tensor.dtype).removeprefix('torch.')}.",
                                  hint="Quantised weights cannot be trained: use the original in 16 or 32 bits.")
    return {name: tensor.float() for name, tensor in weights.items()}


def not_finite(weights: dict[str, Tensor], place: Path) -> list[str]:
    """A warning where a weight is NaN or infinite."""
    bad = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if not bad:
        return []
    return [f"{bad[0]} in {place} holds numbers that are not finite{_more(bad)}: the training that left it had "
            "diverged, and one that starts from it will not recover."]
