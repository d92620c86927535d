"""Rotary position embedding (RoFormer, Su et al., arXiv:2104.09864) and YaRN, which stretches it (arXiv:2309.00071).

Channel pair i of a head turns by the angle ``position * f_i``, with f_i = rope_theta^(-2i / D): pair 0 fastest.

Shapes: T positions, D head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minimind.errors import ConfigError
from minimind.presets import ModelConfig

#: turns within the original length from which on a pair keeps its frequency, and up to which it is slowed in full
BETA_FAST, BETA_SLOW = 32.0, 1.0


def rope_tables(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, [..., T, 1, D / 2] float32, of ``positions`` [..., T]."""
    frequencies, attention_factor = inverse_frequencies(config, positions.device)
    angles = positions[..., None].float() * frequencies
    cos, sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)
    if attention_factor != 1.0:
        cos, sin = cos * attention_factor, sin * attention_factor
    return cos, sin


def inverse_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> tuple[Tensor, float]:
    """f [D / 2] in radians per position, float32, and the factor on cos and sin (1 without scaling).

    Raises ``ConfigError`` for a scaling other than YaRN.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta ** exponents
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies, 1.0
    if kind != "yarn":
        raise ConfigError([{"field": "rope_scaling", "message": f"The position scaling {kind!r} is not known here.",
                            "hint": "yarn is, and no scaling at all."}])
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    factor = scaling.get("factor") or config.max_position_embeddings / original
    low, high = _ramp_bounds(config, scaling, original)
    ramp = ((torch.arange(config.head_dim // 2, device=device, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    # YaRN's equation "NTK-by-parts": fast pairs tell neighbours apart and keep their frequency, slow ones, which
    # never came round once in training, are interpolated.
    return frequencies * (1 - ramp) + frequencies / factor * ramp, _attention_factor(scaling, factor)


def _ramp_bounds(config: ModelConfig, scaling: dict, original: float) -> tuple[float, float]:
    """Pairs between which the frequency goes from kept to divided by the factor.

    Pair i turns r_i = original f_i / 2 pi times within the original length; solved for i it is
    D ln(original / 2 pi r) / (2 ln rope_theta), at r = beta_fast and at r = beta_slow.
    """
    def pair_of(turns: float) -> float:
        return config.head_dim * math.log(original / (2 * math.pi * turns)) / (2 * math.log(config.rope_theta))

    low = pair_of(scaling.get("beta_fast") or BETA_FAST)
    high = pair_of(scaling.get("beta_slow") or BETA_SLOW)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    return low, high + 0.001 if high == low else high


def _attention_factor(scaling: dict, factor: float) -> float:
    """What cos and sin are multiplied by; logits of the attention grow by its square (YaRN, section 3.4).

    0.1 ln factor + 1 unless given. DeepSeek's ``mscale`` and ``mscale_all_dim`` weigh the logarithm in a quotient.
    """
    def recommended(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return recommended(scaling["mscale"]) / recommended(scaling["mscale_all_dim"])
    return recommended()
