"""Options that several stages share. One schema is the command line, the web form, the REST API and the docs at once.

``RunConfig`` subclasses are flat; a field's name is its flag (``--batch_size``) and its key in the API.
``None`` means "decided later": by the preset, by the base checkpoint, or on the machine that runs it
(``auto``); what it became stands in ``resolved.json``. The stages' own are in ``minimind/config.py``.
"""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from minimind.data.mix_option import parse_mix
from minimind.errors import ConfigError
from minimind.presets import MODEL_FIELDS, PRESETS, ModelConfig, Preset, model_config, nearest_preset

#: keys that name places or devices of one machine: flags of ``train.py``, refused by the API,
#: which has ids and ``devices`` for them
PATH_KEYS = ("data_path", "data_mix", "save_dir", "out", "from_weight", "teacher_weight", "resume", "device")
#: keys that never change what is learnt: they may differ between the attempts of one run
HARMLESS_KEYS = ("save_interval", "log_interval", "sample_interval", "eval_interval", "keep", "save_best",
                 "nan_policy", "gradient_checkpointing", "num_workers", "use_wandb", "wandb_project", "wandb_run_name",
                 "device", "data_path", "data_mix", "tokenizer", "from_weight", "teacher_weight")
#: matrices of a block beside which adapters can stand (minimind/lora.py)
ADAPTABLE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: those of a mixture of experts; an expert's own matrices lie in stacks (minimind/moe.py) that no adapter stands beside
ADAPTABLE_WITH_EXPERTS = ADAPTABLE[:4]
#: bound of numbers of steps: far beyond any training, and every client can hold it exactly
MOST_STEPS = 10**12


def option(default: Any, help: str, group: str, *, unit: str | None = None, **limits: Any) -> Any:
    """A field with the text, unit and group that every front end shows."""
    return Field(default, description=help, json_schema_extra={"group": group, "unit": unit}, **limits)


