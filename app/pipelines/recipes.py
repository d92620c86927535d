"""Recipes: lines of stages that are ready to start. They are data; ``line_of`` makes the stages of one.

Every stage of a recipe learns of one world of the starter corpus: the stages have the same seed, languages and
``starter_minutes``, so what is asked for later has been told before. The world is sized by the minutes in which the
first model reads and learns to answer (``world_share``), not by those of the stages behind that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.core import lines
from minimind.config import STAGES, TrainConfig
from minimind.presets import PRESETS

SEED = 42


def _(text: str) -> str:
    """Marks a text for the catalogues; whoever shows it translates it."""
    return text


@dataclass(frozen=True)
class Step:
    """One stage. ``share`` of the recipe's minutes are its own; ``shape``: what a model that begins here has of the
    preset's layers and channels."""

    stage: str
    share: float = 0.0
    title: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    from_stage: int | None = None
    teacher_stage: int | None = None
    gate: dict[str, float] | None = None
    shape: float = 1.0


@dataclass(frozen=True)
class Recipe:
    name: str
    title: str
    #: what one has in the end, in a sentence
    gives: str
    minutes: float
    steps: tuple[Step, ...]
    world_share: float
    preset: str = "tiny-cpu"

    def begins_model(self, position: int) -> bool:
        """Whether the weights of this stage are new ones, so that it decides their shape."""
        step = self.steps[position]
        before = lines.starts_from(position, step.from_stage)
        return issubclass(STAGES[step.stage], TrainConfig) and (before < 0 or self.steps[before].stage == "tokenizer")


#: gates are wide: they stop what has not learnt at all (a model that knows nothing has a loss of 7.6), not what could
#: have been a little better
READS, ANSWERS = {"eval_loss": 1.5}, {"eval_loss": 1.0}
PREFERS = {"reward_accuracy": 0.9}

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (
    Recipe("zero_to_chat", _("Zero to chat"),
           _("A model that began as random numbers and answers questions about a small world that it has read about."),
           5, (Step("pretrain", 0.65, gate=READS), Step("sft", 0.35, gate=ANSWERS)), world_share=1),
    Recipe("chat_preference", _("Chat and preference"),
           _("A model that chats, and has learnt from pairs of answers which one people like better."),
           6, (Step("pretrain", 0.55, gate=READS), Step("sft", 0.3, gate=ANSWERS), Step("dpo", 0.15, gate=PREFERS)),
           world_share=0.85),
    Recipe("tools", _("Tools"),
           _("A model that chats, and calls a tool where one is offered and answers from what the tool says."),
           8, (Step("pretrain", 0.5, gate=READS), Step("sft", 0.25, gate=ANSWERS),
               Step("sft", 0.25, _("Tool use"), {"starter": "tools"}, gate=ANSWERS)), world_share=0.75),
    Recipe("teacher_student", _("Teacher and student"),
           _("A model of half the width and depth that learns from the probabilities of a larger one, trained first."),
           10, (Step("tokenizer"),
                Step("pretrain", 0.45, _("Teacher: pretraining"), gate=READS),
                Step("sft", 0.25, _("Teacher: fine-tuning"), gate=ANSWERS),
                # its steps cost much less than its teacher's
                Step("pretrain", 0.15, _("Student: pretraining"), from_stage=lines.RANDOM_WEIGHTS, shape=0.5),
                Step("distill", 0.15, _("Student: distillation"), teacher_stage=2)), world_share=0.7),
    Recipe("personality", _("Personality"),
           _("A model that chats, and a small adapter for it that has taught it another name and manner."),
           6, (Step("pretrain", 0.55, gate=READS), Step("sft", 0.3, gate=ANSWERS), Step("lora", 0.15)),
           world_share=0.85),
)}


def line_of(recipe: Recipe, *, minutes: float | None = None, preset: str | None = None,
            languages: list[str] | None = None, seed: int | None = None) -> list[dict[str, Any]]:
    """The stages of ``recipe`` as ``POST /pipelines`` takes them; what is not given is the recipe's own choice.

    ``preset`` may be anything: the check of the stages says what is wrong with it.
    """
    budget, size = minutes or recipe.minutes, preset or recipe.preset
    world = {"starter_minutes": _rounded(budget * recipe.world_share), "seed": SEED if seed is None else seed,
             **({"languages": list(languages)} if languages else {})}
    stages = []
    for position, step in enumerate(recipe.steps):
        config = {**world, **step.config}
        if step.share:
            config["max_minutes"] = _rounded(budget * step.share)
        if step.stage == "tokenizer" and size in PRESETS:
            config["vocab_size"] = PRESETS[size].model.vocab_size
        if recipe.begins_model(position):
            config |= {"preset": size, **_shape(size, step.shape)}
        stages.append({"stage": step.stage, "title": step.title, "config": config, "from_stage": step.from_stage,
                       "teacher_stage": step.teacher_stage, "gate": step.gate})
    return stages


def _shape(preset: str, part: float) -> dict[str, int]:
    """Width and depth of a model that has ``part`` of the preset's."""
    if part == 1 or preset not in PRESETS:
        return {}
    whole = PRESETS[preset].model
    return {"hidden_size": round(whole.hidden_size * part),
            "num_hidden_layers": max(1, round(whole.num_hidden_layers * part))}


def _rounded(minutes: float) -> float:
    return max(0.001, round(minutes, 3))
