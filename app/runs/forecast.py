"""When queued runs will begin and end: the queue is played forward, with devices given as a claim gives them.

Pure functions; ``app.runs.outlook`` reads what they work on. What nobody can know stays unknown (None), and so does
what waits for it: a run with no measured speed and no time limit hides the start of whatever it keeps waiting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.core.devices import HOLD_BACK_AFTER_S, Room, choose, holds_back

#: queued runs that are looked at; what is behind them has no forecast
HORIZON = 200
#: the most questions to ``choose``: many machines and many different requests end the play early, not the request
MAX_CHOICES = 5_000
#: of the time that a run did not spend in its steps this much at most is its start; the rest grows with the steps
LONGEST_START_S = 120.0


# -- how long a run takes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What an earlier run has needed: seconds before its steps, seconds for each (saves and evaluations included)."""

    start_s: float
    step_s: float


@dataclass(frozen=True)
class Plan:
    """What is known of a run's length: optimizer steps ahead of it, and what is left of its budget of time."""

    steps: int | None
    budget_s: float | None
    has_begun: bool = False


def measured(steps: int, active_s: float, tokens: float | None = None,
             tokens_per_s: float | None = None) -> Measured | None:
    """From ``active_s`` seconds of work on ``steps`` steps; with its tokens and speed the start is told apart."""
    if steps < 1 or active_s <= 0:
        return None
    start_s = 0.0
    if tokens and tokens_per_s:
        start_s = min(max(0.0, active_s - tokens / tokens_per_s), LONGEST_START_S)
    return Measured(start_s, (active_s - start_s) / steps)


def seconds(plan: Plan, known: Measured | None, same_s: float | None = None) -> float | None:
    """How long a run will take from its start on. ``same_s``: what the very same run has needed before."""
    if same_s is not None and not plan.has_begun:
        return same_s
    start_s = known.start_s if known is not None else 0.0
    limits = [] if known is None or plan.steps is None else [plan.steps * known.step_s]
    limits += [] if plan.budget_s is None else [plan.budget_s]
    return start_s + min(limits) if limits else None


# -- who gets which device when -----------------------------------------------------------------------------------


@dataclass
class Machine:
    """A machine that takes runs. ``held``: device -> when it is free again; None where nobody knows, infinity for
    one that cannot be used at all. ``bad``: those of them that no run has and that are left alone until then."""

    id: str
    cpu_slots: int
    gpus: tuple[str, ...]
    held: dict[str, float | None] = field(default_factory=dict)
    bad: frozenset[str] = frozenset()

    def choose(self, request: Any, *, taken: Iterable[str]) -> tuple[str, ...] | None:
        return choose(request, cpu_slots=self.cpu_slots, gpus=self.gpus, taken=set(taken))

    def usable(self, request: Any) -> frozenset[str]:
        """Every device that ``request`` could be given here."""
        if self.choose(request, taken=()) is None:
            return frozenset()
        return frozenset(Room(self.id, self.cpu_slots, self.gpus).wanted(request)[0])

    def room(self) -> Room:
        return Room(self.id, self.cpu_slots, self.gpus, taken=set(self.held), bad=self.bad & self.held.keys())


@dataclass(frozen=True)
class Want:
    """One queued run, waiting ``since``; it does not start before ``not_before``."""

    id: str
    request: Any
    not_before: float | None = None
    since: float | None = None

    @property
    def shape(self) -> str:
        """Equal for requests that ask for the same."""
        return json.dumps(self.request, sort_keys=True)


@dataclass(frozen=True)
class Slot:
    """When a run begins and ends, in unix seconds, as far as that is known. ``at_once``: nothing is in its way."""

    start: float | None = None
    end: float | None = None
    at_once: bool = False


UNKNOWN = Slot()
#: seconds that a run takes on these devices of this machine
Lasts = Callable[[str, Machine, tuple[str, ...]], float | None]


def play(at: float, machines: Sequence[Machine], queue: Sequence[Want], lasts: Lasts) -> dict[str, Slot]:
    """A slot for each of ``queue`` (in its order); ``machines`` are changed on the way."""
    return _Play(at, machines, queue[:HORIZON], lasts).run()


