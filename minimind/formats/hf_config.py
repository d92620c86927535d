"""``config.json`` as Hugging Face's transformers 4 and 5 write and read it, and our ``ModelConfig``.

The difference between the two: positions stand in ``rope_theta`` and ``rope_scaling`` in 4, together in
``rope_parameters`` in 5, which still reads the old keys. We write the old ones and read both.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from minimind.errors import CheckpointError
from minimind.formats.tensors import check_sizes
from minimind.presets import ModelConfig
from minimind.run_dir import read_json
from minimind.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
MOST_JSON_BYTES = 64 << 20
MOE_FIELDS = ("num_experts", "num_experts_per_tok", "num_shared_experts", "norm_topk_prob", "router_aux_loss_coef")
#: architecture of each model type that we read, and what its configuration means where a key is absent
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {
        "num_key_value_heads": 32, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "max_position_embeddings": 32768, "tie_word_embeddings": False}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 32768,
        "tie_word_embeddings": False, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": False, "router_aux_loss_coef": 1e-3}),
    "llama": ("LlamaForCausalLM", {
        "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048, "tie_word_embeddings": False}),
    "minimind": ("MiniMindForCausalLM", {
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": True,
        "num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": True, "router_aux_loss_coef": 5e-4}),
}
#: what a model of ours has no part for: key, the values it may have, what it would mean
REFUSED: tuple[tuple[str, tuple, str], ...] = (
    ("hidden_act", ("silu", "swish", None), "another activation than SiLU"),
    ("attention_bias", (False, None), "biases in the attention"),
    ("mlp_bias", (False, None), "biases in the MLP"),
    ("use_sliding_window", (False, None), "a sliding attention window"),
    ("partial_rotary_factor", (1, None), "rotary positions on a part of each head"),
    ("decoder_sparse_step", (1, None), "dense layers between those with experts"),
    ("mlp_only_layers", ([], None), "dense layers between those with experts"),
    ("quantization_config", (None,), "quantised weights"),
)
#: keys of a YaRN scaling (minimind/rope.py)
YARN_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
             "mscale_all_dim", "truncate")


def inexpressible(config: ModelConfig) -> str | None:
    """What Hugging Face's classes have no part for, ``None`` where one of them computes the same."""
    if config.num_shared_experts:
        return "experts that every token passes (num_shared_experts)"
    if config.num_experts and not config.qk_norm:
        return "experts without q/k norm"
    return None


def hf_config(config: ModelConfig, tokenizer: Tokenizer | None = None, dtype: str = "float32") -> dict:
    """``config.json`` that Hugging Face reads, with our own field names beside theirs.

    A model that no class of theirs expresses is called ``minimind``, so that it is refused and not read wrongly.
    """
    values = config.as_dict()
    if not config.num_experts:
        values = {name: value for name, value in values.items() if name not in MOE_FIELDS}
    model_type = "minimind" if inexpressible(config) else "llama" if not config.qk_norm else \
        "qwen3_moe" if config.num_experts else "qwen3"
    values |= {
        "architectures": [FAMILIES[model_type][0]], "model_type": model_type, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "torch_dtype": dtype, "use_cache": True,
    }
    if config.num_experts:
        values |= {"moe_intermediate_size": config.intermediate_size, "decoder_sparse_step": 1, "mlp_only_layers": []}
    if tokenizer is not None:
        values |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id,
                   "pad_token_id": tokenizer.pad_id}
    return values


