"""What a run will need, computed before anything is started: parameters, tokens, arithmetic, memory, disk.

Estimates follow from the shape alone (no torch, no device). Memory of training in float32 master weights:
weights 4, gradients 4, optimizer 8 (AdamW) or about 4.5 (Muon) bytes a parameter, plus activations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from minimind.config import RunConfig, TrainConfig
from minimind.presets import ModelConfig, Preset, model_config

STEP_BYTES = 4  # float32
#: tensors of one position that a block keeps for its backward pass, in units of hidden_size: norm inputs and
#: outputs, attention output, residuals
KEPT_OF_HIDDEN = 8
#: the same of one expert that a position passes: its row sorted by expert, its output there and back in place
KEPT_OF_EXPERT = 3
SMALLEST_RUN_TOKENS_PER_PARAMETER = 2


@dataclass
class Preflight:
    """Numbers of one run; bytes and tokens are whole numbers, ``None`` where they depend on what is not known."""

    stage: str
    preset: str | None = None
    model: dict | None = None
    parameters: int | None = None
    active_parameters: int | None = None  # that one token passes: fewer with a mixture of experts
    tokens_per_step: int | None = None
    total_steps: int | None = None
    total_tokens: int | None = None
    flops_per_token: float | None = None
    total_flops: float | None = None
    memory: dict[str, int] = field(default_factory=dict)  # bytes on each rank
    memory_bytes: int | None = None
    checkpoint_bytes: int | None = None
    disk_bytes: int | None = None  # the most that the run's checkpoints take
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)


def preflight(config: RunConfig, *, world_size: int = 1, has_gpu: bool = False, cores: int | None = None,
              dataset_tokens: int | None = None, tokenizer_vocab: int | None = None,
              base_model: dict | None = None, own_data: bool | None = None) -> Preflight:
    """Compute a run's needs. ``dataset_tokens``: of one pass over its data, where they are counted.

    ``base_model``: ``ModelConfig`` fields of the base checkpoint. ``own_data``: data other than the starter
    corpus (default: whether ``data_path`` is set). Raises ``ConfigError`` for a shape that cannot be.
    """
    result = Preflight(config.stage_name)
    if not isinstance(config, TrainConfig):
        return result
    own_data = config.has_own_data if own_data is None else own_data
    base = ModelConfig.from_dict(base_model) if base_model is not None else None
    preset = config.preset_for(has_gpu=has_gpu and own_data, base=base)
    model = _model(config, preset, tokenizer_vocab, base_model)
    batch_size, _, rows = config.step_shape(preset, world_size)
    seq_len = config.max_seq_len or preset.max_seq_len
    result.preset = preset.name
    result.model = model.as_dict()
    result.parameters = model.num_parameters()
    result.active_parameters = model.num_active_parameters()
    result.tokens_per_step = rows * seq_len
    result.flops_per_token = model.flops_per_token(seq_len)
    result.total_steps = _steps(config, dataset_tokens, result.tokens_per_step)
    if result.total_steps is not None:
        result.total_tokens = result.total_steps * result.tokens_per_step
        if config.max_steps is None and dataset_tokens is not None:
            result.total_tokens = min(result.total_tokens, dataset_tokens * config.epochs)
        result.total_flops = result.total_tokens * result.flops_per_token
    micro_tokens = batch_size * seq_len
    result.memory = memory_of(model, micro_tokens, optimizer=config.optimizer, half=_is_half(config, has_gpu),
                              gradient_checkpointing=config.gradient_checkpointing)
    result.memory_bytes = sum(result.memory.values())
    result.checkpoint_bytes = result.memory["weights"] + result.memory["optimizer"] + (1 << 20)
    result.disk_bytes = max(2 << 30, result.checkpoint_bytes * (config.keep + 4))
    result.warnings = _warnings(config, result, preset, seq_len, world_size, has_gpu, cores, base_model)
    return result


def memory_of(model: ModelConfig, micro_tokens: int, *, optimizer: str = "adamw", half: bool = False,
              gradient_checkpointing: bool = False) -> dict[str, int]:
    """Bytes on one rank while a micro-step of ``micro_tokens`` tokens is trained."""
    parameters = model.num_parameters()
    matrices = parameters - model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    state = 8 * parameters if optimizer == "adamw" else 8 * (parameters - matrices) + 4 * matrices
    width = 2 if half else STEP_BYTES
    heads = model.head_dim * (2 * model.num_attention_heads + 2 * model.num_key_value_heads)
    experts = model.num_experts_per_tok + model.num_shared_experts if model.use_moe else 1
    kept = KEPT_OF_HIDDEN * model.hidden_size + 2 * heads + 4 * model.intermediate_size * experts
    kept += KEPT_OF_EXPERT * model.hidden_size * model.num_experts_per_tok if model.use_moe else 0
    if gradient_checkpointing:  # every block's input, and all of the one that is computed again
        activations = (model.num_hidden_layers * model.hidden_size + kept) * width
    else:
        activations = model.num_hidden_layers * kept * width
    activations += 4 * model.hidden_size * STEP_BYTES
    return {"weights": parameters * STEP_BYTES, "gradients": parameters * STEP_BYTES, "optimizer": state,
            "activations": activations * micro_tokens}


def _model(config: TrainConfig, preset: Preset, tokenizer_vocab: int | None, base_model: dict | None) -> ModelConfig:
    if base_model is not None:
        return ModelConfig.from_dict(base_model)
    return model_config(preset.name, config.model_overrides(), tokenizer_vocab or config.vocab_size)


def _steps(config: TrainConfig, dataset_tokens: int | None, tokens_per_step: int) -> int | None:
    """Optimizer steps where the budget says so; ``None`` where they depend on the clock or on uncounted data."""
    if config.max_minutes is not None:
        return None
    if config.max_steps is not None:
        return config.max_steps
    return None if dataset_tokens is None else -(-dataset_tokens // tokens_per_step) * config.epochs


def _is_half(config: TrainConfig, has_gpu: bool) -> bool:
    return config.dtype in ("bfloat16", "float16") or (config.dtype == "auto" and has_gpu)


def _warnings(config: TrainConfig, result: Preflight, preset: Preset, seq_len: int, world_size: int, has_gpu: bool,
              cores: int | None, base_model: dict | None) -> list[str]:
    found = []
    assert result.parameters is not None and result.model is not None
    if result.total_tokens is not None and config.stage_name == "pretrain" and base_model is None \
            and result.total_tokens < SMALLEST_RUN_TOKENS_PER_PARAMETER * result.parameters:
        found.append(f"{result.total_tokens:,} training tokens are few for {result.parameters:,} parameters; a model "
                     "trained from nothing wants about 20 tokens for each.")
    if config.stage_name == "sft" and base_model is None:
        found.append("Fine-tuning starts from random weights: choose a pretrained base checkpoint unless this is "
                     "what you want.")
    if base_model is not None and any(v is not None for v in config.model_overrides().values()):
        found.append("The base checkpoint decides the shape of the model; the shape options given here are ignored.")
    if seq_len > result.model["max_position_embeddings"]:
        found.append(f"max_seq_len {seq_len} is longer than the model's {result.model['max_position_embeddings']} "
                     "positions.")
    if not has_gpu and cores is not None and world_size > cores:
        found.append(f"{world_size} ranks share {cores} CPU cores: they will wait for each other.")
    if not has_gpu and config.dtype == "bfloat16":
        found.append("bfloat16 is many times slower than float32 on most CPUs.")
    if not has_gpu and result.parameters > 20_000_000:
        found.append(f"{result.parameters:,} parameters are many for a CPU; the preset tiny-cpu learns in minutes.")
    rate = preset.learning_rate.get(config.stage_name)
    if config.learning_rate is not None and rate is not None and config.learning_rate > 10 * rate:
        found.append(f"learning_rate {config.learning_rate:g} is more than ten times the preset's {rate:g}; training "
                     "may diverge.")
    return found
