"""A run as its pages show it: what, from what, how far, how long, and what can be done with it now."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from app.checkpoints.queries import SavingCost, of_run, saving_cost
from app.checkpoints.schemas import CheckpointOut
from app.core.db import Session, now
from app.core.models import (
    TERMINAL_STATES,
    Attempt,
    Checkpoint,
    Dataset,
    DeviceLease,
    Host,
    Pipeline,
    Run,
    TokenizerRow,
)
from app.core.settings import get_settings
from app.i18n import gettext as _
from app.runs import attempts, report
from app.runs.explain import Explanation, explain
from app.runs.schemas import AttemptOut, RunOut
from minimind.config import STAGES, LoraConfig, TrainConfig, parse_api_config, stage_schema
from minimind.errors import MiniMindError
from minimind.preflight import adapter_parameters
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir, read_json

CHECKPOINTS_SHOWN = 50
#: ``Run.stage`` of what was brought in as files: nothing was trained
IMPORTED = "import"


@dataclass(frozen=True)
class Link:
    """Something that the run stands on; ``href`` is None where there is no page for it (any more)."""

    text: str
    href: str | None = None


@dataclass(frozen=True)
class Phase:
    """One step of the way to a trained model. ``status`` is done, now or ahead."""

    name: str
    label: str
    status: str
    done: float | None = None
    total: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Device:
    name: str
    host: str
    load: str | None


@dataclass(frozen=True)
class RunView:
    run: RunOut
    data: Link
    base: Link | None
    teacher: Link | None
    tokenizer: Link | None
    pipeline: Link | None
    parent: Link | None
    parameters: int | None
    #: with adapters alone far fewer
    trainable_parameters: int | None
    #: that one token passes: fewer with a mixture of experts
    active_parameters: int | None
    sequence_length: int | None
    phases: list[Phase]
    devices: list[Device]
    attempts: list[AttemptOut]
    checkpoints: list[CheckpointOut]
    more_checkpoints: int
    saving: SavingCost | None
    #: seconds in which processes worked on it, pauses left out
    active_s: float
    changed: dict[str, object]
    numbers: list[report.Number]
    choices: list[report.Choice]
    data_report: dict | None
    warnings: report.Warnings
    #: what its stage does; None for one that this version does not know
    about: Explanation | None

    @property
    def has_ended(self) -> bool:
        return self.run.state in TERMINAL_STATES

    @property
    def waits_for(self) -> str | None:
        return self.run.waiting_for

    @property
    def latest_checkpoint(self) -> CheckpointOut | None:
        """What chat answers with: a later attempt supersedes what earlier ones saved, also at a higher step."""
        usable = (c for c in self.checkpoints if c.state == "ready")
        return max(usable, key=lambda c: (c.attempt, c.step), default=None)

    @property
    def is_indeterminate(self) -> bool:
        """Something is going on that has no end in sight yet."""
        return not self.has_ended and self.run.state not in ("queued", "paused") and not self.run.progress.total_steps


def view(session: Session, run: Run) -> RunView:
    shown = RunOut.of(run)
    resolved = read_json(RunDir(get_settings().runs_dir / run.id).resolved) or {}
    model = ModelConfig.from_dict(resolved["model"]) if "model" in resolved else None
    checkpoints = of_run(session, run.id)
    newest = checkpoints[-CHECKPOINTS_SHOWN:]
    active_s = _active_seconds(session, run)
    return RunView(
        run=shown, data=_data(session, run), base=_checkpoint(session, run.base_checkpoint_id),
        teacher=_checkpoint(session, run.teacher_checkpoint_id), tokenizer=_tokenizer(session, run),
        pipeline=_pipeline(session, run), parent=_parent(session, run),
        parameters=model.num_parameters() if model is not None else None,
        trainable_parameters=_trainable(run, model),
        active_parameters=model.num_active_parameters() if model is not None else None,
        sequence_length=resolved.get("max_seq_len"), phases=phases(run), devices=_devices(session, run),
        attempts=attempts.of_run(session, run.id),
        checkpoints=[CheckpointOut.of(c) for c in newest], more_checkpoints=len(checkpoints) - len(newest),
        saving=saving_cost(session, run.id, active_s), active_s=active_s, changed=changed_options(run),
        numbers=report.numbers(session, run), choices=report.choices(resolved), data_report=report.data(session, run),
        warnings=report.warnings(session, run), about=explain(run.stage))


def _data(session: Session, run: Run) -> Link:
    dataset = session.get(Dataset, run.dataset_id) if run.dataset_id else None
    return Link(dataset.name, f"/datasets/{dataset.id}") if dataset is not None else Link(_("Starter corpus"))


def _checkpoint(session: Session, id: str | None) -> Link | None:
    """What the run starts from, or who teaches it."""
    if id is None:
        return None
    row = session.get(Checkpoint, id)
    origin = session.get(Run, row.run_id) if row is not None else None
    if row is None or origin is None:
        return Link(_("a checkpoint that was deleted"))
    return Link(_("%(name)s, step %(step)s") % {"name": origin.name, "step": f"{row.step:,}"}, f"/runs/{origin.id}")


def _tokenizer(session: Session, run: Run) -> Link | None:
    row = session.get(TokenizerRow, run.tokenizer_id) if run.tokenizer_id else None
    return None if row is None else Link(row.name)


def _pipeline(session: Session, run: Run) -> Link | None:
    line = session.get(Pipeline, run.pipeline_id) if run.pipeline_id else None
    return None if line is None else Link(line.name, f"/pipelines/{line.id}")


def _parent(session: Session, run: Run) -> Link | None:
    if run.parent_id is None:
        return None
    parent = session.get(Run, run.parent_id)
    return Link(_("a run that was deleted")) if parent is None else Link(parent.name, f"/runs/{parent.id}")


def _trainable(run: Run, model: ModelConfig | None) -> int | None:
    if model is None or run.stage != LoraConfig.stage_name:
        return None if model is None else model.num_parameters()
    try:
        return adapter_parameters(parse_api_config(run.stage, run.config), model)
    except MiniMindError:
        return None  # of another version


def phase_labels() -> dict[str, str]:
    return {"import": _("Read the data"), "tokenizer": _("Learn a vocabulary"), "tokenize": _("Turn text into tokens"),
            "compile": _("Build the model"), "train": _("Train"), "eval": _("Evaluate"), "save": _("Save")}


def phases(run: Run) -> list[Phase]:
    """The way from data to weights; evaluation and saving belong to training."""
    if run.stage == IMPORTED:
        return []
    names = ["import", "tokenizer"]
    if issubclass(STAGES.get(run.stage, TrainConfig), TrainConfig):
        has_tokenizer = bool(run.base_checkpoint_id or run.tokenizer_id or run.teacher_checkpoint_id)
        names = ["import", *([] if has_tokenizer else ["tokenizer"]), "tokenize", "compile", "train"]
    progress = run.progress
    current = {"eval": "train", "save": "train"}.get(progress.get("phase"), progress.get("phase"))
    if run.state == "completed" or current == "train" and current in names:
        at = len(names) - 1
    else:
        at = names.index(current) if current in names else -1
    works = run.state in ("starting", "running", "pausing", "cancelling", "recovering")
    labels, found = phase_labels(), []
    for place, name in enumerate(names):
        is_at = place == at and run.state not in TERMINAL_STATES
        status = "done" if place < at or run.state == "completed" else "now" if is_at else "ahead"
        numbers = {}
        if place == at and works and name != "train":
            numbers = {"done": progress.get("phase_done"), "total": progress.get("phase_total"),
                       "unit": progress.get("phase_unit") or ""}
        found.append(Phase(name, labels[name], status, **numbers))
    return found


def _devices(session: Session, run: Run) -> list[Device]:
    leases = session.scalars(select(DeviceLease).where(DeviceLease.run_id == run.id).order_by(DeviceLease.device))
    found = []
    for lease in leases:
        host = session.get(Host, lease.host_id)
        found.append(Device(lease.device, host.name if host else lease.host_id, _load(host, lease.device)))
    return found


def _load(host: Host | None, device: str) -> str | None:
    """How busy the device is: of a CPU slot the whole machine's figure, since a process moves between cores."""
    load = host.load if host is not None else None
    if not load:
        return None
    if device.startswith("cpu"):
        return None if load.get("cpu_percent") is None else f"{load['cpu_percent']:.0f} %"
    gpu = next((g for g in load.get("gpus", []) if g["device"] == device), None)
    if gpu is None:
        return None
    return f"{gpu['percent']:.0f} %, {gpu['memory_used_bytes'] / 1e9:.1f} / {gpu['memory_total_bytes'] / 1e9:.1f} GB"


def _active_seconds(session: Session, run: Run) -> float:
    at = now(session)
    return sum((attempt.ended_at or at) - attempt.started_at
               for attempt in session.scalars(select(Attempt).where(Attempt.run_id == run.id)))


def changed_options(run: Run) -> dict[str, object]:
    """Options that are not at their default, as the run was asked for."""
    if run.stage not in STAGES:
        return dict(run.config)
    properties = stage_schema(run.stage)["schema"]["properties"]
    return {key: value for key, value in run.config.items()
            if value is not None and key in properties and value != properties[key].get("default")}
