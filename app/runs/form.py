"""What the form of a new run shows, computed from the schema of its stage: nothing is said twice.

A field's value is kept as the text that stands in its control: "" is "not given", a switch is "1" or "0", a choice
of several is joined by commas. Scripts turn it into JSON of the right type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app import i18n
from app.rendering import compact_number
from minimind.config import MOST_STEPS, STAGES, DistillConfig, TrainConfig, stage_schema
from minimind.presets import PRESETS

#: groups in the order of the form: those of one stage alone are what it is about, so they come first and are open
OWN_GROUPS = ("adapter", "preference", "teacher")
GROUPS = (*OWN_GROUPS, "model", "data", "budget", "optimization", "speed", "reporting")
#: ways to say how long a run trains, and the options that each of them sets; minutes win over passes, so do steps
BUDGETS = {"passes": ("epochs",), "minutes": ("max_minutes",), "steps": ("max_steps",),
           "both": ("max_minutes", "max_steps")}
#: options of a stage that trains weights which stand on top, outside of "All options"
BASIC_OPTIONS = ("preset", "epochs", "max_minutes", "max_steps")
#: bounds of a number by their names in JSON Schema
BOUNDS = {"low": "minimum", "above": "exclusiveMinimum", "high": "maximum", "below": "exclusiveMaximum"}


@dataclass(frozen=True)
class Choice:
    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Field:
    """One option. ``kind`` is integer, number, text, flag, switch (a flag that may also be left alone), choice or
    choices."""

    name: str
    label: str
    help: str
    unit: str
    group: str
    kind: str
    default: str
    value: str
    options: list[Choice] = field(default_factory=list)
    limits: str = ""
    #: the same for scripts: low, above (exclusive), high, below (exclusive)
    bounds: dict[str, float] = field(default_factory=dict)

    @property
    def is_changed(self) -> bool:
        return self.value not in (self.default, "")

    @property
    def chosen(self) -> list[str]:
        return self.value.split(",") if self.value else []

    @property
    def placeholder(self) -> str:
        if self.name in ("max_minutes", "max_steps"):  # seen only where somebody chose to say it
            return ""
        return self.default or i18n.gettext("auto")


@dataclass(frozen=True)
class Group:
    name: str
    title: str
    sentence: str
    fields: list[Field]

    @property
    def is_open(self) -> bool:
        return self.name in OWN_GROUPS


@dataclass(frozen=True)
class StageForm:
    """The options of one stage: the few on top by name, the others by group."""

    stage: str
    summary: str
    layouts: list[str]
    trains_weights: bool
    needs_base: bool
    needs_teacher: bool
    basics: dict[str, Field]
    groups: list[Group]

    @property
    def fields(self) -> list[Field]:
        return [*self.basics.values(), *(f for group in self.groups for f in group.fields)]


def stage_form(stage: str, values: Mapping[str, str] | None = None,
               tokenizers: list[Choice] | None = None) -> StageForm:
    """``values`` are texts by option; options that the stage does not know are left out."""
    described = stage_schema(stage)
    trains = issubclass(STAGES[stage], TrainConfig)
    made = [_field(name, schema, (values or {}).get(name), tokenizers or [])
            for name, schema in described["schema"]["properties"].items()]
    basics = {f.name: f for f in made if trains and f.name in BASIC_OPTIONS}
    rest = [f for f in made if f.name not in basics]
    titles = group_titles()
    names = [g for g in GROUPS if any(f.group == g for f in rest)]
    names += sorted({f.group for f in rest} - set(GROUPS))
    groups = [Group(g, *titles.get(g, (g.capitalize(), "")), [f for f in rest if f.group == g]) for g in names]
    summary = described["summary"]
    return StageForm(stage, i18n.gettext(summary), described["layouts"], trains, STAGES[stage].needs_base,
                     STAGES[stage] is DistillConfig, basics, groups)


def _field(name: str, schema: dict[str, Any], value: str | None, tokenizers: list[Choice]) -> Field:
    inner, is_nullable = _without_null(schema)
    default = text_of(schema.get("default"))
    kind, options = _kind(inner), _options(inner, default, is_nullable)
    if kind == "flag" and is_nullable:
        kind = "switch"
        options = [Choice(v, label) for v, label in (("", i18n.gettext("auto")), ("1", i18n.gettext("on")),
                                                     ("0", i18n.gettext("off")))]
    if name == "preset":
        kind, options = "choice", preset_choices()
    elif name == "tokenizer":
        kind, options = "choice", [Choice("", i18n.gettext("auto")), *tokenizers]
    known = {o.value for o in options}
    if value is None or (kind == "choice" and value not in known):
        value = default
    elif kind == "choices":
        value = ",".join(v for v in value.split(",") if v in known)
    elif kind == "flag" or (kind == "switch" and value):
        value = "1" if value.lower() in ("1", "true", "yes", "on") else "0"
    return Field(name=name, label=label_of(name), help=i18n.gettext(schema.get("description") or name),
                 unit=schema.get("unit") or "", group=schema.get("group") or "options", kind=kind, default=default,
                 value=value, options=options, limits=_limits(inner), bounds=_bounds(inner))


def _without_null(schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The schema of a value that is given, and whether it may be left out (null)."""
    branches = schema.get("anyOf", [])
    inner = next((b for b in branches if b.get("type") != "null"), {})
    return {**schema, **inner}, any(b.get("type") == "null" for b in branches)


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return "choice"
    if schema.get("type") == "array":
        return "choices" if "enum" in schema.get("items", {}) else "text"
    return {"integer": "integer", "number": "number", "boolean": "flag"}.get(schema.get("type", ""), "text")


