"""Numbers before the start against the built model and hand-counted ones."""

from __future__ import annotations

import pytest
import torch

from minimind.config import parse_config
from minimind.model import MiniMindForCausalLM
from minimind.preflight import memory_of, preflight
from minimind.presets import PRESETS, ModelConfig


def test_parameters_are_those_of_the_built_model() -> None:
    config = parse_config("pretrain", {"hidden_size": 64, "num_hidden_layers": 3, "max_steps": 10})
    result = preflight(config)
    with torch.device("meta"):
        model = MiniMindForCausalLM(ModelConfig.from_dict(result.model))
    assert result.parameters == sum(p.numel() for p in model.parameters())


def test_budget() -> None:
    config = parse_config("pretrain", {"max_steps": 10, "batch_size": 4, "accumulation_steps": 3, "max_seq_len": 100})
    result = preflight(config, world_size=2)
    assert (result.tokens_per_step, result.total_steps, result.total_tokens) == (2400, 10, 24_000)
    assert result.total_flops == 24_000 * result.flops_per_token > 6 * result.parameters * 24_000
    epochs = preflight(parse_config("pretrain", {"epochs": 2, "batch_size": 4, "accumulation_steps": 3,
                                                 "max_seq_len": 100}), dataset_tokens=3000)
    assert (epochs.total_steps, epochs.total_tokens) == (6, 6000)
    assert preflight(parse_config("pretrain", {"max_minutes": 3})).total_steps is None


def test_memory_counts_weights_gradients_and_moments() -> None:
    model = PRESETS["tiny-cpu"].model
    memory = memory_of(model, 2048)
    assert memory["weights"] == memory["gradients"] == 4 * model.num_parameters()
    assert memory["optimizer"] == 8 * model.num_parameters() > memory_of(model, 2048, optimizer="muon")["optimizer"]
    assert memory_of(model, 4096)["activations"] == 2 * memory["activations"]


@pytest.mark.parametrize(("values", "more", "words"), [
    ({"max_steps": 5}, {}, "few for"),
    ({"max_steps": 5}, {"world_size": 8, "cores": 2}, "share 2 CPU cores"),
    ({"preset": "minimind-3"}, {}, "many for a CPU"),
    ({"dtype": "bfloat16"}, {}, "slower"),
    ({"learning_rate": 1.0}, {}, "diverge"),
    ({"hidden_size": 64}, {"base_model": PRESETS["tiny-cpu"].model.as_dict()}, "decides the shape"),
])
def test_warnings(values: dict, more: dict, words: str) -> None:
    assert any(words in w for w in preflight(parse_config("pretrain", values), **more).warnings)


def test_fine_tuning_from_nothing_is_unusual_and_the_tokenizer_stage_needs_no_numbers() -> None:
    assert any("random weights" in w for w in preflight(parse_config("sft", {})).warnings)
    assert preflight(parse_config("tokenizer", {})).parameters is None


def test_gradient_checkpointing_saves_activations_alone() -> None:
    plain, again = (preflight(parse_config("pretrain", {"preset": "minimind-3", "gradient_checkpointing": on}))
                    for on in (False, True))
    assert again.memory["activations"] < plain.memory["activations"] / 4  # eight layers
    assert {k: v for k, v in again.memory.items() if k != "activations"} == {
        k: v for k, v in plain.memory.items() if k != "activations"}
