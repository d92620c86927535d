"""The state of the whole: machines, devices, queue, versions, and whether everything answers."""

from __future__ import annotations

import os
import shutil
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.core import channels, inference, migrate
from app.core.db import Session, now, reading
from app.core.errors import Forbidden
from app.core.models import JOB_STATES, RUN_STATES, DeviceLease, Host, Installation, Job, Run, User
from app.core.queue import QUEUE_ORDER, ring_after_commit
from app.core.rest import rfc3339
from app.core.settings import get_settings
from app.core.timing import get_timing
from app.runs.waiting import bad_now

VERSION = "0.1.0"
#: queued runs that ``queue.next`` names
NEXT_NAMED = 20


def system(session: Session) -> dict[str, Any]:
    """What ``GET /system`` and the websocket topic ``system`` say; the broker is not asked here."""
    at = now(session)
    held: dict[str, list[dict]] = {}
    for lease in session.scalars(select(DeviceLease).order_by(DeviceLease.device)):
        held.setdefault(lease.host_id, []).append({"device": lease.device, "run_id": lease.run_id})
    hosts = [_host(h, held.get(h.id, []), at) for h in session.scalars(select(Host).order_by(Host.id))]
    settings = get_settings()
    return {"installation": session.scalars(select(Installation.uid)).first(), "version": VERSION, "hosts": hosts,
            "queue": queue(session) | {"next": _next(session)},
            "runs": _counts(session, Run, RUN_STATES), "jobs": _counts(session, Job, JOB_STATES),
            "database": make_url(settings.sqlalchemy_url).get_backend_name(), "disk": disk(), "time": rfc3339(at)}


def ready_hosts(session: Session) -> list[Host]:
    """Machines whose worker was heard of lately and takes new runs."""
    at = now(session)
    return [h for h in session.scalars(select(Host).order_by(Host.id))
            if at - h.last_seen_at < get_timing().host_silent_s and not h.draining and not h.problem]


def queue(session: Session) -> dict[str, Any]:
    """``{paused, since, by, note}``: whether somebody has stopped the queue for maintenance. What runs goes on."""
    row = session.execute(select(Installation.queue_paused_at, Installation.queue_paused_by,
                                 Installation.queue_note).limit(1)).first()
    if row is None or row[0] is None:
        return {"paused": False, "since": None, "by": None, "note": None}
    return {"paused": True, "since": rfc3339(row[0]), "by": row[1], "note": row[2]}


def _next(session: Session) -> list[str]:
    """The first ids of the queue: a page that follows ``system`` hears of every new order."""
    return list(session.scalars(select(Run.id).where(Run.state == "queued").order_by(*QUEUE_ORDER).limit(NEXT_NAMED)))


def set_queue(session: Session, user_id: str, *, paused: bool, note: str | None = None) -> dict[str, Any]:
    """Stop the queue or let it go on; admins alone. Stopping a stopped one changes its note alone (``""``: none)."""
    user = session.get(User, user_id)
    if user is None or user.role != "admin":
        raise Forbidden("Only an admin can pause the queue or let it go on.", hint="Ask an admin.")
    row = session.scalars(select(Installation).with_for_update()).one()
    if not paused:
        if row.queue_paused_at is not None:
            ring_after_commit(session)
            ring_after_commit(session, "job")
        row.queue_paused_at = row.queue_paused_by = row.queue_note = None
    elif row.queue_paused_at is None:
        row.queue_paused_at, row.queue_paused_by, row.queue_note = now(session), user.name, note or None
    elif note is not None:
        row.queue_note = note or None
    session.flush()
    return queue(session)


def _host(host: Host, held: list[dict], at: float) -> dict[str, Any]:
    bad = [{"id": id, "reason": each.reason, "until": rfc3339(each.until)} for id, each in bad_now(host, at).items()]
    return {"id": host.id, "name": host.name, "is_alive": at - host.last_seen_at < get_timing().host_silent_s,
            "draining": host.draining, "problem": host.problem, "bad_devices": bad, "cpu_slots": host.cpu_slots,
            "devices": host.devices, "in_use": held, "versions": host.versions, "load": host.load,
            "last_seen_at": rfc3339(host.last_seen_at)}


def _counts(session: Session, model: Any, states: tuple[str, ...]) -> dict[str, int]:
    found = dict(session.execute(select(model.state, func.count()).group_by(model.state)).all())
    return {state: found.get(state, 0) for state in states}


def disk() -> dict[str, int]:
    """Bytes of the file system that holds the data directory."""
    directory = get_settings().data_dir
    usage = shutil.disk_usage(directory if directory.exists() else directory.parent)
    return {"total_bytes": usage.total, "free_bytes": usage.free}


def broker_status() -> dict[str, bool]:
    """Whether the broker answers, and whether an inference process has been heard of through it."""
    client = channels.client()
    try:
        alive = client.exists(inference.Keys(get_settings().redis_prefix).heartbeat)
        return {"broker": True, "inference": bool(alive)}
    except (RedisError, OSError):
        return {"broker": False, "inference": False}
    finally:
        client.close()


def not_ready() -> list[str]:
    """What is missing (migrations, database, worker, broker), as sentences; nothing = ready."""
    missing = []
    try:
        if not migrate.is_current():
            missing.append("The database's schema is not up to date.")
        with reading() as session:
            at = now(session)
            alive = [h for h in session.scalars(select(Host)) if _is_alive(h, at)]
        if not alive:
            missing.append("No worker has been seen lately.")
    except SQLAlchemyError:
        missing.append("The database does not answer.")
    if not broker_status()["broker"]:
        missing.append("The broker does not answer.")
    return missing


def _is_alive(host: Host, at: float) -> bool:
    """A worker of this machine must exist, one of another must have been heard of."""
    if at - host.last_seen_at > get_timing().host_silent_s:
        return False
    if host.draining:
        return False
    if host.id != get_settings().host_id or host.worker_pid is None:
        return True
    try:
        os.kill(host.worker_pid, 0)
    except ProcessLookupError:
        return False  # the row is of the start before this one
    except PermissionError:
        return True
    return True


def prometheus(session: Session) -> str:
    """The numbers that one alerts on, in Prometheus' text format."""
    seen = system(session)
    lines = ["# HELP studio_runs Runs by state.", "# TYPE studio_runs gauge"]
    lines += [f'studio_runs{{state="{state}"}} {count}' for state, count in seen["runs"].items()]
    lines += ["# HELP studio_jobs Jobs by state.", "# TYPE studio_jobs gauge"]
    lines += [f'studio_jobs{{state="{state}"}} {count}' for state, count in seen["jobs"].items()]
    lines += ["# HELP studio_queue_paused Whether the queue is paused for maintenance.",
              "# TYPE studio_queue_paused gauge", f"studio_queue_paused {int(seen['queue']['paused'])}"]
    lines += ["# HELP studio_host_up Whether a machine's worker was heard of lately.", "# TYPE studio_host_up gauge"]
    lines += [f'studio_host_up{{host="{_label(h["id"])}"}} {int(h["is_alive"])}' for h in seen["hosts"]]
    lines += ["# HELP studio_device_slots_in_use Device slots that runs hold.",
              "# TYPE studio_device_slots_in_use gauge"]
    lines += [f'studio_device_slots_in_use{{host="{_label(h["id"])}"}} {len(h["in_use"])}' for h in seen["hosts"]]
    lines += ["# HELP studio_disk_free_bytes Free bytes where the data lies.", "# TYPE studio_disk_free_bytes gauge",
              f"studio_disk_free_bytes {seen['disk']['free_bytes']}"]
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
