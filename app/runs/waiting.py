"""Why a queued run has not begun, in words: on its own page and in the queue of the system page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select

from app.core.db import Session
from app.core.devices import can_ever_fit, choose
from app.core.models import DeviceLease, Host, Run
from app.i18n import gettext as _


def devices_in_use(session: Session) -> dict[str, set[str]]:
    """Devices that runs hold, by host."""
    held: dict[str, set[str]] = {}
    for lease in session.scalars(select(DeviceLease)):
        held.setdefault(lease.host_id, set()).add(lease.device)
    return held


def reason(run: Run, ready: Sequence[Host], in_use: Mapping[str, set[str]], at: float, ahead: int = 0) -> str:
    """``ready``: hosts that take runs; ``ahead``: how many runs are looked at before this one, where that is told."""
    if not ready:
        return _("Waits for a worker.")
    if run.not_before is not None and run.not_before > at:
        return _("Starts again in %(seconds)s s, after an attempt that failed.") % {
            "seconds": round(run.not_before - at)}
    if not can_ever_fit(ready, run.devices):
        return _("No machine that is here now has such devices.")
    if ahead:
        return _("It waits for its turn: %(ahead)s ahead of it in the queue.") % {"ahead": ahead}
    if any(choose(run.devices, cpu_slots=h.cpu_slots, gpus=[d["id"] for d in h.devices],
                  taken=in_use.get(h.id, set())) is not None for h in ready):
        return _("Starts in a moment.")
    return _("Waits until other runs free the devices.")