def spread_rows(rows: int, most: int, world_size: int) -> tuple[int, int]:
    """``(batch_size, accumulation_steps)`` for ``rows`` of a step, at most ``most`` on a rank and micro-step."""
    accumulation = -(-rows // (most * world_size))
    return -(-rows // (accumulation * world_size)), accumulation


class RunConfig(BaseModel):
    """Options of every stage."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False)

    stage_name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    #: dataset layouts this stage can learn from
    layouts: ClassVar[tuple[str, ...]] = ()
    #: part of the starter corpus that is used when no data is given
    starter_part: ClassVar[str] = ""
    needs_base: ClassVar[bool] = False

    preset: str = option("auto", "Named model size. auto: tiny-cpu on a CPU or on the starter corpus, "
                                 "minimind-3 on a GPU with data of your own.", "model")
    tokenizer: str | None = option(None, "Tokenizer to use: a directory on the command line, an id in the API. "
                                         "Default: the base checkpoint's, else one trained on the run's data.", "model")
    data_path: str | None = option(None, "File or directory with training data (jsonl or txt). "
                                         "Default: the starter corpus.", "data")
    data_mix: str | None = option(None, "Several data sets and their shares of the rows, in place of data_path: "
                                        "books.jsonl=3,chats.jsonl=1 takes three rows of four from the first.", "data")
    starter: Literal["text", "dialogues", "preferences", "tools", "identity"] | None = option(
        None, "Part of the starter corpus to learn from where no data is given; default: what suits the stage.", "data")
    starter_minutes: float | None = option(None, "Time budget that sets the size of the starter world. Stages that "
                                                 "learn of one world need the same; default: max_minutes, else 5.",
                                           "data", unit="minutes", gt=0, le=60 * 24 * 60)
    num_workers: int = option(0, "Processes that tokenize in parallel; 0 takes one per core.", "data",
                              ge=0, le=256)
    seed: int = option(42, "Seed of initial weights, data order and the starter corpus.", "data", ge=0, le=2**31 - 1)

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        if name != "auto" and name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, 1)
            raise ValueError(f"There is no preset named {name!r}."
                             + (f" Did you mean {near[0]!r}?" if near else "")
                             + f" Known presets: auto, {', '.join(PRESETS)}.")
        return name

    @field_validator("data_mix")
    @classmethod
    def _readable_mix(cls, text: str | None) -> str | None:
        if text is not None:
            parse_mix(text)
        return text

    @model_validator(mode="after")
    def _one_source_of_data(self) -> RunConfig:
        if self.data_path is not None and self.data_mix is not None:
            raise ConfigError([{"field": "data_mix", "message": "The options data_path and data_mix both say what to "
                                                             "learn from.",
                                "hint": "Leave one of them out; data_mix can name the file of data_path too."}])
        return self

    @model_validator(mode="after")
    def _fitting_part(self) -> RunConfig:
        if self.starter is None:
            return self
        from minimind.data.starter import LAYOUT_OF_PART  # its dictionaries are large, and few runs name a part

        fitting = [part for part, layout in LAYOUT_OF_PART.items() if layout in self.layouts]
        if self.has_own_data:
            raise ConfigError([{"field": "starter", "message": "The option starter names a part of the starter corpus, "
                                                               "and there is data of your own.",
                                "hint": "Leave one of them out."}])
        if self.starter not in fitting:
            raise ConfigError([{"field": "starter",
                                "message": f"The stage {self.stage_name} cannot learn from the part {self.starter} of "
                                           "the starter corpus.", "hint": f"It learns from: {', '.join(fitting)}."}])
        return self

    @property
    def has_own_data(self) -> bool:
        """Whether the user brought data; the starter corpus is written otherwise."""
        return self.data_path is not None or self.data_mix is not None

    def api_dict(self) -> dict:
        """The configuration as the API shows it: without the keys that name places on one machine."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in PATH_KEYS}

    def preset_for(self, *, has_gpu: bool, base: ModelConfig | None = None) -> Preset:
        """The named preset; else the one nearest in size to the model to start from, or what suits the device."""
        if self.preset != "auto":
            return PRESETS[self.preset]
        if base is not None:
            return nearest_preset(base)
        return PRESETS["minimind-3" if has_gpu and self.has_own_data else "tiny-cpu"]


class TrainConfig(RunConfig):
    """Options of every stage that trains weights."""

    #: sequences of ``max_seq_len`` that a packed row has room for
    row_sequences: ClassVar[int] = 1

    from_weight: str | None = option(None, "Start from these weights: a run directory, a checkpoint, a "
                                           "Hugging Face folder or a MiniMind .pth file.", "model")
    vocab_size: int | None = option(None, "Entries of a tokenizer trained for this run; default: the preset's.",
                                    "model", unit="tokens", ge=300, le=200_000)
    hidden_size: int | None = option(None, "Width of the residual stream.", "model", unit="channels", ge=16, le=16384)
    num_hidden_layers: int | None = option(None, "Number of decoder blocks.", "model", unit="layers", ge=1, le=200)
    num_attention_heads: int | None = option(None, "Query heads of each attention.", "model", ge=1, le=256)
    num_key_value_heads: int | None = option(None, "Key/value heads (grouped-query attention); must divide the "
                                                   "query heads.", "model", ge=1, le=256)
    head_dim: int | None = option(None, "Channels of a head; default: hidden_size / num_attention_heads.", "model",
                                  unit="channels", ge=2, le=1024)
    intermediate_size: int | None = option(None, "Width of the SwiGLU layer; default: pi x hidden_size, rounded up "
                                                 "to 64.", "model", unit="channels", ge=16, le=65536)
    rope_theta: float | None = option(None, "Base of the rotary position frequencies.", "model", gt=1)
    rope_scaling_factor: float | None = option(
        None, "YaRN: stretch the rotary positions so that max_position_embeddings are this many times the positions "
              "that the frequencies were made for.", "model", gt=1, le=1024)
    use_moe: bool = option(False, "Mixture of experts: four SwiGLU layers in place of each, of which a router chooses "
                                  "one for every token. Presets with experts have it on.", "model")
    num_experts: int | None = option(None, "Experts of each layer. On a dense preset this makes a mixture as use_moe "
                                           "does.", "model", unit="experts", ge=2, le=256)
    num_experts_per_tok: int | None = option(None, "Experts that each token passes.", "model", unit="experts", ge=1,
                                             le=256)
    router_aux_loss_coef: float | None = option(None, "Weight of the loss that spreads tokens evenly over the "
                                                      "experts; where it is small, one may get all of them.", "model",
                                               ge=0, le=10)

    max_seq_len: int | None = option(None, "Length of a packed row.", "data", unit="tokens", ge=8, le=32768)
    eval_fraction: float = option(0.01, "Share of documents held out for evaluation, chosen by a hash of their "
                                        "content; 0 holds none out.", "data", ge=0, le=0.5)
    languages: list[Literal["en", "zh", "pt"]] | None = option(
        None, "Languages of the starter corpus; default: as many as the time budget allows.", "data")

    epochs: int = option(1, "Passes over the data.", "budget", unit="passes", ge=1, le=10_000)
    max_steps: int | None = option(None, "Exactly this many optimizer steps; epochs repeat as needed and --epochs is "
                                         "ignored.", "budget", unit="optimizer steps", ge=1, le=MOST_STEPS)
    max_minutes: float | None = option(None, "Time for training steps. Turned into a number of steps by timing a few "
                                             "throwaway steps before step 1; the clock is not looked at again.",
                                       "budget", unit="minutes", gt=0, le=60 * 24 * 60)
    early_stop: int = option(0, "End the run after this many scheduled evaluations in a row without a better one; 0 "
                                "never does. The checkpoint of the best one is saved and kept.", "budget",
                             unit="evaluations", ge=0, le=100_000)
    batch_size: int | None = option(None, "Rows of max_seq_len per rank and micro-step.", "optimization",
                                    unit="rows", ge=1, le=65536)
    accumulation_steps: int | None = option(None, "Micro-steps whose gradients make one optimizer step.",
                                            "optimization", unit="micro-steps", ge=1, le=65536)
    batch_tokens: int | None = option(None, "Tokens of one optimizer step over all ranks, in place of "
                                            "accumulation_steps: as many whole rows as come nearest, with any number "
                                            "of ranks.", "optimization", unit="tokens", ge=8, le=1 << 32)
    learning_rate: float | None = option(None, "Peak learning rate.", "optimization", gt=0, le=10)
    warmup_fraction: float = option(0.03, "Share of the steps in which the learning rate rises linearly.",
                                    "optimization", ge=0, le=1)
    min_lr_fraction: float = option(0.1, "Learning rate at the end of the cosine, as a share of the peak.",
                                    "optimization", ge=0, le=1)
    weight_decay: float = option(0.1, "Decoupled weight decay, on matrices only.", "optimization", ge=0, le=10)
    adam_beta2: float = option(0.95, "Second-moment decay of AdamW.", "optimization", gt=0, lt=1)
    grad_clip: float = option(1.0, "Largest global gradient norm; 0 does not clip.", "optimization", ge=0)
    dropout: float = option(0.0, "Share of the channels that training leaves out of what each attention and each "
                                 "SwiGLU adds to the residual stream. Worth it only when data is repeated many times.",
                            "optimization", ge=0, le=0.9)
    nan_policy: Literal["skip", "stop"] = option(
        "skip", "What a step does whose loss or gradient is not finite. skip: it changes nothing, and ten of them in a "
                "row end the run. stop: the first one ends it.", "optimization")
    optimizer: Literal["adamw", "muon"] = option("muon", "muon for the matrices with adamw for the rest (on the "
                                                 "starter world it needs half the steps), or adamw for all.",
                                                 "optimization")

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Arithmetic of the forward and backward pass; weights and optimizer stay float32. auto: bfloat16 on "
                "GPUs that have it, float32 on a CPU.", "speed")
    attention: Literal["auto", "sdpa", "flash_attn", "flex"] = option(
        "auto", "Attention kernel. auto: the fastest that this machine has.", "speed")
    use_compile: bool | None = option(None, "torch.compile the blocks: slower start, faster steps. Default: where the "
                                            "expected time of training is worth it.", "speed")
    gradient_checkpointing: bool = option(False, "Keep only the inputs of the blocks and compute the rest again in the "
                                                 "backward pass: much less memory, about a third more arithmetic, the "
                                                 "same gradients.", "speed")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", "speed")

    log_interval: int = option(1, "Write metrics every this many steps.", "reporting", unit="optimizer steps", ge=1,
                              le=MOST_STEPS)
    save_interval: int | None = option(None, "Save a checkpoint every this many steps; default: every ten minutes "
                                             "and at the end.", "reporting", unit="optimizer steps", ge=1,
                                     le=MOST_STEPS)
    eval_interval: int | None = option(None, "Evaluate on held-out data every this many steps; default: ten times a "
                                             "run. 0 never.", "reporting", unit="optimizer steps", ge=0,
                                     le=MOST_STEPS)
    sample_interval: int | None = option(None, "Let the model speak every this many steps; default: ten times a run. "
                                               "0 never.", "reporting", unit="optimizer steps", ge=0,
                                       le=MOST_STEPS)
    save_best: bool = option(False, "Save a checkpoint whenever a scheduled evaluation is the best so far (early_stop "
                                    "does so too).", "reporting")
    keep: int = option(10, "Milestone checkpoints kept when all of a run's checkpoints exceed 2 GB.", "reporting",
                       ge=0, le=1000)
    use_wandb: bool = option(False, "Also log to Weights & Biases.", "reporting")
    wandb_project: str | None = option(None, "Weights & Biases project.", "reporting")
    wandb_run_name: str | None = option(None, "Weights & Biases run name.", "reporting")

    @model_validator(mode="after")
    def _one_step_size(self) -> TrainConfig:
        if self.batch_tokens is not None and self.accumulation_steps is not None:
            raise ConfigError([{"field": "batch_tokens",
                                "message": f"The options batch_tokens {self.batch_tokens} and accumulation_steps "
                                           f"{self.accumulation_steps} both say how large an optimizer step is.",
                                "hint": "Leave one of them out."}])
        return self

    @model_validator(mode="after")
    def _shape_fits(self) -> TrainConfig:
        model_config(self.preset if self.preset != "auto" else "tiny-cpu", self.model_overrides())
        return self

    def step_shape(self, preset: Preset, world_size: int) -> tuple[int, int, int]:
        """``(batch_size, accumulation_steps, rows of an optimizer step over all ranks)``.

        ``batch_tokens`` decides the rows alone, so they are the same for every number of ranks; they are spread over
        as few micro-steps as ``batch_size`` allows and as evenly as they go (the last one may be short of rows).
        """
        batch_size = self.batch_size or preset.batch_size
        if self.batch_tokens is None:
            accumulation = self.accumulation_steps or preset.accumulation_steps
            return batch_size, accumulation, batch_size * accumulation * world_size
        rows = max(1, round(self.batch_tokens / (self.row_sequences * (self.max_seq_len or preset.max_seq_len))))
        return *spread_rows(rows, batch_size, world_size), rows

    def model_overrides(self) -> dict:
        """What is asked of the shape, ``None`` where nothing is (``use_moe`` off asks nothing: presets keep theirs)."""
        return {name: getattr(self, name) for name in MODEL_FIELDS} | {"use_moe": self.use_moe or None}
