"""What the address of the new-run form says: prefilled values, each checked kindly.

A link that is old or wrong never makes an error page; what of it could not be used is said on the form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from app.core.db import Session
from app.core.devices import max_cpu_ranks
from app.core.models import Checkpoint, Dataset, Host, Run, TokenizerRow
from app.core.rest import find
from app.i18n import gettext as _
from app.rendering import compact_number, stage_word
from app.runs.form import BUDGETS, Choice, StageForm, budget_of, preset_choices, stage_form, text_of
from minimind.config import STAGES

DEFAULT_STAGE = "pretrain"
#: the newest of each that a list offers; a linked older one is added
OFFERED = 300
MAX_CHARS, MAX_CHARS_OF = 500, {"notes": 20_000, "tags": 1200}
#: notes longer than this (as scripts count) do not stand in the address that the form keeps: run-config.js
LONGEST_NOTES = 1000
#: parameters of the address that are no options of the stage
PLACES = ("stage", "name", "dataset_id", "base_checkpoint_id", "teacher_checkpoint_id", "devices", "ranks", "priority",
          "tags", "notes", "budget", "clone", "edited", "part")


@dataclass
class NewRun:
    """The form as it is first shown."""

    form: StageForm
    stages: list[Choice]
    name: str = ""
    tags: str = ""
    notes: str = ""
    priority: str = "0"
    dataset_id: str = ""
    base_checkpoint_id: str = ""
    teacher_checkpoint_id: str = ""
    devices: str = "auto"
    ranks: str = "1"
    budget: str = "passes"
    datasets: list[Choice] = field(default_factory=list)
    #: by run: its name, then its steps
    bases: list[tuple[str, list[Choice]]] = field(default_factory=list)
    teachers: list[tuple[str, list[Choice]]] = field(default_factory=list)
    device_choices: list[Choice] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    clone: Choice | None = None
    #: what of the link could not be used, in words
    said: list[str] = field(default_factory=list)


def new_run(session: Session, query: Mapping[str, str]) -> NewRun:
    """Read the address. ``clone`` fills in another run's values, unless ``edited`` says that the address has them."""
    asked = {key: _clean(value, MAX_CHARS_OF.get(key, MAX_CHARS)) for key, value in query.items()}
    said: list[str] = []
    original = _original(session, asked, said)
    if original is not None and not asked.get("edited"):
        asked = _values_of(original) | asked
    elif original is not None and "notes" not in asked and _script_length(original.notes) > LONGEST_NOTES:
        asked["notes"] = original.notes
    stage = asked.get("stage") or DEFAULT_STAGE
    if stage not in STAGES:
        said.append(_("There is no stage %(name)s; this is %(stage)s.") % {
            "name": _quoted(stage), "stage": stage_word(DEFAULT_STAGE)})
        stage = DEFAULT_STAGE
    tokenizers = _tokenizers(session, asked.get("tokenizer", ""), said)
    form = stage_form(stage, {k: v for k, v in asked.items() if k not in PLACES}, tokenizers)
    if asked.get("preset", "auto") not in {"", *(c.value for c in preset_choices())}:
        said.append(_("There is no preset %(name)s; the studio chooses one.") % {"name": _quoted(asked["preset"])})
    budget = asked.get("budget", "")
    found = NewRun(
        form=form, stages=[Choice(s, stage_word(s), c.summary) for s, c in STAGES.items()], said=said,
        name=asked.get("name", "")[:200], tags=asked.get("tags", ""), notes=asked.get("notes", ""),
        priority=asked.get("priority") or "0", budget=budget if budget in BUDGETS else budget_of(asked),
        clone=Choice(original.id, original.name) if original is not None else None)
    found.datasets, found.dataset_id = _datasets(session, form, asked.get("dataset_id", ""), said)
    if form.trains_weights:
        missing = _("The base checkpoint of this link is not there (any more).")
        found.bases, found.base_checkpoint_id = _checkpoints(
            session, asked.get("base_checkpoint_id", ""), said, missing)
    if form.needs_teacher:
        missing = _("The teacher of this link is not there (any more).")
        found.teachers, found.teacher_checkpoint_id = _checkpoints(
            session, asked.get("teacher_checkpoint_id", ""), said, missing)
    _devices(session, found, asked)
    return found


def _clean(text: str, most: int) -> str:
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and ord(c) != 127))[:most].strip()


