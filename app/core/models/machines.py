"""Machines with a worker, and who holds their devices."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.models.base import Base


class Host(Base):
    """A machine with a worker; ``last_seen_at`` is its heartbeat."""

    __tablename__ = "host"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    boot_id: Mapped[str] = mapped_column(String(64))
    cpu_slots: Mapped[int] = mapped_column(Integer)
    devices: Mapped[list] = mapped_column(JSON)  # [{"id": "cuda:0", "name", "memory_bytes"}], CPUs not listed
    versions: Mapped[dict] = mapped_column(JSON)
    draining: Mapped[bool] = mapped_column(Boolean, default=False)
    worker_pid: Mapped[int | None] = mapped_column(Integer)
    last_seen_at: Mapped[float] = mapped_column(Float)
    #: what ``worker.load`` saw with the last heartbeat
    load: Mapped[dict | None] = mapped_column(JSON)
    #: why its worker takes no runs, as a sentence; None where it does
    problem: Mapped[str | None] = mapped_column(Text)
    #: devices that are left alone for a while: [{"id", "reason", "until"}], unix seconds of the database's clock
    bad_devices: Mapped[list | None] = mapped_column(JSON)


class DeviceLease(Base):
    """One device slot (``cpu:0``, ``cuda:1``) that an attempt holds; the primary key lets only one in."""

    __tablename__ = "device_lease"
    host_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    device: Mapped[str] = mapped_column(String(20), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int] = mapped_column(Integer)
