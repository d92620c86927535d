"""Runs and pipelines, their attempts, and everything that happened to them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core.models.base import (
    DESIRED,
    LEASED_STATES,
    PIPELINE_STATES,
    RUN_STATES,
    TERMINAL_STATES,
    Base,
    new_id,
    one_of,
)


class Pipeline(Base):
    """A line of stages; each run starts from the one before."""

    __tablename__ = "pipeline"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(12))
    stages: Mapped[list] = mapped_column(JSON)  # [{"stage", "config", "dataset_id", "gate", "devices"}] as asked
    user_id: Mapped[str] = mapped_column(String(32))
    error: Mapped[dict | None] = mapped_column(JSON)
    next_seq: Mapped[int] = mapped_column(BigInteger, default=1)
    created_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    __table_args__ = (CheckConstraint(one_of("state", PIPELINE_STATES), name="pipeline_state_known"),)


class Run(Base):
    """One stage being trained. ``state`` is observed, ``desired`` is the user's wish; only
    ``app.core.states.move`` changes ``state``."""

    __tablename__ = "run"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    notes: Mapped[str] = mapped_column(Text, default="")
    tags: Mapped[list] = mapped_column(JSON, default=list)
    user_id: Mapped[str] = mapped_column(String(32))
    stage: Mapped[str] = mapped_column(String(32))
    config: Mapped[dict] = mapped_column(JSON)  # as validated, without place keys; immutable
    devices: Mapped[Any] = mapped_column(JSON)  # as asked: "auto" | {"kind","count"} | ["cuda:0", ...]
    nodes: Mapped[int] = mapped_column(Integer, default=1)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"))
    base_checkpoint_id: Mapped[str | None] = mapped_column(String(32))
    teacher_checkpoint_id: Mapped[str | None] = mapped_column(String(32))  # whose probabilities distill learns
    tokenizer_id: Mapped[str | None] = mapped_column(String(32))
    pipeline_id: Mapped[str | None] = mapped_column(ForeignKey("pipeline.id"), index=True)
    pipeline_position: Mapped[int | None] = mapped_column(Integer)
    parent_id: Mapped[str | None] = mapped_column(String(32))  # cloned from

    state: Mapped[str] = mapped_column(String(12))
    desired: Mapped[str] = mapped_column(String(8), default="run")
    #: why a run is pausing: "user", or "shutdown" (goes back to queued, not to paused)
    reason: Mapped[str | None] = mapped_column(String(20))
    save_on_stop: Mapped[bool] = mapped_column(Boolean, default=False)
    allow_changes: Mapped[bool] = mapped_column(Boolean, default=False)
    #: how often the present attempt was asked to let the model speak
    samples_asked: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    #: attempts in a row that ended without a new checkpoint (three make the run failed)
    fruitless_attempts: Mapped[int] = mapped_column(Integer, default=0)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    queued_at: Mapped[float | None] = mapped_column(Float)
    #: the place among those of one priority, smaller first: ``queued_at`` until somebody moves it up or down
    queue_key: Mapped[float | None] = mapped_column(Float)
    not_before: Mapped[float | None] = mapped_column(Float)  # back-off after a crash
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_host: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[float | None] = mapped_column(Float)

    #: {step, total_steps, tokens, loss, eval_loss, tokens_per_s, eta_s, phase, phase_done, phase_total, phase_unit},
    #: and what ``app.core.sparkline`` keeps
    progress: Mapped[dict] = mapped_column(JSON, default=dict)
    error: Mapped[dict | None] = mapped_column(JSON)
    next_seq: Mapped[int] = mapped_column(BigInteger, default=1)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)

    __table_args__ = (
        CheckConstraint(one_of("state", RUN_STATES), name="run_state_known"),
        CheckConstraint(one_of("desired", DESIRED), name="run_desired_known"),
        CheckConstraint(f"({one_of('state', LEASED_STATES)}) = (lease_owner IS NOT NULL)", name="lease_iff_held"),
        CheckConstraint(f"({one_of('state', TERMINAL_STATES)}) = (ended_at IS NOT NULL)", name="ended_iff_terminal"),
        UniqueConstraint("pipeline_id", "pipeline_position", name="one_run_per_pipeline_position"),
        Index("run_queue", "state", "priority", "queue_key"),
        Index("run_newest", "created_at", "id"),
        Index("run_changed", "updated_at"),
    )


class RunMove(Base):
    """A legal move between states; triggers (``app.core.guards``) refuse every other."""

    __tablename__ = "run_move"
    from_state: Mapped[str] = mapped_column(String(12), primary_key=True)
    to_state: Mapped[str] = mapped_column(String(12), primary_key=True)


class Attempt(Base):
    """One start of a run. ``number`` is the fencing number; a writer with an older one changes nothing."""

    __tablename__ = "attempt"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    state: Mapped[str] = mapped_column(String(8))  # open | closed | lost
    host_id: Mapped[str] = mapped_column(String(64))
    boot_id: Mapped[str] = mapped_column(String(64))
    runner_pid: Mapped[int | None] = mapped_column(Integer)
    runner_started: Mapped[float | None] = mapped_column(Float)  # the process's own start time: pids are reused
    world_size: Mapped[int | None] = mapped_column(Integer)
    resumed_from_step: Mapped[int | None] = mapped_column(Integer)
    #: bytes of events.jsonl already stored; moved in the transaction that stores them: exactly once
    events_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    result: Mapped[dict | None] = mapped_column(JSON)
    #: {class, message, hint} of what ended it, where something did
    error: Mapped[dict | None] = mapped_column(JSON)
    started_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    __table_args__ = (
        CheckConstraint(one_of("state", ("open", "closed", "lost")), name="attempt_state_known"),
        Index("one_open_attempt", "run_id", unique=True,
              sqlite_where=text("state <> 'closed'"), postgresql_where=text("state <> 'closed'")),
    )


class Event(Base):
    """Everything that happened to a run or a pipeline, in order: ``seq`` is dense per topic."""

    __tablename__ = "event"
    topic: Mapped[str] = mapped_column(String(64), primary_key=True)  # "run:ID" | "pipeline:ID"
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    t: Mapped[float] = mapped_column(Float)
    type: Mapped[str] = mapped_column(String(12))
    step: Mapped[int] = mapped_column(BigInteger, default=0)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    data: Mapped[dict] = mapped_column(JSON)
    __table_args__ = (Index("event_by_type", "topic", "type", "seq"),)


class MetricChunk(Base):
    """Metrics of one ingested batch, columnar: ``data = {"step": [...], "tokens": [...], "t": [...], key: [...]}``.

    The same numbers stand in ``event``; this is the form that a chart of a long run can be read from quickly.
    """

    __tablename__ = "metric_chunk"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    attempt: Mapped[int] = mapped_column(Integer)
    first_step: Mapped[int] = mapped_column(BigInteger)
    last_step: Mapped[int] = mapped_column(BigInteger)
    data: Mapped[dict] = mapped_column(JSON)
    __table_args__ = (Index("metric_of_run", "run_id", "attempt", "first_step"),)