def _script_length(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _quoted(text: str) -> str:
    return f"“{text[:60]}”"


def _original(session: Session, asked: Mapping[str, str], said: list[str]) -> Run | None:
    if not asked.get("clone"):
        return None
    run = find(session, Run, asked["clone"])
    if run is None:
        said.append(_("The run to copy is not there (any more). These are the usual values."))
    return run


def _values_of(run: Run) -> dict[str, str]:
    """Everything that made this run what it is, as an address would say it."""
    config = {k: text_of(v) for k, v in run.config.items() if v is not None and k not in PLACES}
    if run.tokenizer_id and not run.base_checkpoint_id:  # as the API's own clone does: the same words for the same text
        config.setdefault("tokenizer", run.tokenizer_id)
    devices, ranks = devices_text(run.devices)
    return config | {
        "stage": run.stage, "name": _("%(name)s (copy)") % {"name": run.name[:190]}, "tags": ", ".join(run.tags),
        "notes": run.notes, "dataset_id": run.dataset_id or "", "base_checkpoint_id": run.base_checkpoint_id or "",
        "teacher_checkpoint_id": run.teacher_checkpoint_id or "", "devices": devices, "ranks": ranks,
        "priority": str(run.priority)}


def devices_text(devices: Any) -> tuple[str, str]:
    """``devices`` of the API as the form's two controls."""
    if isinstance(devices, dict):
        return str(devices.get("kind", "auto")), str(devices.get("count", 1))
    return (",".join(map(str, devices)), "1") if isinstance(devices, list) else ("auto", "1")


def _tokenizers(session: Session, wanted: str, said: list[str]) -> list[Choice]:
    rows = list(session.scalars(select(TokenizerRow).where(TokenizerRow.state == "ready").order_by(
        TokenizerRow.created_at.desc()).limit(OFFERED)))
    if wanted and wanted not in {r.id for r in rows}:
        row = find(session, TokenizerRow, wanted)
        if row is not None and row.state == "ready":
            rows.append(row)
        else:
            said.append(_("The tokenizer of this link is not there (any more)."))
    return [Choice(r.id, _("%(name)s · %(count)s entries") % {
        "name": _short(r.name), "count": f"{r.vocab_size or 0:,}"}) for r in rows]


def _datasets(session: Session, form: StageForm, wanted: str, said: list[str]) -> tuple[list[Choice], str]:
    rows = list(session.scalars(select(Dataset).where(Dataset.state == "ready", Dataset.layout.in_(form.layouts))
                                .order_by(Dataset.created_at.desc()).limit(OFFERED)))
    if wanted and wanted not in {r.id for r in rows}:
        row = find(session, Dataset, wanted)
        if row is not None and row.state == "ready" and row.layout in form.layouts:
            rows.append(row)
        else:
            said.append(_unfit(row, form))
            wanted = ""
    return [Choice(r.id, " · ".join(filter(None, (
        _short(r.name), _("%(count)s rows") % {"count": compact_number(r.rows)} if r.rows is not None else "",
        _("%(count)s tokens") % {"count": compact_number(r.tokens)} if r.tokens is not None else "", r.layout))))
        for r in rows], wanted


def _unfit(row: Dataset | None, form: StageForm) -> str:
    """Why a linked dataset is not chosen."""
    if row is None:
        return _("The dataset of this link is not there (any more). The starter corpus is chosen.")
    if row.state != "ready":
        is_coming = row.state == "importing"
        return (_("The dataset %(name)s is still being imported. The starter corpus is chosen.") if is_coming else
                _("The dataset %(name)s could not be imported. The starter corpus is chosen.")) % {"name": row.name}
    return _("The dataset %(name)s has the layout %(layout)s; %(stage)s learns from %(layouts)s. The starter corpus is "
             "chosen.") % {"name": row.name, "layout": row.layout, "stage": stage_word(form.stage),
                           "layouts": ", ".join(form.layouts)}


def _checkpoints(session: Session, wanted: str, said: list[str],
                 missing: str) -> tuple[list[tuple[str, list[Choice]]], str]:
    """Checkpoints by run, newest run first, highest step first; ``missing`` is said of a linked one that is gone."""
    query = select(Checkpoint, Run).join(Run, Run.id == Checkpoint.run_id).where(Checkpoint.state == "ready")
    rows = list(session.execute(query.order_by(
        Run.created_at.desc(), Run.id, Checkpoint.attempt.desc(), Checkpoint.step.desc()).limit(OFFERED)).all())
    if wanted and wanted not in {c.id for c, _run in rows}:
        more = session.execute(query.where(Checkpoint.id == wanted)).all() if find(session, Checkpoint, wanted) else []
        if more:
            rows += more
        else:
            said.append(missing)
            wanted = ""
    groups: dict[str, tuple[str, list[Choice]]] = {}
    for checkpoint, run in rows:
        title = f"{_short(run.name)} · {stage_word(run.stage)}"
        label = _("step %(step)s") % {"step": f"{checkpoint.step:,}"}
        loss = checkpoint.loss if checkpoint.eval_loss is None else checkpoint.eval_loss
        if loss is not None:
            label = _("%(step)s · loss %(loss)s") % {"step": label, "loss": f"{loss:.4g}"}
        # in a closed list only the chosen line is seen: it names its run too
        groups.setdefault(run.id, (title, []))[1].append(Choice(checkpoint.id, f"{_short(run.name, 40)}, {label}"))
    return list(groups.values()), wanted


def _devices(session: Session, found: NewRun, asked: Mapping[str, str]) -> None:
    """What the known machines have; where none is known yet, everything may be asked for."""
    hosts = list(session.scalars(select(Host).order_by(Host.name)))
    gpus = {d["id"]: d for h in hosts for d in h.devices}
    choices = [Choice("auto", _("Automatic: one GPU, or the whole CPU"))]
    cores = max((h.cpu_slots for h in hosts), default=0)
    choices.append(Choice("cpu", _("CPU"), str(max_cpu_ranks(cores)) if cores else ""))
    if gpus or not hosts:
        choices.append(Choice("cuda", _("GPUs, any"), str(max((len(h.devices) for h in hosts), default=0) or "")))
    choices += [Choice(id, _("GPU %(id)s · %(name)s") % {"id": id, "name": _short(str(d.get("name", "")))})
                for id, d in sorted(gpus.items())]
    wanted = asked.get("devices") or "auto"
    if wanted not in {c.value for c in choices}:
        ids = wanted.split(",")
        if all(i.split(":")[0] in ("cpu", "cuda") for i in ids):
            choices.append(Choice(wanted, wanted))
        else:
            found.said.append(_("There is no kind of device %(name)s; the studio chooses.") % {"name": _quoted(wanted)})
            wanted = "auto"
    found.device_choices, found.devices, found.ranks = choices, wanted, asked.get("ranks") or "1"
    found.machines = [_("%(name)s: %(cores)s CPU cores, %(gpus)s GPUs") % {
        "name": h.name, "cores": h.cpu_slots, "gpus": len(h.devices)} for h in hosts[:4]]


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else f"{text[:most - 1]}…"