def _options(schema: dict[str, Any], default: str, is_nullable: bool) -> list[Choice]:
    values = [schema["const"]] if "const" in schema else schema.get("enum") or schema.get("items", {}).get("enum") or []
    words = value_words()
    found = [Choice(text_of(v), words.get(v, text_of(v))) for v in values]
    if schema.get("type") == "array" or not found:
        return found
    found = [Choice(o.value, i18n.gettext("%(value)s (default)") % {"value": o.label}) if o.value == default else o
             for o in found]
    return [Choice("", i18n.gettext("auto")), *found] if is_nullable else found


def _bounds(schema: dict[str, Any]) -> dict[str, float]:
    return {name: schema[key] for name, key in BOUNDS.items() if key in schema}


def _limits(schema: dict[str, Any]) -> str:
    """The bounds in words; those that no reader will ever reach are not worth one."""
    _ = i18n.gettext
    low, above, high, below = (_bounds(schema).get(name) for name in BOUNDS)
    if high is not None and high >= MOST_STEPS:
        high = None
    if low is not None and high is not None:
        return _("%(low)s to %(high)s") % {"low": text_of(low), "high": text_of(high)}
    parts = [text % {"limit": text_of(limit)} for text, limit in (
        (_("at least %(limit)s"), low), (_("more than %(limit)s"), above),
        (_("at most %(limit)s"), high), (_("less than %(limit)s"), below)) if limit is not None]
    return ", ".join(parts)


