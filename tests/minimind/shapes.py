"""Small models of every kind with random weights, norms included: ones would hide a norm that is left out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from minimind.formats.tensors import tensor_shapes
from minimind.model import MiniMindForCausalLM
from minimind.presets import ModelConfig

QWEN = ModelConfig(vocab_size=97, hidden_size=64, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
                   head_dim=16, intermediate_size=96)
LLAMA = replace(QWEN, head_dim=8, num_key_value_heads=2, qk_norm=False, rms_norm_eps=1e-5)
MOE = replace(QWEN, num_experts=4)
SHARED_MOE = replace(LLAMA, num_experts=4, num_experts_per_tok=2, num_shared_experts=1)
SHAPES = {
    "qwen3": QWEN,
    "qwen3, untied": replace(QWEN, tie_word_embeddings=False, rope_theta=1e4),
    "qwen3, yarn": replace(QWEN, rope_theta=1e4, max_position_embeddings=128, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
        "beta_slow": 1.0, "attention_factor": 1.0}),
    "llama": LLAMA,
    "qwen3_moe": MOE,
    "qwen3_moe, two of four": replace(MOE, num_experts_per_tok=2, norm_topk_prob=False),
}


def random_weights(config: ModelConfig, seed: int = 1) -> dict[str, Tensor]:
    """By Hugging Face's names."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (0.5 + torch.rand(shape, generator=generator) if len(shape) == 1 else
                   torch.randn(shape, generator=generator) * 0.1)
            for name, shape in tensor_shapes(config).items()}


def model_of(config: ModelConfig, weights: dict[str, Tensor]) -> MiniMindForCausalLM:
    model = MiniMindForCausalLM(config)
    model.load_weights(weights)
    return model.eval()
