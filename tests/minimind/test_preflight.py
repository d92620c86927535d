"""Numbers before the start against the built model and hand-counted ones."""

from __future__ import annotations

import pytest

from minimind.config import parse_config
from minimind.lora import adapter_for, attach, flops_per_token
from minimind.model import MiniMindForCausalLM
from minimind.preflight import memory_of, preflight
from minimind.presets import PRESETS, ModelConfig


def test_parameters_are_those_of_the_built_model() -> None:
    config = parse_config("pretrain", {"hidden_size": 64, "num_hidden_layers": 3, "max_steps": 10})
    result = preflight(config)
    model = MiniMindForCausalLM.unfilled(ModelConfig.from_dict(result.model))
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


@pytest.mark.parametrize("values", [
    {}, {"lora_rank": 3, "lora_targets": ["q_proj", "k_proj", "down_proj"]}, {"preset": "minimind-3-moe"}])
def test_adapters_are_those_of_the_built_model(values: dict) -> None:
    config = parse_config("lora", {"max_steps": 10, **values})
    shape = PRESETS[values.get("preset", "tiny-cpu")].model
    result = preflight(config, base_model=shape.as_dict())
    model = MiniMindForCausalLM.unfilled(shape)
    attach(model, adapter_for(config, shape))
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert result.trainable_parameters == learnt < result.parameters / 4
    seq_len = result.tokens_per_step // config.step_shape(PRESETS[result.preset], 1)[2]
    assert result.flops_per_token == flops_per_token(model, seq_len)
    assert result.memory["weights"] == 4 * (result.parameters + learnt)
    assert (result.memory["gradients"], result.memory["optimizer"]) == (4 * learnt, 8 * learnt)
    assert result.checkpoint_bytes == 12 * learnt + (1 << 20)


def test_muon_keeps_half_as_much_of_an_adapter() -> None:
    base = PRESETS["tiny-cpu"].model.as_dict()
    adamw, muon = (preflight(parse_config("lora", {"optimizer": name}), base_model=base) for name in ("adamw", "muon"))
    assert muon.memory["optimizer"] * 2 == adamw.memory["optimizer"]


def test_a_pair_is_two_sequences_and_the_reference_reads_each_once() -> None:
    values = {"batch_size": 4, "accumulation_steps": 1, "max_seq_len": 100, "epochs": 3}
    base = PRESETS["tiny-cpu"].model
    result = preflight(parse_config("dpo", values), base_model=base.as_dict(), dataset_tokens=2000)
    assert (result.sequences_per_example, result.tokens_per_step, result.total_tokens) == (2, 4 * 2 * 100, 6000)
    assert result.memory["activations"] == memory_of(base, 4 * 2 * 100)["activations"]
    forward = base.flops_per_token(100) / 3
    assert result.reference_flops == pytest.approx(2000 * forward)
    assert result.total_flops == pytest.approx(6000 * 3 * forward + result.reference_flops)
    alone = preflight(parse_config("dpo", {**values, "loss_type": "simpo"}), base_model=base.as_dict(),
                      dataset_tokens=2000)
    assert alone.reference_flops is None and alone.total_flops == pytest.approx(6000 * 3 * forward)
    assert alone.trainable_parameters == alone.parameters == base.num_parameters()


def test_a_teacher_is_weights_and_a_forward_pass() -> None:
    teacher = PRESETS["minimind-3"].model
    config = parse_config("distill", {"max_steps": 10, "preset": "tiny-cpu"})
    alone, taught = preflight(config), preflight(config, teacher_model=teacher.as_dict())
    assert taught.teacher_parameters == teacher.num_parameters()
    assert taught.memory["teacher"] == 4 * teacher.num_parameters()
    assert taught.memory_bytes == sum(taught.memory.values()) and taught.model["vocab_size"] == teacher.vocab_size
    student = ModelConfig.from_dict(taught.model)
    per_token = student.flops_per_token(256) + teacher.flops_per_token(256) / 3
    assert taught.flops_per_token == pytest.approx(per_token) and alone.teacher_flops is None
    assert taught.teacher_flops == pytest.approx(taught.total_tokens * teacher.flops_per_token(256) / 3)
    assert taught.total_flops == pytest.approx(taught.total_tokens * per_token)
    half = preflight(config, teacher_model=teacher.as_dict(), has_gpu=True)
    assert half.memory["teacher"] == 2 * teacher.num_parameters()


@pytest.mark.parametrize(("stage", "values", "more", "words"), [
    ("lora", {"lora_rank": 512}, {"base_model": PRESETS["tiny-cpu"].model.as_dict()}, "save nothing"),
    ("dpo", {"simpo_gamma": 1.0}, {}, "simpo alone"),
    ("distill", {"alpha": 1.0}, {}, "nothing of what the teacher"),
    ("distill", {"preset": "small-cpu"}, {"teacher_model": PRESETS["tiny-cpu"].model.as_dict()}, "usually the teacher"),
    ("dpo", {"learning_rate": 0.1}, {"base_model": PRESETS["tiny-cpu"].model.as_dict()}, "diverge"),
])
def test_warnings_of_one_stage(stage: str, values: dict, more: dict, words: str) -> None:
    assert any(words in w for w in preflight(parse_config(stage, values), **more).warnings)
    assert not any(words in w for w in preflight(parse_config(stage, {}), **more).warnings)
