"""The stages and their options, and how a configuration is checked: every problem at once, each with its field.

What all stages share is in ``minimind/options.py``.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from minimind.errors import ConfigError
from minimind.options import (
    ADAPTABLE,
    ADAPTABLE_WITH_EXPERTS,
    HARMLESS_KEYS,
    MOST_STEPS,
    PATH_KEYS,
    RunConfig,
    TrainConfig,
    option,
    spread_rows,
)
from minimind.presets import MODEL_FIELDS, PRESETS, model_config

__all__ = ["ADAPTABLE", "ADAPTABLE_WITH_EXPERTS", "HARMLESS_KEYS", "MOST_STEPS", "PATH_KEYS", "STAGES", "DistillConfig",
           "DpoConfig", "LoraConfig", "PretrainConfig", "RunConfig", "SftConfig", "TokenizerConfig", "TrainConfig",
           "field_kind", "parse_api_config", "parse_config", "spread_rows", "stage_class", "stage_schema"]


class TokenizerConfig(RunConfig):
    """Train a byte-level BPE vocabulary."""

    stage_name = "tokenizer"
    summary = "Learn a byte-level BPE vocabulary from text."
    layouts = ("text", "conversations", "txt")
    starter_part = "text"

    vocab_size: int = option(2048, "Entries of the vocabulary, special tokens and the 256 bytes included.", "model",
                             unit="tokens", ge=300, le=200_000)
    languages: list[Literal["en", "zh", "pt"]] | None = option(
        None, "Languages of the starter corpus; default: as many as the time budget allows.", "data")


class PretrainConfig(TrainConfig):
    """Learn language from plain text."""

    stage_name = "pretrain"
    summary = "Learn to continue plain text, from random weights or a base checkpoint."
    layouts = ("text", "txt")
    starter_part = "text"


class SftConfig(TrainConfig):
    """Learn to answer from dialogues."""

    stage_name = "sft"
    summary = "Learn to answer: supervised fine-tuning on dialogues, loss on the assistant's turns only."
    layouts = ("conversations",)
    starter_part = "dialogues"
    needs_base = False  # from random weights it works too, and is said to be unusual by preflight


class LoraConfig(SftConfig):
    """Learn to answer with small matrices beside frozen weights."""

    stage_name = "lora"
    summary = "Learn a new manner or subject in a few small matrices; the base checkpoint's weights stay as they are."
    starter_part = "identity"
    needs_base = True

    optimizer: Literal["adamw", "muon"] = option("adamw", "adamw, or muon for the small matrices.", "optimization")
    weight_decay: float = option(0.0, "Decoupled weight decay of the small matrices.", "optimization", ge=0, le=10)
    lora_rank: int = option(16, "Rows of A and columns of B: how much can be learnt.", "adapter", ge=1, le=1024)
    lora_alpha: float | None = option(None, "The product B A counts alpha / rank times; default: twice the rank.",
                                      "adapter", gt=0, le=65536)
    lora_dropout: float = option(0.0, "Share of a layer's input channels that A does not see in training.", "adapter",
                                 ge=0, lt=1)
    lora_targets: list[Literal[ADAPTABLE]] = option(
        list(ADAPTABLE), "Matrices of every block that get a pair of small ones.", "adapter", min_length=1)

    @property
    def alpha_of_adapter(self) -> float:
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


class DpoConfig(TrainConfig):
    """Learn which of two answers is preferred."""

    stage_name = "dpo"
    summary = "Learn from pairs of answers which one is preferred, without drifting far from the base checkpoint."
    layouts = ("dpo",)
    starter_part = "preferences"
    needs_base = True
    row_sequences = 2  # both sides of a pair

    optimizer: Literal["adamw", "muon"] = option("adamw", "adamw, or muon for the matrices.", "optimization")
    weight_decay: float = option(0.0, "Decoupled weight decay, on matrices only.", "optimization", ge=0, le=10)
    loss_type: Literal["sigmoid", "ipo", "simpo", "orpo"] = option(
        "sigmoid", "sigmoid: DPO (Rafailov et al., arXiv:2305.18290). ipo: squared distance of the margin from "
                   "1 / (2 beta) (arXiv:2310.12036). simpo: mean log-probabilities without a reference "
                   "(arXiv:2405.14734). orpo: likelihood of the chosen answer plus the odds ratio, without a reference "
                   "(arXiv:2403.07691).", "preference")
    beta: float | None = option(None, "How much a difference of log-probabilities counts. Small: the model may move "
                                      "far from the reference. For orpo: weight of the odds ratio. Default: 0.1; for "
                                      "simpo 2.", "preference", gt=0, le=100)
    simpo_gamma: float = option(0.5, "simpo alone: margin by which the chosen answer should win.", "preference",
                                ge=0, le=100)

    @property
    def strength(self) -> float:
        """beta, as the loss has it."""
        return self.beta if self.beta is not None else 2.0 if self.loss_type == "simpo" else 0.1

    @property
    def needs_reference(self) -> bool:
        return self.loss_type in ("sigmoid", "ipo")


class DistillConfig(TrainConfig):
    """Learn a teacher's probabilities for every next token."""

    stage_name = "distill"
    summary = "A student learns what its teacher thinks of every next token, not only which token came."
    layouts = ("conversations", "text", "txt")
    starter_part = "dialogues"

    teacher_weight: str | None = option(None, "The teacher: a run directory, a checkpoint, a Hugging Face folder or a "
                                              "MiniMind .pth file, of any size, with the student's tokenizer.",
                                        "teacher")
    alpha: float = option(0.5, "Weight of the data's own next token; the rest, 1 - alpha, is the teacher's.",
                          "teacher", ge=0, le=1)
    temperature: float = option(1.5, "Both distributions are made flatter by it, so that unlikely tokens count too; "
                                     "the loss is multiplied by its square.", "teacher", gt=0, le=100)
    kl: Literal["forward", "reverse"] = option(
        "forward", "forward: KL(teacher || student), the student covers all that the teacher finds likely (Hinton et "
                   "al., arXiv:1503.02531). reverse: KL(student || teacher), it keeps to what the teacher finds "
                   "likeliest (Gu et al., arXiv:2306.08543).", "teacher")
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Arithmetic of the teacher's weights. auto: bfloat16 on GPUs that have it, float32 on a CPU.", "speed")


