"""Shapes from options: experts, what cannot be, and the counts that follow (test_model.py builds every preset)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minimind.config import parse_config
from minimind.errors import ConfigError
from minimind.moe import MoE
from minimind.preflight import memory_of, preflight
from minimind.presets import PRESETS, ModelConfig, model_config


def shape_of(**options: object) -> ModelConfig:
    config = parse_config("pretrain", {"preset": "tiny-cpu", **options})
    return model_config(config.preset, config.model_overrides())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_shapes_survive_json_and_can_be_keys(name: str) -> None:
    model = PRESETS[name].model
    assert ModelConfig.from_dict(model.as_dict()) == model
    assert {model: 1}[ModelConfig.from_dict(model.as_dict())] == 1


def test_shapes_from_before_there_were_experts() -> None:
    old = {k: v for k, v in ModelConfig().as_dict().items() if k not in ("num_experts", "rope_scaling")}
    assert ModelConfig.from_dict(old) == ModelConfig()


@pytest.mark.parametrize(("name", "active"), [("minimind-3-moe", 63_936_768), ("minimind2-moe", 91_945_600)])
def test_active_parameters_leave_out_the_experts_that_are_not_chosen(name: str, active: int) -> None:
    model = PRESETS[name].model
    with torch.device("meta"):
        layer = MoE(model)
    of_one_expert = sum(p[0].numel() for p in layer.experts.parameters())
    asleep = model.num_hidden_layers * (model.num_experts - model.num_experts_per_tok) * of_one_expert
    assert model.num_active_parameters() == model.num_parameters() - asleep == active
    dense = replace(model, num_experts=0, num_shared_experts=0)
    assert dense.num_active_parameters() == dense.num_parameters()
    assert model.flops_per_token(100) - 6 * active == dense.flops_per_token(100) - 6 * dense.num_parameters() > 0


def test_use_moe_makes_a_dense_preset_four_experts_and_leaves_others_alone() -> None:
    assert shape_of(use_moe=True) == replace(PRESETS["tiny-cpu"].model, num_experts=4, num_experts_per_tok=1)
    assert shape_of(use_moe=False) == PRESETS["tiny-cpu"].model
    assert shape_of(preset="minimind-3", use_moe=True) == PRESETS["minimind-3-moe"].model
    for use_moe in (True, False):
        assert shape_of(preset="minimind2-moe", use_moe=use_moe) == PRESETS["minimind2-moe"].model


def test_experts_by_number() -> None:
    model = shape_of(num_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.01, hidden_size=64)
    assert (model.num_experts, model.num_experts_per_tok, model.router_aux_loss_coef) == (8, 2, 0.01)
    assert model.intermediate_size == 256  # each expert is as wide as the dense layer would be
    assert shape_of(preset="minimind2-moe", num_experts=6).num_shared_experts == 1


@pytest.mark.parametrize(("options", "field", "says"), [
    ({"num_experts_per_tok": 2}, "num_experts_per_tok", "no experts"),
    ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef", "no experts"),
    ({"use_moe": True, "num_experts_per_tok": 5}, "num_experts_per_tok", "more than the 4 experts"),
    ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok", "more than the 2 experts"),
    ({"num_experts": 1}, "num_experts", "greater than or equal to 2"),
])
def test_impossible_experts(options: dict, field: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        shape_of(**options)
    assert raised.value.field == field


def test_problems_are_told_together() -> None:
    with pytest.raises(ConfigError) as raised:
        shape_of(num_experts_per_tok=2, hidden_size=30, num_attention_heads=4)
    assert [p["field"] for p in raised.value.problems] == ["num_experts_per_tok", "hidden_size"]


def test_needs_of_a_mixture() -> None:
    needs = preflight(parse_config("pretrain", {"use_moe": True, "num_experts_per_tok": 2, "max_steps": 1}))
    model = ModelConfig.from_dict(needs.model)
    assert needs.active_parameters == model.num_active_parameters() < needs.parameters == model.num_parameters()
    assert needs.flops_per_token < 6 * needs.parameters
    more = memory_of(replace(model, num_experts=8), 2048)
    less = memory_of(model, 2048)
    assert more["weights"] > 1.5 * less["weights"] and more["activations"] == less["activations"]
    assert memory_of(replace(model, num_experts_per_tok=1), 2048)["activations"] < less["activations"]


@pytest.mark.parametrize("name", ["tiny-cpu", "minimind-3", "minimind-3-moe", "minimind2"])
def test_a_base_brings_the_defaults_of_its_size(name: str) -> None:
    """A foreign model of 64M parameters must not be tuned with the learning rate of one with a million."""
    asked = parse_config("sft", {})
    found = asked.preset_for(has_gpu=False, base=PRESETS[name].model)
    assert found.learning_rate == PRESETS[name].learning_rate
    assert parse_config("sft", {"preset": "tiny-cpu"}).preset_for(has_gpu=False, base=found.model).name == "tiny-cpu"
