"""What lies before runs that have not ended: why a queued one waits, when it will begin, and when it will be done.

One look at the queue serves every run of a page: about ten statements, however many runs wait. Only the first
``HORIZON`` queued runs have a forecast; the others know how many are ahead of them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import object_session

from app.core import inputs
from app.core.db import Session, now
from app.core.models import Attempt, DeviceLease, Host, Installation, Run
from app.core.queue import QUEUE_ORDER
from app.core.timing import get_timing
from app.runs.forecast import HORIZON, UNKNOWN, Machine, Slot, Want, play
from app.runs.history import COLUMNS, History
from app.runs.waiting import Case, Facts, Paused, bad_now, machine_of, reason

#: queued runs that are counted; whoever is behind them hears that at least so many are ahead
COUNTED = 10_000
#: how long the devices of a run that saves and stops are still taken, about
STOPPING_S = 10.0


@dataclass(frozen=True)
class Prospect:
    """``waiting_for``: a sentence, of queued runs alone. Times are unix seconds; None where nobody knows."""

    waiting_for: str | None = None
    start: float | None = None
    end: float | None = None


NOTHING = Prospect()


def prospect(run: Run) -> Prospect:
    """What lies before ``run``. A reading session, which sees one moment, looks at the queue once for all runs."""
    session = object_session(run)
    if session is None or run.state not in ("queued", "starting", "running"):
        return NOTHING
    return look(session).prospect(run)


def look(session: Any) -> Look:
    """The queue as ``session`` sees it."""
    if not session.get_bind().get_execution_options().get("read_only"):
        return Look(session)  # it may change between two questions
    if "look" not in session.info:
        session.info["look"] = Look(session)
    return session.info["look"]


class Look:
    """The queue, the machines and their holders at one moment; each part is read when it is first needed."""

    def __init__(self, session: Session):
        self._session = session
        self.at = now(session)

    def prospect(self, run: Run) -> Prospect:
        if run.state != "queued":
            return Prospect(end=self._end_of_live(run))
        place = self.places.get(run.id, COUNTED)
        is_near = place < HORIZON  # whoever is further back need not wait for a forecast that says nothing of it
        slot = self.slots.get(run.id, UNKNOWN) if is_near else UNKNOWN
        ahead = self.rivals.get(run.id, place) if is_near else place
        case = Case(run.devices, run.not_before, ahead, slot, self._problem(run))
        if case.problem is not None:
            slot = UNKNOWN
        return Prospect(reason(case, self.facts), slot.start, slot.end)

    # -- what is there -----------------------------------------------------------------------------------------------

    @cached_property
    def paused(self) -> Paused | None:
        row = self._session.execute(select(
            Installation.queue_paused_at, Installation.queue_paused_by, Installation.queue_note).limit(1)).first()
        return None if row is None or row[0] is None else Paused(*row)

    @cached_property
    def hosts(self) -> dict[str, Host]:
        return {host.id: host for host in self._session.scalars(select(Host).order_by(Host.id))}

    @cached_property
    def facts(self) -> Facts:
        silent_s = get_timing().host_silent_s
        alive = [h for h in self.hosts.values() if self.at - h.last_seen_at < silent_s]
        away = [h for h in self.hosts.values() if self.at - h.last_seen_at >= silent_s]
        holders: dict[str, dict[str, str]] = {}
        for lease, run in self._leases:
            holders.setdefault(lease.host_id, {})[lease.device] = run.name
        return Facts(self.at, self.paused, alive, [h for h in alive if not h.draining and not h.problem], away, holders)

    @cached_property
    def _leases(self) -> list[tuple[DeviceLease, Run]]:
        rows = self._session.execute(select(DeviceLease, Run).join(Run, Run.id == DeviceLease.run_id)
                                     .order_by(DeviceLease.host_id, DeviceLease.device))
        return [(lease, run) for lease, run in rows]

    @cached_property
    def places(self) -> dict[str, int]:
        """Queued run -> how many are in front of it."""
        ids = self._session.scalars(select(Run.id).where(Run.state == "queued").order_by(*QUEUE_ORDER).limit(COUNTED))
        return {id: place for place, id in enumerate(ids)}

    @cached_property
    def front(self) -> list[Any]:
        """The queued runs that are looked at closely, the first one first."""
        return list(self._session.execute(select(*COLUMNS, Run.not_before, Run.queued_at, Run.allow_changes,
                                                  Run.tokenizer_id).where(Run.state == "queued")
                                          .order_by(*QUEUE_ORDER).limit(HORIZON)))

    @cached_property
    def history(self) -> History:
        live = [run for _, run in self._leases]
        return History(self._session, [*self.front, *live], self.hosts, self.at)

    # -- what follows ------------------------------------------------------------------------------------------------

    @cached_property
    def _wants(self) -> list[Want]:
        return [Want(row.id, row.devices, row.not_before, max(row.queued_at or self.at, row.not_before or 0.0))
                for row in self.front if self._problem(row) is None]  # the claim refuses the others

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """The forecast of the first queued runs; none while the queue is paused or nobody takes runs."""
        if self.paused is not None or not self.facts.ready:
            return {}
        rows = {row.id: row for row in self.front}
        return play(self.at, [self._machine(host) for host in self.facts.ready], self._wants,
                    lambda id, machine, devices: self.history.seconds(rows[id], machine.id, devices))

    def _machine(self, host: Host) -> Machine:
        machine = machine_of(host)
        machine.held = {id: bad.until or math.inf for id, bad in bad_now(host, self.at).items()}
        machine.bad = frozenset(machine.held)
        for lease, run in self._leases:
            if lease.host_id == host.id:
                machine.held[lease.device] = self._free_at(run)
        return machine

    def _free_at(self, run: Run) -> float | None:
        """When the devices of a run that holds some are free again."""
        if run.state in ("pausing", "cancelling"):
            return self.at + STOPPING_S
        return self._end_of_live(run) if run.state in ("starting", "running") else None

    def _end_of_live(self, run: Run) -> float | None:
        if run.desired != "run":
            return None
        eta_s = run.progress.get("eta_s")
        if eta_s is not None and run.state == "running":
            return max(self.at, run.updated_at + eta_s)
        guess = self._guess(run)
        return guess if guess is not None and guess > self.at else None

    def _guess(self, run: Run) -> float | None:
        """The end of a run that has no speed of its own yet, from those of earlier runs."""
        devices = [lease.device for lease, holder in self._leases if holder.id == run.id]
        if not devices:
            return None
        attempt = self._session.get(Attempt, (run.id, run.attempt))
        takes_s = self.history.seconds(run, run.lease_host or "", devices)
        return None if attempt is None or takes_s is None else attempt.started_at + takes_s

    @cached_property
    def rivals(self) -> dict[str, int]:
        """Queued run -> how many in front of it want devices that it could use too."""
        machines = [machine_of(host) for host in self.facts.ready]
        usable: dict[str, set[tuple[str, str]]] = {}
        ahead: Counter[str] = Counter()
        found = {}
        for want in self._wants:
            shape = want.shape
            if shape not in usable:
                usable[shape] = {(m.id, d) for m in machines for d in m.usable(want.request)}
            found[want.id] = sum(n for other, n in ahead.items() if usable[other] & usable[shape])
            ahead[shape] += 1
        return found

    @cached_property
    def _problems(self) -> dict[tuple, str | None]:
        return {}

    def _problem(self, run: Any) -> str | None:
        """What it stands on and is not there any more; runs that stand on the same are asked about once, but for those
        that have begun: what they have saved is their own."""
        key = (run.dataset_id, run.allow_changes, run.base_checkpoint_id, run.teacher_checkpoint_id,
               run.tokenizer_id or run.config.get("tokenizer"), run.id if run.attempt else None)
        if key not in self._problems:
            wrong = inputs.problem(self._session, run)
            self._problems[key] = None if wrong is None else wrong["message"]
        return self._problems[key]