STAGES: dict[str, type[RunConfig]] = {c.stage_name: c for c in (
    TokenizerConfig, PretrainConfig, SftConfig, LoraConfig, DpoConfig, DistillConfig)}


def stage_class(stage: str) -> type[RunConfig]:
    if stage not in STAGES:
        near = difflib.get_close_matches(str(stage), STAGES, 1)
        raise ConfigError([{
            "field": "stage",
            "message": f"There is no stage named {stage!r}.",
            "hint": (f"Did you mean {near[0]!r}? " if near else "") + f"Stages: {', '.join(STAGES)}.",
        }])
    return STAGES[stage]


def parse_config(stage: str, values: dict, *, strict: bool = False) -> RunConfig:
    """Validate ``values`` for ``stage``; raises one ``ConfigError`` with every problem in it.

    ``strict``: as JSON has types of its own, ``true`` is no number and ``"2"`` neither.
    """
    cls = stage_class(stage)
    try:
        return cls.model_validate(values, strict=strict)
    except ValidationError as error:
        problems = [p for e in error.errors() for p in _problems(cls, e)]
    # pydantic looks at the shape of the model only once every field is right by itself; a user wants to
    # hear of both at once.
    wrong = {p["field"] for p in problems}
    if issubclass(cls, TrainConfig) and not wrong & {"preset", *MODEL_FIELDS}:
        shape = {k: values.get(k) for k in MODEL_FIELDS}
        try:
            model_config(values.get("preset") if values.get("preset") in PRESETS else "tiny-cpu", shape)
        except ConfigError as error:
            problems += error.problems
    raise ConfigError(problems)


def parse_api_config(stage: str, values: dict) -> RunConfig:
    """As ``parse_config``, for a configuration that came through the API: place keys are refused too."""
    refused = [k for k in values if k in PATH_KEYS]
    problems = [{
        "field": f"config.{k}",
        "message": f"{k} names a place on one machine and cannot be set here.",
        "hint": {"data_path": "Use dataset_id.", "data_mix": "Use dataset_id: a run of the studio has one dataset.",
                 "from_weight": "Use base_checkpoint_id.", "teacher_weight": "Use teacher_checkpoint_id.",
                 "device": "Use devices."}.get(k, "The server chooses it."),
    } for k in refused]
    try:
        config = parse_config(stage, {k: v for k, v in values.items() if k not in PATH_KEYS}, strict=True)
    except ConfigError as error:
        problems += [{**p, "field": p["field"] if p["field"] == "stage" else f"config.{p['field']}"}
                     for p in error.problems]
    if problems:
        raise ConfigError(problems)
    return config


def _quoted(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _problems(cls: type[RunConfig], error: dict) -> list[dict]:
    """A sentence for one pydantic error (the shape of a model can be wrong in several fields at once)."""
    field = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return [{"field": field, "message": f"There is no option named {_quoted(field)} for the stage "
                                            f"{cls.stage_name}.",
                 "hint": f"Did you mean {_nearest(field, cls)!r}?"}]
    cause = error.get("ctx", {}).get("error")
    if error["type"] == "value_error" and isinstance(cause, ConfigError):
        return cause.problems
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message = f"{field} = {_quoted(error['input'])}: {message[0].lower()}{message[1:]}."
    info = cls.model_fields.get(field)
    return [{"field": field, "message": message, "hint": info.description if info else None}]


#: what other programs call our options, where the letters alone would not tell
OTHER_NAMES = {"lr": "learning_rate", "bs": "batch_size", "steps": "max_steps", "wd": "weight_decay",
               "ctx": "max_seq_len", "block_size": "max_seq_len", "n_layer": "num_hidden_layers",
               "n_head": "num_attention_heads", "n_embd": "hidden_size", "dim": "hidden_size"}


def _nearest(name: str, cls: type[RunConfig]) -> str:
    known = [k for k in cls.model_fields if k not in PATH_KEYS]
    meant = OTHER_NAMES.get(name.lower())
    return meant if meant in known else difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]


def stage_schema(stage: str) -> dict:
    """What ``GET /stages`` says of one stage: JSON Schema with help, units, groups and defaults."""
    cls = stage_class(stage)
    schema = cls.model_json_schema()
    schema["properties"] = {k: v for k, v in schema["properties"].items() if k not in PATH_KEYS}
    return {"name": stage, "summary": cls.summary, "layouts": list(cls.layouts), "starter_part": cls.starter_part,
            "needs_base": cls.needs_base, "schema": schema}


def field_kind(annotation: Any) -> tuple[Any, bool]:
    """``(type, is_list)`` of a field with ``None`` and ``list`` taken off: what one flag value is."""
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is Literal or not arguments:
        return annotation, False
    if get_origin(annotation) is list:
        return arguments[0], True
    return field_kind(arguments[0])
