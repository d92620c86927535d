"""Pipelines as the API reads and shows them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from app.core.lines import GATE_KEYS
from app.core.models import Pipeline, Run
from app.core.rest import CollectingBody, Name, rfc3339
from app.runs.schemas import RunOut


class StageAsked(CollectingBody):
    """One stage; every stage but the first starts from what the one before has made."""

    stand_ins: ClassVar = {"stage": ""}

    stage: Annotated[str, Field(max_length=100)]
    config: dict[str, Any] = {}
    dataset_id: str | None = None
    gate: dict[Literal[GATE_KEYS], Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, description="Largest values that let the line go on, such as {\"eval_loss\": 3.0}.")
    devices: Any = "auto"


class PipelineCreate(CollectingBody):
    stand_ins: ClassVar = {"name": "line", "stages": []}

    name: Name
    stages: Annotated[list[StageAsked], Field(min_length=1, max_length=20)]


class PipelineOut(BaseModel):
    """``runs`` in the order they were made; earlier tries of a stage stay in it."""

    id: str
    name: str
    state: Literal["running", "paused", "completed", "failed", "cancelled"]
    stages: list[dict[str, Any]]
    error: dict[str, Any] | None
    created_at: str
    ended_at: str | None
    runs: list[RunOut]

    @classmethod
    def of(cls, pipeline: Pipeline, runs: list[Run]) -> PipelineOut:
        return cls(id=pipeline.id, name=pipeline.name, state=pipeline.state, stages=pipeline.stages,
                   error=pipeline.error, created_at=rfc3339(pipeline.created_at), ended_at=rfc3339(pipeline.ended_at),
                   runs=[RunOut.of(r) for r in runs])