def read_hf_config(directory: Path, names: Collection[str]) -> ModelConfig:
    """The shape that ``config.json`` describes. Raises ``CheckpointError`` naming the first field that a model of ours
    cannot have.

    ``names``: of the tensors. Upstream's own type says by them alone whether there are q/k norms and experts.
    """
    path = directory / CONFIG_FILE
    raw = read_object(path)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"{path} says model_type is {model_type!r}.",
                              hint=f"These can be read: {', '.join(FAMILIES)}.")
    architecture, defaults = FAMILIES[model_type]
    if raw.get("architectures") not in (None, [], [architecture]):
        raise CheckpointError(f"{path} says architectures is {raw['architectures']!r}.",
                              hint=f"Of the type {model_type}, {architecture} can be read.")
    _refuse(raw, path)
    values = _with_upstream_names(raw) if model_type == "minimind" else dict(raw)
    is_moe = model_type == "qwen3_moe" or model_type == "minimind" and any(".mlp.experts." in n for n in names)
    if "num_experts" not in values and "num_local_experts" in values:  # as transformers 5 calls it
        values["num_experts"] = values["num_local_experts"]
    values = {**defaults, **{name: value for name, value in values.items() if value is not None}}
    if model_type != "minimind":
        values["num_shared_experts"] = 0
    if not is_moe:
        values = {name: value for name, value in values.items() if name not in MOE_FIELDS}
    elif "moe_intermediate_size" in values:
        values["intermediate_size"] = values["moe_intermediate_size"]
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if type(values.get(name)) is not int or values[name] < 1:
            raise CheckpointError(f"{path} says {name} is {values.get(name)!r}, which must be a positive whole number.",
                                  hint="Export the model again.")
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
    values["qk_norm"] = model_type != "llama" if model_type != "minimind" else any(".q_norm." in n for n in names)
    coefficient = values.get("router_aux_loss_coef", 0.0)
    if type(coefficient) not in (int, float) or not 0 <= coefficient <= 10:
        raise CheckpointError(f"{path} says router_aux_loss_coef is {coefficient!r}, which must be a number from 0 to "
                              "10.", hint="Export the model again.")
    values |= _positions(raw, values, path)
    for name in ("tie_word_embeddings", "norm_topk_prob"):
        if name in values and not isinstance(values[name], bool):
            raise CheckpointError(f"{path} says {name} is {values[name]!r}, which must be true or false.",
                                  hint="Export the model again.")
    config = ModelConfig.from_dict(values)
    check_sizes(config, path)
    return config


def read_object(path: Path) -> dict:
    """Raises ``CheckpointError`` where there is no JSON object."""
    try:
        value = read_json(path) if path.stat().st_size <= MOST_JSON_BYTES else None
    except (OSError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is missing or not a JSON object.",
                              hint="Name the folder that save_pretrained wrote.")
    return value


def _refuse(raw: dict, path: Path) -> None:
    for name, allowed, meaning in REFUSED:
        if raw.get(name) not in allowed:
            raise CheckpointError(f"{path} says {name} is {raw[name]!r}: {meaning}.",
                                  hint="Models of this program have no such thing.")
    layers = raw.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise CheckpointError(f"{path} says layer_types is not full_attention everywhere.",
                              hint="Models of this program look at every token before the present one.")


def _with_upstream_names(raw: dict) -> dict:
    """MiniMind2's names of the fields, where they differ from today's."""
    names = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts",
             "aux_loss_alpha": "router_aux_loss_coef"}
    return {**{new: raw[old] for old, new in names.items() if old in raw}, **raw}


def _positions(raw: dict, values: dict, path: Path) -> dict:
    """``rope_theta`` and ``rope_scaling``, from whichever place they stand in."""
    rope = {**_object(raw, "rope_scaling", path), **_object(raw, "rope_parameters", path)}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "yarn") or any(isinstance(value, dict) for value in rope.values()):
        raise CheckpointError(f"{path} scales its positions by {kind!r} in rope_scaling or rope_parameters.",
                              hint="Plain rotary positions and YaRN can be read.")
    if rope.get("partial_rotary_factor") not in (1, None):
        raise CheckpointError(f"{path} says partial_rotary_factor is {rope['partial_rotary_factor']!r}.",
                              hint="Models of this program turn the whole of each head.")
    numbers = {"rope_theta": rope.get("rope_theta", values["rope_theta"]), "rms_norm_eps": values["rms_norm_eps"]}
    scaling = None
    if kind == "yarn":
        scaling = {"rope_type": "yarn", **{name: rope[name] for name in YARN_KEYS if rope.get(name) is not None}}
        scaling.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
        numbers |= {name: value for name, value in scaling.items() if name not in ("rope_type", "truncate")}
        numbers.setdefault("factor", None)
    for name, value in numbers.items():
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise CheckpointError(f"{path} says {name} is {value!r}, which must be a positive number.",
                                  hint="Export the model again.")
    return {"rope_theta": float(numbers["rope_theta"]), "rms_norm_eps": float(numbers["rms_norm_eps"]),
            "rope_scaling": scaling}


def _object(raw: dict, name: str, path: Path) -> dict:
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} says {name} is {value!r}, which must be an object.",
                              hint="Export the model again.")
    return value
