"""The system as its page shows it: machines with what their devices do, the queue with its reasons, jobs, disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from app.core.db import Session
from app.core.models import Dataset, DeviceLease, Job, Run, TokenizerRow
from app.core.queue import QUEUE_ORDER
from app.core.rest import Paging, newest_first, rfc3339
from app.i18n import gettext as _
from app.i18n import ngettext
from app.jobs.routes import JobOut
from app.runs.outlook import Look, look
from app.runs.waiting import paused_words
from app.system import service

QUEUE_SHOWN = 20
JOBS_SHOWN = 10
#: below this share of free space a training may stop for want of it
LOW_DISK = 0.05


@dataclass(frozen=True)
class Slot:
    """One CPU slot or GPU; ``run_id`` is None while it is free."""

    device: str
    title: str
    run_id: str | None
    run_name: str = ""
    #: why nothing is started on it for a while
    problem: str | None = None

    @property
    def short(self) -> str:
        return self.device.rpartition(":")[2]


@dataclass(frozen=True)
class Bar:
    """A load: ``share`` of 1, and the same in words."""

    label: str
    share: float
    text: str


@dataclass(frozen=True)
class Machine:
    id: str
    name: str
    is_alive: bool
    draining: bool
    #: why its worker takes no runs
    problem: str | None
    last_seen_at: str
    cpus: list[Slot]
    gpus: list[Slot]
    bars: list[Bar]
    versions: dict[str, str]

    @property
    def holders(self) -> dict[str, str]:
        """Id -> name of the runs that use it, each once."""
        return {slot.run_id: slot.run_name for slot in self.cpus + self.gpus if slot.run_id is not None}

    @property
    def left_alone(self) -> list[Slot]:
        """Devices that nothing is started on for a while."""
        return [slot for slot in self.cpus + self.gpus if slot.problem is not None]


@dataclass(frozen=True)
class Waiting:
    id: str
    name: str
    stage: str
    priority: int
    wants: str
    reason: str
    start: str | None
    end: str | None


@dataclass(frozen=True)
class JobRow:
    job: JobOut
    label: str
    subject: str | None
    href: str | None

    @property
    def progress(self) -> dict[str, Any]:
        """With every key, also before there is any."""
        return {"done": None, "total": None, "unit": None, "message": None} | self.job.progress

    @property
    def failure(self) -> str | None:
        return None if self.job.error is None else self.job.error.get("message") or _("It failed.")


@dataclass(frozen=True)
class SystemView:
    facts: dict[str, Any]
    machines: list[Machine]
    queue: list[Waiting]
    jobs: list[JobRow]
    #: that the queue is paused, in words; None while it goes on
    paused: str | None

    @property
    def has_worker(self) -> bool:
        return any(m.is_alive for m in self.machines)

    @property
    def without_runs(self) -> list[Machine]:
        """Machines that are there and take no runs, for a reason."""
        return [m for m in self.machines if m.is_alive and m.problem]

    @property
    def free_share(self) -> float:
        disk = self.facts["disk"]
        return disk["free_bytes"] / disk["total_bytes"] if disk["total_bytes"] else 1.0

    @property
    def is_disk_low(self) -> bool:
        return self.free_share < LOW_DISK


def view(session: Session) -> SystemView:
    """Everything but the broker, which is asked without holding the database."""
    facts = service.system(session)
    held = _held(session)
    machines = [_machine(host, held.get(host["id"], {})) for host in facts["hosts"]]
    machines.sort(key=lambda m: (not m.is_alive, m.name, m.id))
    seen = look(session)
    return SystemView(facts, machines, _queue(session, seen), _jobs(session),
                      None if seen.paused is None else paused_words(seen.paused))


def _held(session: Session) -> dict[str, dict[str, tuple[str, str]]]:
    """Host -> device -> id and name of the run that holds it."""
    held: dict[str, dict[str, tuple[str, str]]] = {}
    rows = session.execute(select(DeviceLease.host_id, DeviceLease.device, Run.id, Run.name)
                           .join(Run, Run.id == DeviceLease.run_id))
    for host, device, id, name in rows:
        held.setdefault(host, {})[device] = (id, name)
    return held


def _machine(host: dict[str, Any], held: dict[str, tuple[str, str]]) -> Machine:
    bad = {each["id"]: each["reason"] for each in host["bad_devices"]}

    def slot(device: str, title: str) -> Slot:
        run_id, name = held.get(device, (None, ""))
        return Slot(device, title, run_id, name, bad.get(device))

    cpus = [slot(f"cpu:{n}", _("CPU slot %(number)s") % {"number": n}) for n in range(host["cpu_slots"])]
    gpus = [slot(d["id"], d.get("name") or d["id"]) for d in host["devices"]]
    return Machine(host["id"], host["name"], host["is_alive"], host["draining"], host["problem"],
                   host["last_seen_at"], cpus, gpus, _bars(host) if host["is_alive"] else [], host["versions"])


def _bars(host: dict[str, Any]) -> list[Bar]:
    """How busy the machine is, as far as its worker could find out."""
    load = host.get("load") or {}
    bars = [_percent(_("CPU"), load.get("cpu_percent")),
            _memory(_("Memory"), load.get("memory_used_bytes"), load.get("memory_total_bytes"))]
    for gpu in load.get("gpus") or []:
        device = gpu.get("device", "GPU")
        bars += [_percent(device, gpu.get("percent")),
                 _memory(_("%(device)s memory") % {"device": device}, gpu.get("memory_used_bytes"),
                         gpu.get("memory_total_bytes"))]
    return [bar for bar in bars if bar is not None]


def _percent(label: str, percent: float | None) -> Bar | None:
    return None if percent is None else Bar(label, min(1.0, round(percent / 100, 3)), f"{percent:.0f} %")


def _memory(label: str, used: float | None, total: float | None) -> Bar | None:
    if used is None or not total:
        return None
    return Bar(label, min(1.0, used / total), f"{used / 1e9:.1f} / {total / 1e9:.1f} GB")


def _queue(session: Session, seen: Look) -> list[Waiting]:
    """The queued runs in the order in which they are looked at, each with what it waits for and its forecast."""
    has_gpus = any(host.devices for host in seen.facts.ready)
    runs = session.scalars(select(Run).where(Run.state == "queued").order_by(*QUEUE_ORDER).limit(QUEUE_SHOWN))
    found = []
    for run in runs:
        ahead = seen.prospect(run)
        found.append(Waiting(run.id, run.name, run.stage, run.priority, wants(run.devices, has_gpus),
                             ahead.waiting_for or "", rfc3339(ahead.start), rfc3339(ahead.end)))
    return found


def wants(devices: Any, has_gpus: bool) -> str:
    """What a run asked for, in words."""
    if devices == "auto":
        return _("one GPU") if has_gpus else _("the whole CPU of a machine")
    if isinstance(devices, dict):
        count = devices["count"]
        return (ngettext("%(num)s GPU", "%(num)s GPUs", count) if devices["kind"] == "cuda"
                else ngettext("%(num)s CPU slot", "%(num)s CPU slots", count)) % {"num": count}
    return ", ".join(devices)


def _jobs(session: Session) -> list[JobRow]:
    """What is being done or waits, then what ended last."""
    rows, _cursor = newest_first(session, select(Job), Job, Paging(limit=JOBS_SHOWN))
    oldest_first = session.scalars(select(Job).where(Job.state.in_(("running", "queued")))
                                   .order_by(Job.created_at).limit(JOBS_SHOWN)).all()
    found = list(dict.fromkeys([*sorted(oldest_first, key=lambda j: j.state != "running"), *rows]))
    return [_job(session, job) for job in found[:JOBS_SHOWN]]


def _job(session: Session, job: Job) -> JobRow:
    labels = {"dataset_import": _("Import a dataset"), "tokenizer_train": _("Train a tokenizer"),
              "teacher_answers": _("Have a teacher answer"), "checkpoint_export": _("Export a checkpoint"),
              "checkpoint_import": _("Import a model")}
    subject, href = None, None
    if job.kind in ("dataset_import", "teacher_answers"):
        dataset = session.get(Dataset, job.payload.get("dataset_id", ""))
        if dataset is not None:
            subject, href = dataset.name, f"/datasets/{dataset.id}"
    elif job.kind == "tokenizer_train":
        subject = session.scalar(select(TokenizerRow.name).where(TokenizerRow.job_id == job.id))
    elif job.kind in ("checkpoint_export", "checkpoint_import"):
        subject = job.payload["name"]
    return JobRow(JobOut.of(job), labels.get(job.kind, job.kind), subject, href)

