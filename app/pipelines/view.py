"""A pipeline as its page shows it: one line of stages, and the run that it is at."""

from __future__ import annotations

from dataclasses import dataclass

from app.core import lines
from app.core.db import Session
from app.core.models import TERMINAL_STATES, Dataset, Pipeline, Run
from app.pipelines.schemas import PipelineOut
from app.runs.schemas import RunOut
from app.runs.view import RunView
from app.runs.view import view as run_view

#: a line that takes this long is not the wizard's
MANY_MINUTES = 60


@dataclass(frozen=True)
class Station:
    """One stage of the line; ``run`` is its present try, None where the line has not come so far."""

    stage: str
    run: RunOut | None
    gate: dict | None
    earlier_tries: int


@dataclass(frozen=True)
class PipelineView:
    pipeline: PipelineOut
    state: str
    stations: list[Station]
    current: RunView | None
    is_newest_shown: bool
    #: its data are the starter world, and its time is short
    is_first_model: bool

    @property
    def has_ended(self) -> bool:
        return self.pipeline.state in TERMINAL_STATES

    @property
    def done(self) -> int:
        return sum(s.run is not None and s.run.state == "completed" for s in self.stations)


def view(session: Session, pipeline: Pipeline, shown_run: str | None = None) -> PipelineView:
    """``shown_run``: id of the run whose curves are looked at; else the one that the line is at."""
    runs = lines.runs_of(session, pipeline.id)
    newest = _at(runs)
    current = next((r for r in runs if r.id == shown_run), newest)
    return PipelineView(PipelineOut.of(pipeline, runs), state_of(pipeline.state, runs), stations(pipeline, runs),
                        run_view(session, current) if current is not None else None, current is newest,
                        _is_first_model(session, pipeline))


def _is_first_model(session: Session, pipeline: Pipeline) -> bool:
    ids = [stage.get("dataset_id") for stage in pipeline.stages]
    sources = [d.source.get("kind") for id in ids if id and (d := session.get(Dataset, id)) is not None]
    minutes = sum(stage["config"].get("max_minutes") or MANY_MINUTES for stage in pipeline.stages)
    return len(sources) == len(ids) and set(sources) == {"starter"} and minutes < MANY_MINUTES


def stations(pipeline: Pipeline, runs: list[Run]) -> list[Station]:
    found = []
    for position, stage in enumerate(pipeline.stages):
        at_place = [r for r in runs if r.pipeline_position == position]
        found.append(Station(stage["stage"], RunOut.of(at_place[-1]) if at_place else None, stage.get("gate"),
                             sum(r.pipeline_position is None and r.stage == stage["stage"] for r in runs)))
    return found


def _at(runs: list[Run]) -> Run | None:
    placed = [r for r in runs if r.pipeline_position is not None]
    return max(placed, key=lambda r: r.pipeline_position or 0, default=None)


def state_of(state: str, runs: list[Run]) -> str:
    """What the line does at this moment: a wish is said as a wish while its run still obeys."""
    live = next((r for r in runs if r.state not in TERMINAL_STATES), None)
    if state == "paused" and live is not None and live.state not in ("paused", "queued"):
        return "pausing"
    return "cancelling" if state == "cancelled" and live is not None else state
