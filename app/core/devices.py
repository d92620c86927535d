"""Which devices a run asks for and which of a host's it gets. Pure functions; nothing is looked at here.

A host has as many CPU slots as cores (``cpu:0`` ...) and its GPUs (``cuda:0`` ...).

- ``"auto"``: one GPU on a host that has any; on a host without, one rank on the whole CPU (all slots), which
  for small models is faster than several ranks and leaves the timing of other runs alone.
- ``{"kind": "cpu", "count": n}``: n ranks in min(n, cores) slots; ``{"kind": "cuda", "count": n}``: n GPUs.
  More CPU ranks than cores are allowed, for trying out, up to four per core (16 on a small machine): each is a
  process of a few hundred megabytes, and a thousand of them take the machine down.
- ``["cuda:1", ...]``: these very devices, one rank each.

A run that fits what is free starts, also past better ones that do not fit: devices are not left idle for the sake of
order. So that a run which needs many is not passed for ever, one that has waited ``HOLD_BACK_AFTER_S`` holds devices
back (``holds_back``): runs behind it leave alone what it needs on the host where it lacks least, and those devices
gather until it starts. They stand idle meanwhile; no guess at when other runs end lets a short one in between.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from minimind.errors import MiniMindError

_DEVICE = re.compile(r"^(cpu|cuda):(\d{1,4})$")
MAX_RANKS = 1024
RANKS_PER_CORE, SMALLEST_RANK_LIMIT = 4, 16
#: a queued run that is passed by others for longer than this makes them leave it devices
HOLD_BACK_AFTER_S = 600.0
_FORMS = 'Use "auto", {"kind": "cpu" or "cuda", "count": n}, or a list like ["cuda:0"].'


def check_request(request: Any) -> Any:
    """``request`` if it is well formed, else raises ``MiniMindError`` (field ``devices``)."""
    if request == "auto":
        return request
    if isinstance(request, dict):
        if set(request) != {"kind", "count"} or request["kind"] not in ("cpu", "cuda"):
            raise MiniMindError(f"devices = {request!r} is not understood.", field="devices", hint=_FORMS)
        count = request["count"]
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_RANKS:
            raise MiniMindError(f"devices.count = {count!r} must be a whole number from 1 to {MAX_RANKS}.",
                                field="devices", hint="It is the number of ranks (processes) that train together.")
        return request
    if isinstance(request, list) and request:
        if not all(isinstance(d, str) and _DEVICE.match(d) for d in request) or len(set(request)) != len(request):
            raise MiniMindError(f"devices = {request!r} must name different devices.", field="devices", hint=_FORMS)
        if len({d.split(":")[0] for d in request}) > 1:
            raise MiniMindError("devices mixes CPU and GPU; one run uses one kind.", field="devices", hint=_FORMS)
        return request
    raise MiniMindError(f"devices = {request!r} is not understood.", field="devices", hint=_FORMS)


def world_size(request: Any) -> int:
    """Ranks of a well-formed request."""
    if request == "auto":
        return 1
    return int(request["count"]) if isinstance(request, dict) else len(request)


def max_cpu_ranks(cpu_slots: int) -> int:
    """The most CPU ranks of one run that a host with so many cores starts."""
    return max(RANKS_PER_CORE * cpu_slots, SMALLEST_RANK_LIMIT)


@functools.cache
def cpu_devices(slots: int) -> tuple[str, ...]:
    """The slots of a host with so many cores."""
    return tuple(f"cpu:{i}" for i in range(slots))


@dataclass(frozen=True)
class Room:
    """What counts of a host here: what it has, what of it is taken, and what is to be left alone."""

    host_id: str
    cpu_slots: int
    gpus: Collection[str]
    taken: Collection[str] = ()
    bad: Collection[str] = ()

    def wanted(self, request: Any) -> tuple[Collection[str], int]:
        """The devices that would do, and how many of them it takes; 0 where this host is no place for it."""
        cpus = cpu_devices(self.cpu_slots)
        gpus = [g for g in self.gpus if g not in self.bad]
        if request == "auto":  # no GPU that is left alone turns a run for a GPU into one for all cores
            return (gpus, 1) if self.gpus else (cpus, self.cpu_slots)
        if not isinstance(request, dict):
            return [d for d in request if d in gpus or d in cpus], len(request)
        if request["kind"] == "cuda":
            return gpus, request["count"]
        count = request["count"]
        return cpus, min(count, self.cpu_slots) if count <= max_cpu_ranks(self.cpu_slots) else 0

    def free(self, request: Any) -> tuple[list[str], int | None]:
        """Those of the devices that would do which are not taken, and how many more it takes before it fits; None
        where it never does."""
        devices, count = self.wanted(request)
        free = [d for d in devices if d not in self.taken]
        return free, max(0, count - len(free)) if 0 < count <= len(devices) else None


def choose(request: Any, *, cpu_slots: int, gpus: Iterable[str], taken: Collection[str],
           bad: Collection[str] = ()) -> tuple[str, ...] | None:
    """The devices that a run gets on this host now, or None where they are not (all) free.

    ``bad``: devices that have failed and are left alone for a while (``left_alone``).
    """
    devices, count = Room("", cpu_slots, tuple(gpus), taken, bad).wanted(request)
    free = [d for d in devices if d not in taken]
    return tuple(free[:count]) if 0 < count <= len(free) else None


def holds_back(request: Any, waited_s: float, here: Room, others: Iterable[Room] = (), *,
               after_s: float = HOLD_BACK_AFTER_S) -> set[str]:
    """The free devices of ``here`` that runs behind this one in the queue must leave to it.

    No devices while it has waited for less than ``after_s``, where it fits now or never, and where another host lacks
    less for it: one host alone holds back for one run. ``others``: the other hosts that take runs.
    """
    if waited_s < after_s:
        return set()
    free, missing = here.free(request)
    if not missing:
        return set()
    for other in others:
        _, there = other.free(request)
        if there is not None and (there, other.host_id) < (missing, here.host_id):
            return set()
    return set(free)


def left_alone(host: Any, at: float) -> set[str]:
    """Devices of a row of ``host`` that get no runs at the time ``at``: under what a run has failed (``bad_devices``),
    and of what the driver says that it cannot be used (``problem`` of a device).

    They stay among the host's devices: "auto" must not mean the CPU for as long as the only GPU fails.
    """
    return {d["id"] for d in host.devices if d.get("problem")} | {
        bad["id"] for bad in host.bad_devices or () if bad.get("until") is None or bad["until"] > at}


def can_ever_fit(hosts: Iterable[Any], request: Any) -> bool:
    """Whether one of ``hosts`` (rows of ``host``) could run ``request`` if nothing else ran there."""
    return any(choose(request, cpu_slots=h.cpu_slots, gpus=[d["id"] for d in h.devices], taken=set()) is not None
               for h in hosts)
