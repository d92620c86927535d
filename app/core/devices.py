"""Which devices a run asks for and which of a host's it gets. Pure functions; nothing is looked at here.

A host has as many CPU slots as cores (``cpu:0`` ...) and its GPUs (``cuda:0`` ...).

- ``"auto"``: one GPU on a host that has any; on a host without, one rank on the whole CPU (all slots), which
  for small models is faster than several ranks and leaves the timing of other runs alone.
- ``{"kind": "cpu", "count": n}``: n ranks in min(n, cores) slots; ``{"kind": "cuda", "count": n}``: n GPUs.
  More CPU ranks than cores are allowed, for trying out, up to four per core (16 on a small machine): each is a
  process of a few hundred megabytes, and a thousand of them take the machine down.
- ``["cuda:1", ...]``: these very devices, one rank each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from minimind.errors import MiniMindError

_DEVICE = re.compile(r"^(cpu|cuda):(\d{1,4})$")
MAX_RANKS = 1024
RANKS_PER_CORE, SMALLEST_RANK_LIMIT = 4, 16
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


def choose(request: Any, *, cpu_slots: int, gpus: Iterable[str], taken: set[str]) -> tuple[str, ...] | None:
    """The devices that a run gets on this host now, or None where they are not (all) free."""
    cpus = [f"cpu:{i}" for i in range(cpu_slots)]
    gpus = list(gpus)
    if request == "auto":
        wanted, count = (gpus, 1) if gpus else (cpus, cpu_slots)
    elif isinstance(request, dict):
        wanted = gpus if request["kind"] == "cuda" else cpus
        count = request["count"]
        if request["kind"] == "cpu":
            count = min(count, cpu_slots) if count <= max_cpu_ranks(cpu_slots) else 0
    else:
        wanted, count = [d for d in request if d in {*cpus, *gpus}], len(request)
    free = [d for d in wanted if d not in taken]
    return tuple(free[:count]) if 0 < count <= len(free) else None


def can_ever_fit(hosts: Iterable[Any], request: Any) -> bool:
    """Whether one of ``hosts`` (rows of ``host``) could run ``request`` if nothing else ran there."""
    return any(choose(request, cpu_slots=h.cpu_slots, gpus=[d["id"] for d in h.devices], taken=set()) is not None
               for h in hosts)
