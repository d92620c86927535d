"""Is this request for a run possible? Everything that can be known before it starts, all problems at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.core import errors
from app.core.db import Session
from app.core.devices import can_ever_fit, check_request, max_cpu_ranks, world_size
from app.core.errors import Invalid
from app.core.models import Checkpoint, Dataset, Host, TokenizerRow
from app.core.rest import find, is_plain
from minimind.config import (
    ADAPTABLE,
    ADAPTABLE_WITH_EXPERTS,
    STAGES,
    DistillConfig,
    RunConfig,
    TrainConfig,
    parse_api_config,
    stage_class,
)
from minimind.errors import ConfigError, MiniMindError
from minimind.presets import MODEL_FIELDS, ModelConfig
from minimind.run_dir import read_json


@dataclass
class Checked:
    """A request that can run: its validated configuration and what it stands on."""

    config: RunConfig
    dataset: Dataset | None
    base: Checkpoint | None
    tokenizer: TokenizerRow | None
    devices: Any
    #: manifest.json of ``base``
    base_manifest: dict | None = None
    #: of the stage distill alone
    teacher: Checkpoint | None = None
    teacher_manifest: dict | None = None

    @property
    def world_size(self) -> int:
        return world_size(self.devices)


class Problems(errors.Problems):
    """Of a run: they may begin with the name of an option, which keeps its spelling."""

    def say(self, field: str | None, message: str, hint: str | None = None) -> None:
        super().say(field, f"The option {message}" if message[:1].islower() else message, hint)


def check(session: Session, *, stage: str, config: dict, dataset_id: str | None = None,
          base_checkpoint_id: str | None = None, teacher_checkpoint_id: str | None = None, devices: Any = "auto",
          nodes: int = 1, problems: list[dict] | None = None, follows: type[RunConfig] | None = None,
          taught_by: type[RunConfig] | None = None) -> Checked:
    """Check one request; raises ``Invalid`` with every problem, those found before (``problems``) included.

    ``follows`` is the stage before it in a pipeline, which will hand over its checkpoint or tokenizer; ``taught_by`` is
    the stage of its pipeline whose checkpoint will teach it.
    """
    found = Problems(problems or [])
    for field, value in (("stage", stage), ("config", config), ("devices", devices)):
        try:
            plain = is_plain(value)
        except RecursionError:
            raise Invalid.of([*found, {"field": field, "message": f"The value of {field} is nested too deeply.",
                                       "hint": "No option is deeper than a list."}]) from None
        if not plain:  # nothing of it can be quoted in an answer either
            raise Invalid.of([*found, {"field": field, "message": f"There are control characters in {field}, or text "
                                                                  "that is not Unicode.", "hint": "Take them out."}])
    if not stage and all(problem["field"] != "stage" for problem in found):  # a missing one was said before
        found.say("stage", "The stage has no name.", f"Stages are {', '.join(STAGES)}.")
    parsed = _config(stage, config, found) if stage else None
    dataset = _dataset(session, dataset_id, stage, found)
    if dataset_id is not None and config.get("starter") is not None:
        found.say("config.starter", "There is a dataset, and the option starter names a part of the starter corpus.",
                  "Leave one of them out.")
    base = _base(session, base_checkpoint_id, stage, found)
    teacher = _teacher(session, teacher_checkpoint_id, stage, found)
    tokenizer = _tokenizer(session, config.get("tokenizer"), found)
    _devices(session, devices, nodes, stage, found)
    manifest, teacher_manifest = (read_json(Path(c.path) / "manifest.json") if c is not None else None
                                  for c in (base, teacher))
    if base is not None:
        _fits_base(base, manifest, tokenizer, config, found)
    if teacher is not None:
        _can_teach(teacher, base, tokenizer, found)
    _needs(stage, base_checkpoint_id is not None, teacher_checkpoint_id is not None or taught_by is not None, follows,
           found)
    if tokenizer is not None and _hands_over_weights(follows):
        found.say("config.tokenizer", "A stage in a pipeline keeps the tokenizer of the stage before it.",
                  "Leave tokenizer out here, or set it at the first stage.")
    if found or parsed is None:
        raise Invalid.of(found)
    return Checked(parsed, dataset, base, tokenizer, devices, manifest, teacher, teacher_manifest)


def _config(stage: str, config: dict, found: Problems) -> RunConfig | None:
    try:
        return parse_api_config(stage, config)
    except ConfigError as error:
        for problem in error.problems:
            found.say(problem.get("field"), problem["message"], problem.get("hint"))
        return None


def _known_layouts(stage: str) -> tuple[str, ...] | None:
    try:
        return stage_class(stage).layouts
    except ConfigError:
        return None  # said already


def _dataset(session: Session, id: str | None, stage: str, found: Problems) -> Dataset | None:
    if id is None:
        return None
    dataset = find(session, Dataset, id)
    if dataset is None:
        found.say("dataset_id", "There is no dataset of this id.", "GET /api/v1/datasets lists them.")
    elif dataset.state != "ready":
        found.say("dataset_id", f"The dataset {dataset.name} is {dataset.state}.",
                  "Wait until it is ready." if dataset.state == "importing" else "Import it again; its error says why.")
    else:
        layouts = _known_layouts(stage)
        if layouts is not None and dataset.layout not in layouts:
            found.say("dataset_id", f"The stage {stage} cannot learn from a dataset of the layout {dataset.layout}.",
                      f"It learns from: {', '.join(layouts)}.")
    return dataset


def _base(session: Session, id: str | None, stage: str, found: Problems) -> Checkpoint | None:
    if id is not None and stage == "tokenizer":
        found.say("base_checkpoint_id", "The stage tokenizer starts from no checkpoint.", "Leave it out.")
        return None
    return _checkpoint(session, "base_checkpoint_id", id, found)


def _teacher(session: Session, id: str | None, stage: str, found: Problems) -> Checkpoint | None:
    if id is not None and stage in STAGES and stage != DistillConfig.stage_name:
        found.say("teacher_checkpoint_id", f"The stage {stage} has no teacher.", "Leave it out; distill has one.")
        return None
    return _checkpoint(session, "teacher_checkpoint_id", id, found)


def _checkpoint(session: Session, field: str, id: str | None, found: Problems) -> Checkpoint | None:
    """A checkpoint that can be loaded."""
    row = find(session, Checkpoint, id) if id is not None else None
    if id is not None and row is None:
        found.say(field, "There is no checkpoint of this id.", "GET /api/v1/checkpoints lists them.")
    elif row is not None and row.state == "corrupt":
        found.say(field, f"This checkpoint is damaged: {row.problem}", "Choose another one of its run.")
        return None
    elif row is not None and (row.state != "ready" or not Path(row.path, "manifest.json").is_file()):
        found.say(field, "The files of this checkpoint are no longer there.", "Choose another one.")
        return None
    return row


def _needs(stage: str, has_base: bool, has_teacher: bool, follows: type[RunConfig] | None, found: Problems) -> None:
    """Say what the stage cannot be without."""
    if stage in STAGES and STAGES[stage].needs_base and not has_base and not _hands_over_weights(follows):
        found.say("base_checkpoint_id", f"The stage {stage} changes a model that is there already: it needs a base "
                                        "checkpoint.",
                  "Choose a checkpoint; best is one of a fine-tuning." if follows is None else
                  "Put a stage that trains weights before it.")
    if stage == DistillConfig.stage_name and not has_teacher:
        found.say("teacher_checkpoint_id", "The stage distill needs a teacher.",
                  "Choose the checkpoint whose probabilities the student is to learn.")


def _hands_over_weights(stage: type[RunConfig] | None) -> bool:
    return stage is not None and issubclass(stage, TrainConfig)


def _tokenizer(session: Session, id: Any, found: Problems) -> TokenizerRow | None:
    if not isinstance(id, str):
        return None  # none asked for, or refused by the schema
    row = find(session, TokenizerRow, id)
    if row is None:
        found.say("config.tokenizer", "There is no tokenizer of this id.", "GET /api/v1/tokenizers lists them.")
    elif row.state != "ready":
        found.say("config.tokenizer", f"The tokenizer {row.name} is {row.state}.",
                  "Wait until it is ready." if row.state == "training" else "Make it again; its error says why.")
    return row


def _devices(session: Session, devices: Any, nodes: int, stage: str, found: Problems) -> None:
    if nodes != 1:
        found.say("nodes", "A run uses one machine in this version.", "Set nodes to 1.")
    try:
        check_request(devices)
    except MiniMindError as error:
        found.say(error.field or "devices", error.message, error.hint)
        return
    if stage == "tokenizer" and world_size(devices) > 1:
        found.say("devices", "The stage tokenizer runs as one process.", "Ask for one device.")
    hosts = list(session.scalars(select(Host)))
    if hosts and not can_ever_fit(hosts, devices):
        has = "; ".join(f"{h.name}: {h.cpu_slots} CPU cores (at most {max_cpu_ranks(h.cpu_slots)} ranks), "
                        f"{len(h.devices)} GPUs" for h in hosts[:5])
        found.say("devices", "No machine of this studio has these devices.", f"There is {has}.")


def _fits_base(base: Checkpoint, manifest: Any, tokenizer: TokenizerRow | None, config: dict,
               found: Problems) -> None:
    """Weights know one tokenizer and one shape: what the request says besides must be the same."""
    known = base.tokenizer_fingerprint
    if tokenizer is not None and known and tokenizer.fingerprint and tokenizer.fingerprint != known:
        found.say("config.tokenizer", "The base checkpoint was trained with another tokenizer; its weights mean "
                                      "nothing with this one.",
                  "Leave tokenizer out to keep the checkpoint's own, or start without a base checkpoint.")
    shape = manifest.get("model") if isinstance(manifest, dict) else None
    if isinstance(shape, dict):
        keeps_shape(ModelConfig.from_dict(shape), "the base checkpoint", config, found)


def keeps_shape(model: ModelConfig, whose: str, config: dict, found: Problems) -> None:
    """Say what ``config`` asks of weights that have another shape already; ``whose``: such as "the base checkpoint"."""
    for name in MODEL_FIELDS:
        has = getattr(model, name)
        if config.get(name) not in (None, False, has):  # use_moe off asks nothing
            found.say(f"config.{name}", f"{name} of {whose} is {has} and cannot be changed.",
                      f"Leave {name} out, or start with random weights.")
    targets = config.get("lora_targets")
    if model.use_moe and isinstance(targets, list) and set(targets) != set(ADAPTABLE):
        beside = [name for name in ADAPTABLE if name in targets and name not in ADAPTABLE_WITH_EXPERTS]
        if beside:
            found.say("config.lora_targets", f"{whose[:1].upper()}{whose[1:]} has experts where {', '.join(beside)} "
                                             "would be.",
                      f"Beside experts there are no adapters: choose among {', '.join(ADAPTABLE_WITH_EXPERTS)}.")


def _can_teach(teacher: Checkpoint, base: Checkpoint | None, tokenizer: TokenizerRow | None, found: Problems) -> None:
    """A teacher's probabilities are those of the entries of its own vocabulary."""
    student, of = (base.tokenizer_fingerprint, "base checkpoint") if base is not None else \
        (tokenizer.fingerprint, "tokenizer") if tokenizer is not None else (None, "")
    if student and teacher.tokenizer_fingerprint and student != teacher.tokenizer_fingerprint:
        found.say("teacher_checkpoint_id", f"The teacher was trained with another tokenizer than the student's {of}: "
                                           "their probabilities are not those of the same tokens.",
                  "Choose a teacher with the student's tokenizer. A student from random weights takes the teacher's, "
                  "unless another one is chosen.")
