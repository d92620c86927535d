"""Rotary tables against the formula, against upstream MiniMind's YaRN, and against Hugging Face where installed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from minimind.config import parse_config
from minimind.errors import ConfigError
from minimind.presets import PRESETS, ModelConfig, model_config, yarn_scaling
from minimind.rope import inverse_frequencies, rope_tables

CONFIG = PRESETS["minimind-3"].model
UPSTREAM = yarn_scaling(16, 32768) | {"attention_factor": 1.0}


def test_tables_are_the_formula() -> None:
    config = replace(CONFIG, head_dim=8, rope_theta=10_000.0)
    cos, sin = rope_tables(torch.tensor([[0, 1, 300]]), config)
    assert cos.shape == sin.shape == (1, 3, 1, 4) and cos.dtype == torch.float32
    for t, position in enumerate((0, 1, 300)):
        for i in range(4):
            angle = position / 10_000 ** (2 * i / 8)
            assert math.isclose(cos[0, t, 0, i], math.cos(angle), abs_tol=1e-4)
            assert math.isclose(sin[0, t, 0, i], math.sin(angle), abs_tol=1e-4)


def test_yarn_is_upstreams() -> None:
    """f (1 - ramp + ramp / 16), the ramp from pair 8 to pair 21 of 48, nothing on cos and sin."""
    assert UPSTREAM["original_max_position_embeddings"] == 2048
    got, attention_factor = inverse_frequencies(replace(CONFIG, rope_scaling=UPSTREAM))
    plain = [1e6 ** (-2 * i / 96) for i in range(48)]
    ramp = [min(1.0, max(0.0, (i - 8) / (21 - 8))) for i in range(48)]
    expected = [f * (1 - r + r / 16) for f, r in zip(plain, ramp)]
    torch.testing.assert_close(got, torch.tensor(expected), atol=0.0, rtol=1e-6)
    assert attention_factor == 1.0
    assert got[:9].tolist() == inverse_frequencies(CONFIG)[0][:9].tolist()  # neighbours are told apart as before


@pytest.mark.parametrize(("head_dim", "theta", "scaling"), [
    (96, 1e6, UPSTREAM),
    (96, 1e6, yarn_scaling(4, 32768)),
    (64, 1e4, {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16.0,
               "beta_slow": 2.0}),
    (64, 1e4, {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
               "mscale_all_dim": 0.5}),
    (32, 1e4, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4, "beta_fast": 1.0,
               "beta_slow": 1.0}),
    (80, 1e6, {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 2048, "truncate": False}),
])
def test_yarn_is_hugging_faces(head_dim: int, theta: float, scaling: dict) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
    theirs = transformers.Qwen3Config(
        head_dim=head_dim, hidden_size=8 * head_dim, num_attention_heads=8,
        max_position_embeddings=round(scaling["factor"] * scaling["original_max_position_embeddings"]),
        rope_parameters=scaling | {"rope_theta": theta})
    ours = ModelConfig(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    frequencies, attention_factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs)
    got, factor = inverse_frequencies(ours)
    torch.testing.assert_close(got, frequencies, atol=0.0, rtol=3e-7)
    assert math.isclose(factor, attention_factor)
    positions = torch.tensor([[0, 1, 5, 900]])
    cos, sin = Qwen3RotaryEmbedding(theirs)(torch.zeros(1), positions)
    for one, other in zip(rope_tables(positions, ours), (cos, sin)):
        torch.testing.assert_close(one[:, :, 0], other[..., :head_dim // 2], atol=3e-4, rtol=0.0)


def test_unscaled_tables_are_hugging_faces() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
    theirs = transformers.Qwen3Config(head_dim=96, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    positions = torch.arange(32768)[None]  # to the last bit: at position 32767 a rounding of f is 0.002 of an angle
    cos, sin = Qwen3RotaryEmbedding(theirs)(torch.zeros(1), positions)
    for one, other in zip(rope_tables(positions, CONFIG), (cos, sin)):
        assert torch.equal(one[:, :, 0], other[..., :48])


def test_factor_and_length_fill_in_for_each_other() -> None:
    explicit = inverse_frequencies(replace(CONFIG, rope_scaling=UPSTREAM))[0]
    derived = inverse_frequencies(replace(CONFIG, rope_scaling={"type": "yarn", "factor": None,
                                                                "original_max_position_embeddings": 2048}))[0]
    assert torch.equal(explicit, derived)


def test_option_and_other_scalings() -> None:
    config = parse_config("pretrain", {"rope_scaling_factor": 16})
    model = model_config("minimind-3", config.model_overrides())
    assert model.rope_scaling == yarn_scaling(16, 32768) and model.rope_scaling_factor == 16
    assert math.isclose(inverse_frequencies(model)[1], 0.1 * math.log(16) + 1)
    assert ModelConfig.from_dict(model.as_dict()) == model and isinstance(hash(model), int)
    with pytest.raises(ConfigError, match="'linear' is not known"):
        inverse_frequencies(replace(CONFIG, rope_scaling={"rope_type": "linear", "factor": 2.0}))
    with pytest.raises(ConfigError, match="rope_scaling_factor"):
        parse_config("pretrain", {"rope_scaling_factor": 0.5})