class _Play:
    def __init__(self, at: float, machines: Sequence[Machine], queue: Sequence[Want], lasts: Lasts):
        self.at = self.moment = at
        self.machines = machines
        self.waiting = [(want, want.shape) for want in queue]
        self.lasts = lasts
        self.found: dict[str, Slot] = {want.id: UNKNOWN for want in queue}
        #: devices whose next free moment is a guess: nobody who waits for them has a certain start
        self.unsure = {(m.id, d) for m in machines for d, until in m.held.items() if until is None}
        self.full: set[tuple[str, str]] = set()  # (shape, machine) that do not fit until the machine frees something
        self.held_back: dict[str, set[str]] = {}  # at this moment, by machine
        self.choices = 0
        self._usable: dict[tuple[str, str], frozenset[str]] = {}

    def run(self) -> dict[str, Slot]:
        while self.waiting and self.choices < MAX_CHOICES:
            self._start_what_fits()
            if not self._next_moment():
                break
        return self.found

    def _start_what_fits(self) -> None:
        """One pass through the queue, as a claim makes it: what fits starts, in order."""
        if self.held_back:
            self.full.clear()
        self.held_back = {}
        shapes = {shape for _, shape in self.waiting}
        still, stuck, asked = [], set(), set()
        for place, (want, shape) in enumerate(self.waiting):
            if len(stuck) == len(shapes):  # nothing more can start
                still += self.waiting[place:]
                break
            if want.not_before is not None and want.not_before > self.moment:
                still.append((want, shape))
            elif shape in stuck or not self._start(want, shape):
                still.append((want, shape))
                stuck.add(shape)
                if shape not in asked and self._hold_back(want):
                    asked.add(shape)
        self.waiting = still

    def _start(self, want: Want, shape: str) -> bool:
        for machine in self.machines:
            if (shape, machine.id) in self.full:
                continue
            self.choices += 1
            devices = machine.choose(want.request, taken=machine.held.keys() | self.held_back.get(machine.id, ()))
            if devices is not None:
                self._take(want, shape, machine, devices)
                return True
            self.full.add((shape, machine.id))
        return False

    def _hold_back(self, want: Want) -> bool:
        """One that was passed for long makes those behind it leave it devices, as in a claim; False for others."""
        waited_s = 0.0 if want.since is None else self.moment - want.since
        if waited_s < HOLD_BACK_AFTER_S:
            return False
        rooms = [machine.room() for machine in self.machines]
        for room in rooms:
            kept = holds_back(want.request, waited_s, room, [other for other in rooms if other is not room])
            if kept:
                self.held_back.setdefault(room.host_id, set()).update(kept)
        return True

    def _take(self, want: Want, shape: str, machine: Machine, devices: tuple[str, ...]) -> None:
        takes_s = self.lasts(want.id, machine, devices)
        end = None if takes_s is None else self.moment + takes_s
        had_to_wait = self.moment > max(self.at, want.not_before or self.at)
        sure = not had_to_wait or not any(
            (m.id, d) in self.unsure for m in self.machines for d in self._usable_of(want, shape, m))
        self.found[want.id] = Slot(self.moment, end, self.moment == self.at) if sure else UNKNOWN
        machine.held |= dict.fromkeys(devices, end)
        if end is None or not sure:
            self.unsure |= {(machine.id, d) for d in devices}

    def _usable_of(self, want: Want, shape: str, machine: Machine) -> frozenset[str]:
        key = (shape, machine.id)
        if key not in self._usable:
            self._usable[key] = machine.usable(want.request)
        return self._usable[key]

    def _next_moment(self) -> bool:
        """Go on to when the next device is free or the next back-off over; False where nothing will happen."""
        times = [until for m in self.machines for until in m.held.values() if until not in (None, math.inf)]
        times += [want.not_before for want, _ in self.waiting
                  if want.not_before is not None and want.not_before > self.moment]
        if not times:
            return False
        self.moment = max(self.moment, min(times))
        for machine in self.machines:
            free = [d for d, until in machine.held.items() if until is not None and until <= self.moment]
            for device in free:
                del machine.held[device]
            if free:
                self.full = {(shape, id) for shape, id in self.full if id != machine.id}
        return True
