"""What a run will need, computed before anything is started: parameters, tokens, arithmetic, memory, disk.

Estimates follow from the shape alone (no torch, no device). Memory of training in float32 master weights:
weights 4, gradients 4, optimizer 8 (AdamW) or about 4.5 (Muon) bytes a parameter, plus activations. Frozen weights
(lora) have neither gradients nor optimizer; a teacher (distill) is weights alone.

Of the training FLOPs of a token a third each is the forward pass, the gradient of what is passed on and the gradient
of the weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from minimind.config import ADAPTABLE_WITH_EXPERTS, DistillConfig, DpoConfig, LoraConfig, RunConfig, TrainConfig
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
    trainable_parameters: int | None = None  # with adapters far fewer
    teacher_parameters: int | None = None
    sequences_per_example: int = 1  # a pair of answers is two
    tokens_per_step: int | None = None
    total_steps: int | None = None
    total_tokens: int | None = None
    flops_per_token: float | None = None
    total_flops: float | None = None  # those of the teacher and of the reference are part of them
    teacher_flops: float | None = None
    reference_flops: float | None = None  # one pass before step 1
    memory: dict[str, int] = field(default_factory=dict)  # bytes on each rank
    memory_bytes: int | None = None
    checkpoint_bytes: int | None = None
    disk_bytes: int | None = None  # the most that the run's checkpoints take
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)


def preflight(config: RunConfig, *, world_size: int = 1, has_gpu: bool = False, cores: int | None = None,
              dataset_tokens: int | None = None, tokenizer_vocab: int | None = None,
              base_model: dict | None = None, teacher_model: dict | None = None,
              own_data: bool | None = None) -> Preflight:
    """Compute a run's needs. ``dataset_tokens``: of one pass over its data, where they are counted.

    ``base_model``, ``teacher_model``: ``ModelConfig`` fields of these checkpoints. ``own_data``: data other than the
    starter corpus (default: whether ``data_path`` is set). Raises ``ConfigError`` for a shape that cannot be.
    """
    result = Preflight(config.stage_name)
    if not isinstance(config, TrainConfig):
        return result
    own_data = config.has_own_data if own_data is None else own_data
    base = ModelConfig.from_dict(base_model) if base_model is not None else None
    preset = config.preset_for(has_gpu=has_gpu and own_data, base=base)
    teacher = ModelConfig.from_dict(teacher_model) if teacher_model is not None else None
    if base is None and tokenizer_vocab is None and teacher is not None:  # the student has its teacher's tokenizer
        tokenizer_vocab = teacher.vocab_size
    model = _model(config, preset, tokenizer_vocab, base_model)
    adapter = adapter_parameters(config, model) if isinstance(config, LoraConfig) else None
    batch_size, _, rows = config.step_shape(preset, world_size)
    seq_len = config.max_seq_len or preset.max_seq_len
    result.preset = preset.name
    result.model = model.as_dict()
    result.parameters = model.num_parameters()
    result.active_parameters = model.num_active_parameters()
    result.trainable_parameters = result.parameters if adapter is None else adapter
    result.sequences_per_example = config.row_sequences
    row_tokens = seq_len * result.sequences_per_example  # both sides of a pair lie in one row
    result.tokens_per_step = rows * row_tokens
    result.flops_per_token = model.flops_per_token(seq_len)
    if adapter is not None:  # no gradient of the frozen weights
        result.flops_per_token += 6 * adapter - 2 * result.active_parameters
    teaching = teacher.flops_per_token(seq_len) / 3 if teacher is not None else 0.0
    result.flops_per_token += teaching
    result.total_steps = _steps(config, dataset_tokens, result.tokens_per_step)
    if result.total_steps is not None:
        result.total_tokens = result.total_steps * result.tokens_per_step
        if config.max_steps is None and dataset_tokens is not None:
            result.total_tokens = min(result.total_tokens, dataset_tokens * config.epochs)
        result.total_flops = result.total_tokens * result.flops_per_token
        if isinstance(config, DpoConfig) and config.needs_reference:
            read = result.total_tokens if dataset_tokens is None else dataset_tokens
            result.reference_flops = read * result.flops_per_token / 3
            result.total_flops += result.reference_flops
    micro_tokens = batch_size * row_tokens
    result.memory = memory_of(model, micro_tokens, optimizer=config.optimizer, half=_is_half(config, has_gpu),
                              gradient_checkpointing=config.gradient_checkpointing, adapter=adapter)
    kept = (result.parameters if adapter is None else adapter) * STEP_BYTES
    result.checkpoint_bytes = kept + result.memory["optimizer"] + (1 << 20)
    if teacher is not None and isinstance(config, DistillConfig):
        result.teacher_parameters = teacher.num_parameters()
        is_half = config.teacher_dtype == "bfloat16" or (config.teacher_dtype == "auto" and has_gpu)
        result.memory["teacher"] = result.teacher_parameters * (2 if is_half else STEP_BYTES)
        result.teacher_flops = None if result.total_tokens is None else result.total_tokens * teaching
    result.memory_bytes = sum(result.memory.values())
    result.disk_bytes = max(2 << 30, result.checkpoint_bytes * (config.keep + 4))
    result.warnings = _warnings(config, result, preset, seq_len, world_size, has_gpu, cores, base_model)
    return result


def memory_of(model: ModelConfig, micro_tokens: int, *, optimizer: str = "adamw", half: bool = False,
              gradient_checkpointing: bool = False, adapter: int | None = None) -> dict[str, int]:
    """Bytes on one rank while a micro-step of ``micro_tokens`` tokens is trained. ``adapter``: parameters of one, which
    alone are learnt then."""
    parameters = model.num_parameters()
    learnt = parameters if adapter is None else adapter
    matrices = learnt if adapter is not None else parameters - model.vocab_size * model.hidden_size * (
        1 if model.tie_word_embeddings else 2)
    state = 8 * learnt if optimizer == "adamw" else 8 * (learnt - matrices) + 4 * matrices
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
    return {"weights": (parameters + (adapter or 0)) * STEP_BYTES, "gradients": learnt * STEP_BYTES,
            "optimizer": state, "activations": activations * micro_tokens}


def adapter_parameters(config: LoraConfig, model: ModelConfig) -> int:
    """Numbers of the adapters of a run on a model of this shape: r (in + out) for each matrix, in every block."""
    d, width = model.hidden_size, model.intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    sides = {"q_proj": d + queries, "k_proj": d + keys, "v_proj": d + keys, "o_proj": queries + d,
             "gate_proj": d + width, "up_proj": d + width, "down_proj": width + d}
    targets = [name for name in sides if name in config.lora_targets
               and (name in ADAPTABLE_WITH_EXPERTS or not model.use_moe)]
    return config.lora_rank * model.num_hidden_layers * sum(sides[name] for name in targets)


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
    if isinstance(config, LoraConfig) and config.lora_rank >= result.model["hidden_size"]:
        found.append(f"lora_rank {config.lora_rank} is not smaller than the matrices, which are "
                     f"{result.model['hidden_size']} wide: adapters of this size save nothing.")
    if isinstance(config, DpoConfig) and config.loss_type != "simpo" and "simpo_gamma" in config.model_fields_set \
            and config.simpo_gamma != DpoConfig.model_fields["simpo_gamma"].default:
        found.append(f"simpo_gamma counts for the loss simpo alone, and the loss is {config.loss_type}.")
    if isinstance(config, DistillConfig) and config.alpha == 1:
        found.append("alpha is 1: only the data's own tokens are learnt, and nothing of what the teacher thinks.")
    if result.teacher_parameters is not None and result.teacher_parameters < result.parameters:
        found.append(f"The teacher has {result.teacher_parameters:,} parameters and the student {result.parameters:,}: "
                     "usually the teacher is the larger one.")
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
