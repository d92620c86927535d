"""A pipeline as its page shows it: one line of stages, and the run that it is at."""

from __future__ import annotations

from dataclasses import dataclass

from app.core import lines
from app.core.db import Session
from app.core.models import TERMINAL_STATES, Dataset, Pipeline, Run
from app.i18n import gettext
from app.pipelines.schemas import PipelineOut
from app.runs.schemas import RunOut
from app.runs.view import RunView
from app.runs.view import view as run_view

#: a line that takes this long is not the wizard's
MANY_MINUTES = 60


@dataclass(frozen=True)
class Gate:
    """One bound of a stage. ``value`` is what the stage came to, None where it has not ended or measured nothing."""

    key: str
    limit: float
    value: float | None
    has_ended: bool

    @property
    def sign(self) -> str:
        return "≥" if lines.GATES.get(self.key) == "least" else "≤"

    @property
    def is_open(self) -> bool | None:
        """Whether the line may go on; None while nobody knows."""
        return lines.passes(self.key, self.limit, self.value) if self.has_ended else None


@dataclass(frozen=True)
class Station:
    """One stage of the line; ``run`` is its present try, None where the line has not come so far.

    ``before`` is the position that it starts from where that is not the one before it (-1: random weights),
    ``teacher`` the one that teaches it.
    """

    stage: str
    title: str | None
    run: RunOut | None
    gates: list[Gate]
    earlier_tries: int
    before: int | None = None
    teacher: int | None = None


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
    shown = PipelineOut.of(pipeline, runs, lines.measured_by_gates(session, [pipeline], runs)[pipeline.id])
    return PipelineView(shown, state_of(pipeline.state, runs), stations(pipeline, runs, shown.measured),
                        run_view(session, current) if current is not None else None, current is newest,
                        _is_first_model(session, pipeline))


def _is_first_model(session: Session, pipeline: Pipeline) -> bool:
    """Whether all its data is the starter world, and its training short."""
    ids = {stage.get("dataset_id") for stage in pipeline.stages} - {None}
    sources = [d.source.get("kind") for id in ids if (d := session.get(Dataset, id)) is not None]
    minutes = sum(stage["config"].get("max_minutes") or MANY_MINUTES for stage in pipeline.stages
                  if stage["stage"] != "tokenizer")
    return len(sources) == len(ids) and set(sources) <= {"starter"} and minutes < MANY_MINUTES


def stations(pipeline: Pipeline, runs: list[Run], measured: list[dict] | None = None) -> list[Station]:
    """``measured``: what the gates of each stage saw; without it they are shown as asked for."""
    tries = _tries(runs)
    found = []
    for position, stage in enumerate(pipeline.stages):
        own = tries.get(position, [])
        run = own[-1] if own and own[-1].pipeline_position == position else None
        saw = measured[position] if measured else {}
        gates = [Gate(key, limit, saw.get(key), key in saw) for key, limit in (stage.get("gate") or {}).items()]
        title = stage.get("title")
        found.append(Station(stage["stage"], gettext(title) if title else None, RunOut.of(run) if run else None, gates,
                             len(own) - (run is not None), stage.get("from_stage"), stage.get("teacher_stage")))
    return found


def _tries(runs: list[Run]) -> dict[int, list[Run]]:
    """Runs by the place in the line that they were made for. One whose place was taken by a new try has none any more:
    it was made right before that one."""
    found: dict[int, list[Run]] = {}
    waiting: list[Run] = []
    for run in runs:
        waiting.append(run)
        if run.pipeline_position is not None:
            found.setdefault(run.pipeline_position, []).extend(waiting)
            waiting = []
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