def text_of(value: Any) -> str:
    """A value of the API as the text of its control."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, list):
        return ",".join(text_of(v) for v in value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def budget_of(values: Mapping[str, str]) -> str:
    """The way of saying how long that these options use."""
    minutes, steps = bool(values.get("max_minutes")), bool(values.get("max_steps"))
    return "both" if minutes and steps else "minutes" if minutes else "steps" if steps else "passes"


def preset_choices() -> list[Choice]:
    _ = i18n.gettext
    named = [Choice(p.name, _("%(name)s · %(count)s parameters") % {
        "name": p.name, "count": compact_number(p.model.num_parameters())}, _(p.description)) for p in PRESETS.values()]
    return [Choice("auto", _("auto: what fits the device")), *named]


def preset_defaults() -> dict[str, dict[str, Any]]:
    """What "auto" becomes with each preset, for the hints inside of empty inputs."""
    return {p.name: {"max_seq_len": p.max_seq_len, "batch_size": p.batch_size,
                     "accumulation_steps": p.accumulation_steps, "learning_rate": p.learning_rate}
            for p in PRESETS.values()}


def group_titles() -> dict[str, tuple[str, str]]:
    _ = i18n.gettext
    return {
        "adapter": (_("Adapter"), _("The small matrices that learn beside the frozen ones.")),
        "preference": (_("Preference"), _("How the better answer of a pair is told from the worse.")),
        "teacher": (_("Teacher"), _("How much of what the teacher thinks is learnt, and how.")),
        "model": (_("Model"), _("The shape of the network and its vocabulary.")),
        "data": (_("Data"), _("How text becomes rows, and what is held out.")),
        "budget": (_("Budget"), _("How long it trains.")),
        "optimization": (_("Optimization"), _("How each step changes the weights.")),
        "speed": (_("Speed"), _("How the same arithmetic is done faster.")),
        "reporting": (_("Reporting"), _("How often it measures, speaks and saves.")),
    }


def value_words() -> dict[Any, str]:
    _ = i18n.gettext
    return {"en": _("English"), "zh": _("Chinese"), "pt": _("Portuguese"), "sigmoid": _("sigmoid (DPO)"), "ipo": "IPO",
            "simpo": "SimPO", "orpo": "ORPO", "forward": _("forward: KL(teacher || student)"),
            "reverse": _("reverse: KL(student || teacher)")}


def label_of(name: str) -> str:
    _ = i18n.gettext
    known = {
        "preset": _("Preset"), "tokenizer": _("Tokenizer"), "num_workers": _("Tokenizing processes"),
        "starter": _("Part of the starter corpus"), "starter_minutes": _("Size of the starter world"),
        "seed": _("Seed"), "languages": _("Languages"), "vocab_size": _("Vocabulary size"),
        "hidden_size": _("Hidden size"), "num_hidden_layers": _("Layers"), "num_attention_heads": _("Attention heads"),
        "num_key_value_heads": _("Key/value heads"), "head_dim": _("Head dimension"),
        "intermediate_size": _("Intermediate size"), "rope_theta": _("RoPE theta"),
        "rope_scaling_factor": _("YaRN factor"), "num_experts": _("Experts"),
        "num_experts_per_tok": _("Experts for each token"), "router_aux_loss_coef": _("Weight of the balance loss"),
        "use_moe": _("Mixture of experts"), "max_seq_len": _("Sequence length"),
        "eval_fraction": _("Held-out share"), "epochs": _("Passes"), "max_steps": _("Steps"),
        "max_minutes": _("Minutes"), "batch_size": _("Batch size"), "accumulation_steps": _("Accumulation steps"),
        "learning_rate": _("Learning rate"), "warmup_fraction": _("Warm-up share"),
        "min_lr_fraction": _("Final learning rate share"), "weight_decay": _("Weight decay"),
        "adam_beta2": _("AdamW beta 2"), "grad_clip": _("Gradient clipping"), "optimizer": _("Optimizer"),
        "early_stop": _("Early stop"), "batch_tokens": _("Tokens per step"), "dropout": _("Dropout"),
        "nan_policy": _("Steps that are not finite"), "save_best": _("Save the best"),
        "gradient_checkpointing": _("Gradient checkpointing"),
        "dtype": _("Number format"), "attention": _("Attention kernel"), "use_compile": _("Compile the model"),
        "log_interval": _("Log interval"), "save_interval": _("Save interval"),
        "eval_interval": _("Evaluation interval"), "sample_interval": _("Sample interval"),
        "keep": _("Checkpoints kept"), "use_wandb": _("Weights & Biases"),
        "lora_rank": _("Rank"), "lora_alpha": _("Alpha of the adapter"), "lora_dropout": _("Dropout of the adapter"),
        "lora_targets": _("Matrices with an adapter"), "loss_type": _("Loss of a pair"), "beta": _("Beta"),
        "simpo_gamma": _("Margin of SimPO"), "alpha": _("Weight of the data's own token"),
        "temperature": _("Temperature"), "kl": _("Direction"), "teacher_dtype": _("Number format of the teacher"),
        "wandb_project": _("Weights & Biases project"), "wandb_run_name": _("Weights & Biases run name"),
    }
    return known.get(name) or name.replace("_", " ").capitalize()
