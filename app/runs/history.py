"""How fast earlier runs were: what the forecast of the queue goes by. Rows are read here, sums are made there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select

from app.core.db import Session
from app.core.devices import choose, world_size
from app.core.models import Attempt, Checkpoint, Dataset, Host, Run
from app.runs.forecast import Measured, Plan, measured, seconds
from minimind.config import TrainConfig, parse_api_config
from minimind.errors import MiniMindError
from minimind.preflight import preflight
from minimind.presets import MODEL_FIELDS

#: earlier runs that are looked at, newest first
LOOKED_AT = 60
#: how far a model is followed back from base checkpoint to base checkpoint
GENERATIONS = 4
#: options besides the model's shape that decide what a step costs
STEP_KEYS = ("preset", "vocab_size", "batch_size", "accumulation_steps", "batch_tokens", "max_seq_len", "dtype",
             "attention", "gradient_checkpointing", "use_compile", "optimizer", "lora_rank", "loss_type",
             "teacher_dtype")
#: columns that an estimate needs, of earlier runs and of those to come
COLUMNS = (Run.id, Run.state, Run.stage, Run.config, Run.devices, Run.progress, Run.attempt, Run.dataset_id,
           Run.base_checkpoint_id, Run.teacher_checkpoint_id)


class Kind(NamedTuple):
    """What a run gets: devices of one sort, and how many processes share them."""

    sort: str
    count: int
    ranks: int


def kind_of(request: Any, devices: Sequence[str]) -> Kind:
    return Kind(devices[0].partition(":")[0], len(devices), world_size(request))


class History:
    """Measured speeds of the stages that ``runs`` (rows with ``COLUMNS``) are about to train."""

    def __init__(self, session: Session, runs: Iterable[Any], hosts: Mapping[str, Host], at: float):
        self._session, self._hosts, self._at = session, hosts, at
        wanted = list(runs)
        earlier = self._earlier({run.stage for run in wanted})
        self._models = _models(session, [*wanted, *earlier])
        self._steps: dict[tuple, int | None] = {}
        self._by_speed: dict[tuple, Measured] = {}
        self._by_likeness: dict[tuple, float] = {}
        self._learn(earlier)

    def seconds(self, run: Any, host_id: str, devices: Sequence[str]) -> float | None:
        """How long ``run`` takes from its start on these devices; None where nothing tells."""
        kind = kind_of(run.devices, devices)
        like, speed = self._likeness(run, kind), self._speed_key(run, kind)
        same_s = self._by_likeness.get((*like, host_id), self._by_likeness.get(like))
        known = self._by_speed.get((*speed, host_id), self._by_speed.get(speed))
        return seconds(self.plan(run, kind), known, same_s)

    def plan(self, run: Any, kind: Kind) -> Plan:
        done = int(run.progress.get("step") or 0) if run.attempt else 0
        total = run.progress.get("total_steps") or self._total_steps(run, kind)
        minutes = run.config.get("max_minutes")
        left = None if total is None else max(0, int(total) - done)
        budget_s = None if minutes is None else minutes * 60 * (left / total if total else 1)
        return Plan(left, budget_s, has_begun=done > 0)

    # -- what was ----------------------------------------------------------------------------------------------------

    def _earlier(self, stages: set[str]) -> list[Any]:
        if not stages:
            return []
        # coalesce: not by the index on states, whose ten thousand completed runs would all be sorted
        return list(self._session.execute(
            select(*COLUMNS).where(func.coalesce(Run.state, "").in_(("completed", "running")), Run.stage.in_(stages))
            .order_by(Run.created_at.desc(), Run.id.desc()).limit(LOOKED_AT)))

    def _learn(self, earlier: list[Any]) -> None:
        active: dict[str, float] = {}
        place: dict[str, str] = {}
        for row in self._session.execute(
                select(Attempt.run_id, Attempt.host_id, Attempt.started_at, Attempt.ended_at)
                .where(Attempt.run_id.in_([run.id for run in earlier])).order_by(Attempt.run_id, Attempt.number)):
            active[row.run_id] = active.get(row.run_id, 0.0) + (row.ended_at or self._at) - row.started_at
            place[row.run_id] = row.host_id
        for run in reversed(earlier):  # the newest has the last word
            host = self._hosts.get(place.get(run.id, ""))
            devices = None if host is None else choose(run.devices, cpu_slots=host.cpu_slots,
                                                       gpus=[d["id"] for d in host.devices], taken=set())
            if devices is None:
                continue
            kind, speed = kind_of(run.devices, devices), _speed(run, active[run.id])
            if speed is not None:
                key = self._speed_key(run, kind)
                self._by_speed[key] = self._by_speed[*key, host.id] = speed
            if run.state == "completed":
                like = self._likeness(run, kind)
                self._by_likeness[like] = self._by_likeness[*like, host.id] = active[run.id]

    def _likeness(self, run: Any, kind: Kind) -> tuple:
        config = {k: v for k, v in run.config.items() if v is not None and k != "seed"}
        return (run.stage, json.dumps(config, sort_keys=True), run.dataset_id, self._models.get(run.id), kind)

    def _speed_key(self, run: Any, kind: Kind) -> tuple:
        options = tuple((k, run.config[k]) for k in STEP_KEYS if run.config.get(k) is not None)
        return (run.stage, self._models.get(run.id), options, kind)

    # -- what is asked for -------------------------------------------------------------------------------------------

    def _total_steps(self, run: Any, kind: Kind) -> int | None:
        """Optimizer steps as the request says them, or as a data set with counted tokens implies them."""
        if run.config.get("max_steps") is not None:
            return run.config["max_steps"]
        if run.dataset_id is None or run.config.get("max_minutes") is not None:
            return None
        key = (run.stage, json.dumps(run.config, sort_keys=True), run.dataset_id, kind)
        if key not in self._steps:
            self._steps[key] = self._steps_of_data(run, kind)
        return self._steps[key]

    def _steps_of_data(self, run: Any, kind: Kind) -> int | None:
        dataset = self._session.get(Dataset, run.dataset_id)
        if dataset is None or dataset.tokens is None:
            return None
        try:
            config = parse_api_config(run.stage, run.config)
            if not isinstance(config, TrainConfig):
                return None
            return preflight(config, world_size=kind.ranks, has_gpu=kind.sort == "cuda", own_data=True,
                             dataset_tokens=dataset.tokens).total_steps
        except MiniMindError:
            return None  # written by a version with other options: its length is not known, that is all


def _speed(run: Any, active_s: float) -> Measured | None:
    """Of a run that still goes on, what its last steps say; of one that is done, the whole of it."""
    progress = run.progress
    step = int(progress.get("step") or 0)
    if run.state == "completed":
        return measured(step, active_s, progress.get("tokens"), progress.get("tokens_per_s"))
    left = int(progress.get("total_steps") or 0) - step
    return measured(left, progress["eta_s"]) if left > 0 and progress.get("eta_s") else None


def _models(session: Session, runs: Sequence[Any]) -> dict[str, str]:
    """Run id -> the shape of its model as text: its own options, or those of the run that its weights come from; and
    the teacher that computes beside it."""
    known = {run.id: run for run in runs}
    base_of: dict[str, str] = {}
    for _ in range(GENERATIONS):
        missing = {r.base_checkpoint_id for r in known.values() if r.base_checkpoint_id} - base_of.keys()
        if not missing:
            break
        base_of |= dict(session.execute(select(Checkpoint.id, Checkpoint.run_id)
                                        .where(Checkpoint.id.in_(missing))).all())
        base_of |= dict.fromkeys(missing - base_of.keys(), "")
        older = set(base_of.values()) - known.keys() - {""}
        known |= {row.id: row for row in session.execute(select(*COLUMNS).where(Run.id.in_(older)))}
    taught = {run.id: f", taught by {run.teacher_checkpoint_id}" for run in runs if run.teacher_checkpoint_id}
    return {run.id: _model(run, known, base_of) + taught.get(run.id, "") for run in runs}


def _model(run: Any, known: Mapping[str, Any], base_of: Mapping[str, str]) -> str:
    for _ in range(GENERATIONS):
        older = known.get(base_of.get(run.base_checkpoint_id or "", ""))
        if older is None:
            break
        run = older
    if run.base_checkpoint_id:
        return f"base {run.base_checkpoint_id}"
    shape = {k: run.config[k] for k in ("preset", "vocab_size", *MODEL_FIELDS) if run.config.get(k) is not None}
    return json.dumps(shape, sort_keys=True)
