"""Pipelines as the API reads and shows them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from app.core import lines
from app.core.models import Pipeline, Run
from app.core.rest import CollectingBody, Name, rfc3339
from app.runs.schemas import RunOut
from minimind.data.starter import LANGUAGES
from minimind.events import finite

#: a title stands in the name of a run, behind that of its pipeline
Title = Annotated[Name, Field(max_length=60)]


class StageAsked(CollectingBody):
    """One stage; every stage but the first starts from what the one before has made, unless it says otherwise."""

    stand_ins: ClassVar = {"stage": ""}

    stage: Annotated[str, Field(max_length=100)]
    title: Title | None = Field(None, description="What the line calls it, such as Teacher; default: its stage.")
    config: dict[str, Any] = {}
    dataset_id: str | None = None
    from_stage: Annotated[int, Field(strict=True, ge=-1, le=100)] | None = Field(
        None, description="Position of an earlier stage, counted from 0, whose last checkpoint it starts from; -1: "
                          "random weights. Default: the stage before.")
    teacher_stage: Annotated[int, Field(strict=True, ge=0, le=100)] | None = Field(
        None, description="For the stage distill: position of the earlier stage whose last checkpoint teaches.")
    gate: dict[Literal[tuple(lines.GATES)], Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, description="Bounds that let the line go on: the largest eval_loss or loss, the smallest "
                          "reward_accuracy (of the stage dpo), such as {\"eval_loss\": 3.0}.")
    devices: Any = "auto"


class PipelineCreate(CollectingBody):
    """Stages, or the name of a recipe that has them (``GET /recipes``) with what it is to be made of."""

    name: Name | None = Field(None, description="Required with stages; a recipe has one of its own.")
    stages: Annotated[list[StageAsked], Field(min_length=1, max_length=20)] | None = None
    recipe: Annotated[str, Field(max_length=100, examples=["chat_preference"])] | None = None
    minutes: Annotated[float, Field(ge=0.1, le=60 * 24 * 60, allow_inf_nan=False)] | None = Field(
        None, description="Of a recipe: training time of all stages together.")
    preset: Annotated[str, Field(max_length=100)] | None = Field(None, description="Of a recipe: size of the model.")
    languages: Annotated[list[Literal[LANGUAGES]], Field(min_length=1, max_length=len(LANGUAGES))] | None = Field(
        None, description="Of a recipe: languages of its world; default: as many as the time allows.")
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = Field(
        None, description="Of a recipe: seed of the world and of the training; default: 42.")


class RecipeStageOut(BaseModel):
    """``share``: part of the minutes; ``from_stage`` and ``teacher_stage`` as in ``POST /pipelines``."""

    stage: str
    title: str | None
    share: float
    config: dict[str, Any]
    from_stage: int | None
    teacher_stage: int | None
    gate: dict[str, float] | None


class RecipeOut(BaseModel):
    """A line that runs unattended: ``POST /pipelines`` with its ``name`` as ``recipe`` starts it."""

    name: str
    title: str
    gives: str
    minutes: float
    preset: str
    stages: list[RecipeStageOut]


class PipelineOut(BaseModel):
    """``runs`` in the order they were made; earlier tries of a stage stay in it. ``measured``: for each stage what its
    gate saw, by the gate's keys; empty until it has completed."""

    id: str
    name: str
    state: Literal["running", "paused", "completed", "failed", "cancelled"]
    stages: list[dict[str, Any]]
    measured: list[dict[str, float | None]]
    error: dict[str, Any] | None
    created_at: str
    ended_at: str | None
    runs: list[RunOut]

    @classmethod
    def of(cls, pipeline: Pipeline, runs: list[Run], measured: list[dict]) -> PipelineOut:
        return cls(id=pipeline.id, name=pipeline.name, state=pipeline.state, stages=pipeline.stages,
                   measured=finite(measured), error=pipeline.error,
                   created_at=rfc3339(pipeline.created_at), ended_at=rfc3339(pipeline.ended_at),
                   runs=[RunOut.of(r) for r in runs])
