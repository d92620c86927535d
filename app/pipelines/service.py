"""Lines of stages: checked as a whole before the first one starts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict

from sqlalchemy import select

from app.core import lines
from app.core.db import Session
from app.core.errors import Problems
from app.core.models import Dataset, Pipeline, Run, new_id
from app.core.rest import Paging, get_or_404, hold, newest_first
from app.pipelines.checks import checked_stages
from app.pipelines.recipes import RECIPES, Recipe, line_of
from app.pipelines.schemas import PipelineCreate, PipelineOut, RecipeOut, RecipeStageOut, StageAsked
from app.runs.checks import Checked
from app.runs.preflight import refuse_if_disk_is_too_small
from minimind.presets import PRESETS

#: what only a recipe can be told; stages have it in their config
OF_RECIPE = ("minutes", "preset", "languages", "seed")


def get_pipeline(session: Session, id: str) -> Pipeline:
    return get_or_404(session, Pipeline, id, "pipeline")


def create(session: Session, user_id: str, asked: PipelineCreate) -> Pipeline:
    """Check every stage (all problems of all stages at once), then start the line."""
    stages, problems = _stages(asked)
    for dataset_id in sorted({stage.dataset_id for stage in stages if stage.dataset_id is not None}):
        hold(session, Dataset, dataset_id)  # the later stages have no run yet that would keep it
    found = checked_stages(session, stages, problems)
    for each in found:
        refuse_if_disk_is_too_small(each)
    pipeline = Pipeline(id=new_id(), name=asked.name or _name_of(asked), user_id=user_id, next_seq=1,
                        stages=[_stored(a, c) for a, c in zip(stages, found, strict=True)])
    lines.start(session, pipeline)
    return pipeline


def _stages(asked: PipelineCreate) -> tuple[list[StageAsked], Problems]:
    """The stages that are asked for, themselves or by a recipe, and what is wrong with asking for them so."""
    problems = Problems(asked.problems)
    wrong = {str(problem["field"]).partition(".")[0] for problem in problems}

    def say(field: str, message: str, hint: str) -> None:
        if field not in wrong:  # else its own problem is said already
            problems.say(field, message, hint)

    if asked.recipe is None:
        if asked.name is None:
            say("name", "A pipeline needs a name.", "Give it one line of text.")
        if asked.stages is None and "recipe" not in wrong:
            say("stages", "There is nothing to train.", "Give stages, or the name of a recipe: GET /api/v1/recipes.")
        for name in OF_RECIPE:
            if getattr(asked, name) is not None:
                say(name, f"{name.capitalize()} are asked of a recipe, and there is none.",
                    "Put it into the config of the stages, or give a recipe.")
        return asked.stages or [], problems
    if asked.stages is not None:
        say("stages", "A recipe has stages of its own.", "Leave stages out, or leave recipe out.")
    if asked.recipe not in RECIPES:
        say("recipe", f"There is no recipe named {asked.recipe!r}.", f"Recipes: {', '.join(RECIPES)}.")
        return [], problems
    if asked.preset is not None and asked.preset not in PRESETS:
        say("preset", f"There is no preset named {asked.preset!r}.", f"Presets: {', '.join(PRESETS)}.")
        return [], problems
    given = {name: getattr(asked, name) for name in OF_RECIPE}
    return [StageAsked(**stage) for stage in line_of(RECIPES[asked.recipe], **given)], problems


def _name_of(asked: PipelineCreate) -> str:
    recipe = RECIPES[str(asked.recipe)]
    return f"{recipe.title}, {asked.minutes or recipe.minutes:g} minutes"


def _stored(asked: StageAsked, checked: Checked) -> dict:
    stored = {"stage": asked.stage, "config": checked.config.api_dict(), "dataset_id": asked.dataset_id,
              "gate": asked.gate, "devices": asked.devices}
    optional = {"title": asked.title, "from_stage": asked.from_stage, "teacher_stage": asked.teacher_stage,
                "tokenizer_id": checked.tokenizer.id if checked.tokenizer else None}
    return stored | {name: value for name, value in optional.items() if value is not None}


def recipe_out(recipe: Recipe) -> RecipeOut:
    line = zip(recipe.steps, line_of(recipe), strict=True)
    return RecipeOut(**{name: value for name, value in asdict(recipe).items() if name in RecipeOut.model_fields
                        and name != "stages"},
                     stages=[RecipeStageOut(share=step.share, **stage) for step, stage in line])


def shown(session: Session, pipeline: Pipeline) -> PipelineOut:
    session.flush()
    runs = lines.runs_of(session, pipeline.id)
    return PipelineOut.of(pipeline, runs, lines.measured_by_gates(session, [pipeline], runs)[pipeline.id])


def list_pipelines(session: Session, paging: Paging, state: list[str] | None) -> tuple[list[PipelineOut], str | None]:
    query = select(Pipeline)
    if state:
        query = query.where(Pipeline.state.in_(state))
    rows, cursor = newest_first(session, query, Pipeline, paging)
    found = list(session.scalars(select(Run).where(Run.pipeline_id.in_([p.id for p in rows]))
                                 .order_by(Run.created_at, Run.id)))
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in found:
        runs[run.pipeline_id].append(run)
    measured = lines.measured_by_gates(session, rows, found)
    return [PipelineOut.of(p, runs[p.id], measured[p.id]) for p in rows], cursor
