"""Why a queued run has not begun, in words: for the API, its own page, lists, and the queue of the system page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.core.devices import can_ever_fit, left_alone
from app.core.models import Host
from app.i18n import gettext as _
from app.i18n import ngettext
from app.runs.forecast import Machine, Slot

#: runs that are named where several hold the devices
NAMED = 2


@dataclass(frozen=True)
class Paused:
    """Maintenance: since when nothing is claimed (unix seconds), by whom and why."""

    since: float
    by: str | None
    note: str | None


@dataclass(frozen=True)
class Bad:
    """A device that gets no runs; ``until`` is unix seconds, None where no end is known."""

    reason: str
    until: float | None


@dataclass(frozen=True)
class Facts:
    """What the reasons follow from. ``holders``: host -> device -> name of the run that has it."""

    at: float
    paused: Paused | None
    #: machines whose worker was heard of lately, and those among them that take runs
    alive: Sequence[Host]
    ready: Sequence[Host]
    away: Sequence[Host]
    holders: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Case:
    """One queued run. ``ahead``: runs before it that want what it wants; ``problem``: what it stands on is gone."""

    request: Any
    not_before: float | None
    ahead: int
    slot: Slot
    problem: str | None = None


def reason(case: Case, facts: Facts) -> str:
    """One or two sentences; the first thing that has to change comes first."""
    if case.problem is not None:
        return _("It cannot start: %(problem)s") % {"problem": case.problem}
    if facts.paused is not None:
        return paused_words(facts.paused)
    if not facts.ready:
        return _no_worker(facts.alive)
    if case.not_before is not None and case.not_before > facts.at:
        return _("Starts again in %(time)s, after an attempt that failed.") % {
            "time": _span(case.not_before - facts.at)}
    fitting = [host for host in facts.ready if can_ever_fit([host], case.request)]
    if not fitting:
        return _no_devices(case.request, facts)
    if case.slot.at_once:
        return _("Starts in a moment.")
    return _left_alone(case.request, fitting, facts.at) or _turn(case, fitting, facts)


def paused_words(paused: Paused) -> str:
    if not paused.by:
        return _("The queue is paused.")
    if not paused.note:
        return _("The queue is paused by %(name)s.") % {"name": paused.by}
    return _("The queue is paused by %(name)s: %(note)s") % {"name": paused.by, "note": paused.note}


def _no_worker(alive: Sequence[Host]) -> str:
    for host in alive:
        if host.problem:
            return _("Waits for a worker: %(host)s takes no runs. %(problem)s") % {
                "host": host.name, "problem": host.problem}
    for host in alive:
        return _("Waits for a worker: %(host)s takes no new work and will stop.") % {"host": host.name}
    return _("Waits for a worker.")


def _no_devices(request: Any, facts: Facts) -> str:
    """Perhaps somebody has them, who does not take runs now."""
    for host in facts.alive:
        if can_ever_fit([host], request):
            why = host.problem or _("It takes no new work and will stop.")
            return _("Only %(host)s has such devices, and it takes no runs. %(problem)s") % {
                "host": host.name, "problem": why}
    for host in facts.away:
        if can_ever_fit([host], request):
            return _("Only %(host)s has such devices, and its worker is away.") % {"host": host.name}
    return _("No machine that is here now has such devices.")


def bad_now(host: Host, at: float) -> dict[str, Bad]:
    """Devices of ``host`` that get no runs at present, as ``app.core.devices.left_alone`` has it, and why."""
    said = {d["id"]: Bad(d["problem"], None) for d in host.devices if d.get("problem")}
    left = {bad["id"]: Bad(bad.get("reason") or "", bad.get("until")) for bad in host.bad_devices or []}
    return {id: (said | left)[id] for id in sorted(left_alone(host, at))}


def machine_of(host: Host) -> Machine:
    return Machine(host.id, host.cpu_slots, tuple(d["id"] for d in host.devices))


def _left_alone(request: Any, fitting: Iterable[Host], at: float) -> str | None:
    """Where every fitting machine lacks a device that is left alone for a while, the one that is back first."""
    lacking = []
    for host in fitting:
        machine, bad = machine_of(host), bad_now(host, at)
        if machine.choose(request, taken=bad) is not None:
            return None
        lacking += [(host.name, id, each) for id, each in bad.items() if id in machine.usable(request)]
    if not lacking:
        return None
    name, device, first = min(lacking, key=lambda each: math.inf if each[2].until is None else each[2].until)
    if first.until is None:
        return _("Waits for %(device)s of %(host)s, which cannot be used: %(reason)s") % {
            "device": device, "host": name, "reason": first.reason}
    return _("Waits for %(device)s of %(host)s, which is left alone for %(time)s: %(reason)s") % {
        "device": device, "host": name, "time": _span(first.until - at), "reason": first.reason}


def _span(seconds: float) -> str:
    """So long from now, as short as it is true."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{round(seconds / 3600)} h"


def _turn(case: Case, fitting: Iterable[Host], facts: Facts) -> str:
    """Who has the devices, and how many come first."""
    names, devices = [], []
    for host in fitting:
        usable, held = machine_of(host).usable(case.request), facts.holders.get(host.id, {})
        devices += [device for device in held if device in usable]
        names += [name for device, name in held.items() if device in usable]
    said = []
    if case.ahead:
        said.append(_("It waits for its turn: %(ahead)s ahead of it in the queue.") % {"ahead": f"{case.ahead:,}"})
    if names and isinstance(case.request, list):
        said.append(_("Waits for %(devices)s, now used by %(runs)s.") % {
            "devices": ", ".join(sorted(set(devices))), "runs": _listed(names)})
    elif names:
        said.append(_("Waits for free devices, now used by %(runs)s.") % {"runs": _listed(names)})
    return " ".join(said) or _("Waits until other runs free the devices.")


def _listed(names: Iterable[str]) -> str:
    each = list(dict.fromkeys(names))
    shown, more = ", ".join(each[:NAMED]), len(each) - NAMED
    if more < 1:
        return shown
    return ngettext("%(runs)s and %(num)s other run", "%(runs)s and %(num)s other runs", more) % {
        "runs": shown, "num": more}
