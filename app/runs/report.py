"""What a run says of itself beside its progress: newest numbers, how it computes and why, its data, its warnings.

All of it is in events and ``resolved.json``; a run of an older version may lack any part, which is then not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import func, select

from app.core.db import Session
from app.core.models import Event, Run
from app.i18n import gettext as _
from app.i18n import ngettext
from app.rendering import percent, size
from minimind.events import finite

#: single steps differ much in speed: numbers of the machine are the middle of this many
STEPS_LOOKED_AT = 15
WARNINGS_SHOWN = 5
#: the report of the data is among the first lines of an attempt
FIRST_LINES = 40


@dataclass(frozen=True)
class Number:
    """A number beside the progress; ``help`` explains it in a sentence."""

    label: str
    text: str
    help: str


@dataclass(frozen=True)
class Choice:
    """What a setting became. ``reason`` is the core's own word, where it gave one."""

    label: str
    value: str
    reason: str | None = None


@dataclass(frozen=True)
class Warnings:
    """``newest``: ``(step, message)``, the last first."""

    count: int
    newest: list[tuple[int, str]]


def numbers(session: Session, run: Run) -> list[Number]:
    """Those that the run has, of its newest steps and its newest evaluation."""
    steps = [finite(e.data) for e in _newest(session, run, "metrics", STEPS_LOOKED_AT)]
    evaluated = [finite(e.data) for e in _newest(session, run, "eval", 1)]
    found = []

    def add(label: str, value: float | None, text: str, help: str) -> None:
        if value is not None:
            found.append(Number(label, text % value, help))

    add(_("Perplexity"), _first(evaluated, "perplexity"), "%.4g",
        _("As unsure of the next token of held-out text as a die with this many sides."))
    add(_("Bits per byte"), _first(evaluated, "bits_per_byte"), "%.4g",
        _("Bits for one byte of held-out text; comparable between vocabularies."))
    if (won := _first(evaluated, "eval_reward_accuracy")) is not None:
        found.append(Number(_("Held-out pairs won"), percent(won), _(
            "Held-out pairs whose chosen answer gets the higher reward; a coin wins 50 %.")))
    add(_("Distance from the teacher"), _first(evaluated, "eval_kl"), "%.4g",
        _("Kullback-Leibler divergence from the teacher on held-out text; 0 would be a perfect copy."))
    if (mfu := _middle(steps, "mfu")) is not None:
        found.append(Number(_("MFU"), percent(mfu), _("The arithmetic that the tokens need, as a share of what this "
                                                      "machine reaches in large matrix products.")))
    if (memory := _first(steps, "memory_peak_bytes")) is not None:
        found.append(Number(_("Peak memory"), size(memory), _("Of tensors on a GPU, of the whole process on a CPU.")))
    add(_("Busiest expert"), _middle(steps, "expert_load_max"), "%.3g×",
        _("Its tokens as a multiple of an even share: 1 is perfect balance."))
    return found


def _newest(session: Session, run: Run, kind: str, count: int) -> list[Event]:
    return list(session.scalars(select(Event).where(Event.topic == f"run:{run.id}", Event.type == kind)
                                .order_by(Event.seq.desc()).limit(count)))


def _first(events: list[dict], key: str) -> float | None:
    return next((e[key] for e in events[:1] if _is_number(e.get(key))), None)


def _middle(events: list[dict], key: str) -> float | None:
    values = [e[key] for e in events if _is_number(e.get(key))]
    return median(values) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def warnings(session: Session, run: Run) -> Warnings:
    """What the run warned of, steps that it skipped among it."""
    count = session.scalar(select(func.count()).select_from(Event).where(Event.topic == f"run:{run.id}",
                                                                         Event.type == "warning")) or 0
    newest = _newest(session, run, "warning", WARNINGS_SHOWN) if count else []
    return Warnings(count, [(e.step, str(e.data.get("message") or "")) for e in newest])


def choices(resolved: dict) -> list[Choice]:
    """How the run computes: what ``auto`` became, with the reasons."""
    if "rows_per_step" not in resolved:  # not begun, or a stage without steps
        return []
    ranks, threads = resolved.get("world_size", 1), resolved.get("threads_per_rank")
    where = f"{resolved['device']} × {ranks}" if ranks > 1 else str(resolved["device"])
    on_cpu = None
    if threads and resolved["device"] == "cpu":
        on_cpu = ngettext("%(num)s thread a process", "%(num)s threads a process", threads) % {"num": threads}
    found = [Choice(_("Device"), where, on_cpu)]
    for label, key in ((_("Number format"), "dtype"), (_("Attention kernel"), "attention")):
        if resolved.get(key):
            found.append(Choice(label, resolved[key], resolved.get(f"{key}_reason")))
    if resolved.get("use_compile") is not None:
        found.append(Choice("torch.compile", _("on") if resolved["use_compile"] else _("off"),
                            resolved.get("compile_reason")))
    rows, length, micro_steps = resolved["rows_per_step"], resolved["max_seq_len"], resolved["accumulation_steps"]
    parts = [_("%(rows)s rows of %(length)s") % {"rows": f"{rows:,}", "length": f"{length:,}"}]
    parts += [_("%(count)s micro-steps") % {"count": micro_steps}] if micro_steps > 1 else []
    parts += [_("%(count)s ranks") % {"count": ranks}] if ranks > 1 else []
    found.append(Choice(_("A step"), _("%(count)s tokens at most") % {"count": f"{rows * length:,}"}, ", ".join(parts)))
    if resolved.get("steps_per_epoch"):
        found.append(Choice(_("A pass over the data"), _("%(count)s steps") % {
            "count": f"{resolved['steps_per_epoch']:,}"}))
    return found + _experts(resolved.get("model") or {})


def _experts(model: dict) -> list[Choice]:
    if not model.get("num_experts"):
        return []
    shared = model.get("num_shared_experts")
    each = _("%(count)s for each token") % {"count": model.get("num_experts_per_tok", 1)}
    return [Choice(_("Experts"), _("%(count)s in each layer") % {"count": model["num_experts"]},
                   _("%(each)s, and %(shared)s that all pass") % {"each": each, "shared": shared} if shared else each)]


def data(session: Session, run: Run) -> dict | None:
    """The report of the newest attempt that made one (minimind/stages/report.py)."""
    lines = session.scalars(select(Event).where(Event.topic == f"run:{run.id}", Event.type == "log",
                                                Event.attempt == run.attempt).order_by(Event.seq).limit(FIRST_LINES))
    reports = (e.data.get("data") for e in lines)
    return next((r for r in reports if isinstance(r, dict) and "document_tokens" in r), None)
