"""Is this line of stages possible? Each stage by itself, and what the stages ask of each other, all at once."""

from __future__ import annotations

from app.core import lines
from app.core.db import Session
from app.core.errors import Invalid, Problems
from app.pipelines.schemas import StageAsked
from app.runs.checks import Checked, check, keeps_shape
from app.runs.checks import Problems as RunProblems
from minimind.config import STAGES, DistillConfig, DpoConfig, RunConfig, TrainConfig
from minimind.presets import model_config

#: what a run is given as an id, a stage of a line is given as a place in it
FIELD_OF_LINE = {"base_checkpoint_id": "from_stage", "teacher_checkpoint_id": "teacher_stage"}
HINT_OF_LINE = {"from_stage": "Put a stage that trains weights before it, and start from that.",
                "teacher_stage": "Name an earlier stage of this line that trains weights, counted from 0."}


def checked_stages(session: Session, stages: list[StageAsked], problems: list[dict]) -> list[Checked]:
    """Every stage, checked; raises ``Invalid`` with all problems, those found before (``problems``) included."""
    found = [*problems]
    checked: list[Checked] = []
    for position, stage in enumerate(stages):
        own = stage.problems + _places(stages, position) + _gate(stage)
        taught_by = _class_at(stages, stage.teacher_stage) or RunConfig if stage.teacher_stage is not None else None
        try:
            checked.append(check(session, stage=stage.stage, config=stage.config, dataset_id=stage.dataset_id,
                                 devices=stage.devices, problems=own, follows=_follows(stages, position),
                                 taught_by=taught_by))
        except Invalid as error:
            known = {problem["field"] for problem in own}
            others = map(_of_line, (error.problems or [])[len(own):])
            said = [*own, *(problem for problem in others if problem["field"] not in known)]
            found += [{**problem, "field": f"stages.{position}.{problem['field']}"} for problem in said]
    if not found:  # else a wrong place is said already
        found = [problem for position in range(len(stages))
                 for problem in (*_vocabulary(stages, position), *_shape(stages, position, checked))]
    if found:
        raise Invalid.of(found)
    return checked


def _class_at(stages: list[StageAsked], position: int | None) -> type[RunConfig] | None:
    """The configuration of the stage there; None where there is none."""
    known = position is not None and 0 <= position < len(stages)
    return STAGES.get(stages[position].stage) if known else None


def _follows(stages: list[StageAsked], position: int) -> type[RunConfig] | None:
    return _class_at(stages, _starts_from(stages, position))


def _starts_from(stages: list[StageAsked], position: int) -> int:
    return lines.starts_from(position, stages[position].from_stage)


def _trains_weights(stages: list[StageAsked], position: int) -> bool:
    cls = _class_at(stages, position)
    return cls is None or issubclass(cls, TrainConfig)  # one that nobody knows is said already


def _of_line(problem: dict) -> dict:
    """A problem of a run as one of a stage of a line."""
    name = FIELD_OF_LINE.get(problem["field"])
    if name is None:
        return problem
    message = problem["message"].replace("it needs a base checkpoint", "it needs weights to start from")
    return {"field": name, "message": message, "hint": HINT_OF_LINE[name]}


def _places(stages: list[StageAsked], position: int) -> Problems:
    """What is wrong with the places in the line that a stage names."""
    asked, problems = stages[position], Problems()
    for name, what in (("from_stage", "starts from"), ("teacher_stage", "is taught by")):
        place = getattr(asked, name)
        if place is not None and place >= position:
            problems.say(name, f"A stage {what} one that comes before it: {name} is {place}, and this is stage "
                               f"{position}.", "Stages are counted from 0.")
    if asked.from_stage is not None and asked.stage == "tokenizer":
        problems.say("from_stage", "The stage tokenizer starts from nothing.", "Leave from_stage out.")
    if asked.teacher_stage is not None and asked.stage in STAGES:
        if asked.stage != DistillConfig.stage_name:
            problems.say("teacher_stage", f"The stage {asked.stage} has no teacher.", "Leave it out; distill has one.")
        elif asked.teacher_stage < position and not _trains_weights(stages, asked.teacher_stage):
            problems.say("teacher_stage", f"Stage {asked.teacher_stage} trains no weights, so it cannot teach.",
                         HINT_OF_LINE["teacher_stage"])
    return problems


def _gate(stage: StageAsked) -> Problems:
    """What a gate asks for must be measured, or the line would always stop there."""
    problems = Problems()
    for key, bound in (stage.gate or {}).items():
        if stage.stage == "tokenizer":
            problems.say("gate", f"The stage tokenizer does not measure {key}.", "Leave the gate out.")
        elif key == "reward_accuracy" and stage.stage in STAGES and stage.stage != DpoConfig.stage_name:
            problems.say(f"gate.{key}", f"The stage {stage.stage} does not measure {key}.",
                         "dpo does; use eval_loss here.")
        elif key == "reward_accuracy" and not 0 <= bound <= 1:
            problems.say(f"gate.{key}", "The reward_accuracy is a share between 0 and 1, and is asked for at least "
                                        f"{bound:g}.", "90 % is 0.9.")
        elif key != "reward_accuracy" and bound <= 0:
            problems.say(f"gate.{key}", f"A loss is never as small as {bound:g}, and {key} is asked for at most that.",
                         "Ask for more, such as 3.")
        elif key != "loss" and 0 in (stage.config.get("eval_interval"), stage.config.get("eval_fraction")):
            problems.say(f"gate.{key}", f"{key} is measured on held-out data, and this stage evaluates nothing.",
                         "Leave eval_interval and eval_fraction out, or the gate.")
    return problems


def _vocabulary(stages: list[StageAsked], position: int) -> Problems:
    """A teacher's probabilities are those of the entries of its own vocabulary: the student must have the same."""
    teacher, problems = stages[position].teacher_stage, Problems()
    if teacher is not None and _origin(stages, teacher) != _origin(stages, position):
        problems.say(f"stages.{position}.teacher_stage",
                     f"The teacher, stage {teacher}, has another vocabulary than this student.",
                     "Begin the line with a tokenizer stage: models that begin behind it share its vocabulary.")
    return problems


def _shape(stages: list[StageAsked], position: int, checked: list[Checked]) -> list[dict]:
    """Weights keep the shape that the stage which began them gave them: a stage behind it cannot have another."""
    root, found = position, RunProblems()
    while (before := _starts_from(stages, root)) >= 0 and _trains_weights(stages, before):
        root = before
    begun = checked[root].config
    if root == position or not isinstance(begun, TrainConfig):
        return found
    if begun.preset != "auto" or stages[root].dataset_id is None:  # else the machine that trains it chooses
        preset = begun.preset_for(has_gpu=False).name
        keeps_shape(model_config(preset, begun.model_overrides()), f"the model of stage {root}",
                    stages[position].config, found)
    return [{**problem, "field": f"stages.{position}.{problem['field']}"} for problem in found]


def _origin(stages: list[StageAsked], position: int) -> object:
    """Whose vocabulary stage ``position`` speaks: the id of a tokenizer, or the place where it is learnt."""
    before = _starts_from(stages, position)
    own = stages[position].config.get("tokenizer")
    if before >= 0 and _trains_weights(stages, before):
        return _origin(stages, before)
    if own is not None:
        return own
    made_at = before if before >= 0 else lines.tokenizer_stage([s.stage for s in stages], position)
    if made_at is None and stages[position].teacher_stage is not None:
        return _origin(stages, stages[position].teacher_stage)  # new weights without one take the teacher's
    return position if made_at is None else made_at
