"""Runs as the API reads and shows them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from app.core import sparkline
from app.core.models import Run
from app.core.rest import CollectingBody, Name, Priority, RequestBody, Tag, Text, rfc3339
from app.runs.order import Direction
from app.runs.outlook import Prospect, prospect
from minimind.events import finite

PROGRESS_KEYS = ("step", "total_steps", "tokens", "loss", "eval_loss", "tokens_per_s", "eta_s", "phase", "phase_done",
                 "phase_total", "phase_unit")
Tags = Annotated[list[Tag], Field(max_length=20)]
State = Literal["queued", "starting", "running", "pausing", "paused", "recovering", "cancelling", "completed",
                "failed", "cancelled"]


class RunCreate(CollectingBody):
    """What to train. ``config`` has the keys that ``GET /stages`` lists for the stage."""

    stand_ins: ClassVar = {"stage": ""}

    stage: Annotated[str, Field(max_length=100, examples=["pretrain"])]
    name: Name | None = None
    config: Annotated[dict[str, Any], Field(examples=[{"preset": "tiny-cpu", "max_steps": 60}])] = {}
    dataset_id: str | None = Field(None, description="None: the starter corpus, sized by max_minutes.")
    base_checkpoint_id: str | None = Field(None, description="Checkpoint whose weights the run starts from.")
    teacher_checkpoint_id: str | None = Field(None, description="For the stage distill: the checkpoint that teaches.")
    devices: Any = Field("auto", description='"auto", {"kind": "cpu" or "cuda", "count": ranks} or a list of devices.')
    nodes: Annotated[int, Field(strict=True)] = 1
    priority: Priority = Field(0, description="Larger goes first.")
    tags: Tags = []
    notes: Text = ""


class RunPatch(RequestBody):
    name: Name | None = None
    notes: Text | None = None
    tags: Tags | None = None
    priority: Priority | None = None


class Resume(RequestBody):
    allow_changes: Annotated[bool, Field(strict=True)] = Field(
        False, description="Accept another world size or changed data; the curve is then not bitwise the same.")


class Cancel(RequestBody):
    save: Annotated[bool, Field(strict=True)] = Field(False, description="Save a last checkpoint before stopping.")


class Move(RequestBody):
    to: Direction = Field(description="up and down: past one neighbour; first and last: past all of them.")


class Clone(RequestBody):
    """What the copy changes: given keys of ``config`` replace those of the original."""

    name: Name | None = None
    config: dict[str, Any] = {}
    priority: Priority | None = None


class Progress(BaseModel):
    """How far a run is; ``phase_done`` of ``phase_total`` ``phase_unit`` (rows, steps, ...) of its present phase."""

    step: int | None = None
    total_steps: int | None = None
    tokens: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    phase: str | None = None
    phase_done: int | float | None = None
    phase_total: int | float | None = None
    phase_unit: str | None = None


class RunOut(BaseModel):
    """A run; times are RFC 3339 in UTC. ``sparkline`` is its loss as ``[step, loss]``, 30 points at most, the newest
    last.

    ``waiting_for`` says why a queued run has not begun. ``predicted_start_at`` and ``predicted_end_at`` follow from the
    order of the queue and measured speeds; null where nobody knows. All three are null in the list that the topic
    ``runs`` sends.
    """

    id: str
    name: str
    notes: str
    tags: list[str]
    stage: str
    state: State
    desired: Literal["run", "pause", "cancel"]
    reason: str | None
    attempt: int
    progress: Progress
    sparkline: list[tuple[int, float]]
    config: dict[str, Any]
    devices: Any
    nodes: int
    priority: int
    dataset_id: str | None
    base_checkpoint_id: str | None
    teacher_checkpoint_id: str | None
    tokenizer_id: str | None
    pipeline_id: str | None
    pipeline_position: int | None
    parent_id: str | None
    allow_changes: bool
    created_at: str
    started_at: str | None
    ended_at: str | None
    updated_at: str
    error: dict[str, Any] | None
    waiting_for: str | None
    predicted_start_at: str | None
    predicted_end_at: str | None

    @classmethod
    def of(cls, run: Run, ahead: Prospect | None = None) -> RunOut:
        """``ahead``: what lies before it, where that is known already (or ``NOTHING`` where it is not wanted)."""
        ahead = prospect(run) if ahead is None else ahead
        progress = finite({key: run.progress.get(key) for key in PROGRESS_KEYS})
        plain = {name: getattr(run, name) for name in (
            "id", "name", "notes", "tags", "stage", "state", "desired", "reason", "attempt", "config", "devices",
            "nodes", "priority", "dataset_id", "base_checkpoint_id", "teacher_checkpoint_id", "tokenizer_id",
            "pipeline_id", "pipeline_position", "parent_id", "allow_changes")}
        times = {name: rfc3339(getattr(run, name)) for name in ("created_at", "started_at", "ended_at", "updated_at")}
        return cls(**plain, **times, progress=Progress(**progress), error=_error(run.error),
                   sparkline=sparkline.shown(run.progress), waiting_for=ahead.waiting_for,
                   predicted_start_at=_whole_second(ahead.start), predicted_end_at=_whole_second(ahead.end))


def _whole_second(t: float | None) -> str | None:
    """A prediction is no more exact than that."""
    return None if t is None else rfc3339(round(t))


def _error(error: dict | None) -> dict | None:
    """``{class, message, hint}`` with every key present."""
    return None if error is None else {"class": None, "message": "", "hint": None} | finite(error)


class AttemptOut(BaseModel):
    """One start of a run. ``outcome`` is what it came to: ``lost`` while its holder is silent, ``handed back`` where a
    machine stopped and saved it, ``interrupted`` where an error ended it and the run did not fail, ``ended`` where
    nothing was written down. ``error`` says what ended one that failed or was interrupted."""

    number: int
    state: Literal["open", "lost", "closed"]
    outcome: Literal["running", "lost", "completed", "paused", "handed back", "stopped", "failed", "interrupted",
                     "ended"]
    host_id: str
    host: str
    devices: list[str] | None
    world_size: int | None
    resumed_from_step: int | None
    started_at: str
    ended_at: str | None
    error: dict[str, Any] | None


class EventOut(BaseModel):
    """Something that happened; ``t`` is unix seconds, ``seq`` is dense within its run or pipeline."""

    seq: int
    attempt: int
    t: float
    type: str
    step: int
    tokens: int
    data: dict[str, Any]


class SampleOut(BaseModel):
    """What the model said to one of the fixed prompts at ``step``."""

    step: int
    tokens: int
    attempt: int
    t: float
    prompt: str
    text: str
    prompt_index: int | None


class LogLine(BaseModel):
    attempt: int
    text: str


class LogPage(BaseModel):
    """Lines of one rank; send ``next_cursor`` as ``after`` to go on, also while the log still grows."""

    items: list[LogLine]
    next_cursor: str | None


class Series(BaseModel):
    """``y`` is null where the number was not finite; ``total_points`` counts the range before it was thinned.

    Only where ``smooth`` = w was asked for: ``smooth`` is the moving average at each point, null where ``y`` is.
    ``smooth_points`` = k counts the finite points of the curve up to the last shown one and ``smooth_last`` = m is
    their average, so that a client goes on with a new value v by itself:
    m = ((1 - w) v + w (1 - w^k) m) / (1 - w^(k+1)).
    """

    x: list[float | int]
    y: list[float | None]
    total_points: int
    smooth: list[float | None] | None = None
    smooth_points: int | None = None
    smooth_last: float | None = None


class MetricsOut(BaseModel):
    x: Literal["step", "tokens", "time", "flops"]
    series: dict[str, Series]
