"""The database schema: the only truth of the studio.

Times are unix seconds (float) from the *database's* clock (``unix_now()``), so that hosts with wrong
clocks cannot expire each other's leases; the API turns them into RFC 3339. Ids are made by us
(``new_id``), never by a client.
"""

from __future__ import annotations

import secrets
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
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.sql.functions import FunctionElement

RUN_STATES = ("queued", "starting", "running", "pausing", "paused", "recovering", "cancelling",
              "completed", "failed", "cancelled")
TERMINAL_STATES = ("completed", "failed", "cancelled")
#: states in which a runner holds the run
LEASED_STATES = ("starting", "running", "pausing", "cancelling")
DESIRED = ("run", "pause", "cancel")
JOB_STATES = ("queued", "running", "completed", "failed", "cancelled")
PIPELINE_STATES = ("running", "paused", "completed", "failed", "cancelled")
ROLES = ("admin", "member", "viewer")
#: the user that the start token and tokens made before any user exist belong to
LOCAL_ADMIN_ID = "local"

_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # without look-alikes


def new_id() -> str:
    """A server-made id: 12 characters, 60 bits."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))


class unix_now(FunctionElement):
    """The database's clock as unix seconds with fractions."""

    type = Float()
    inherit_cache = True


@compiles(unix_now, "sqlite")
def _unix_now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(unix_now, "postgresql")
def _unix_now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


class Base(DeclarativeBase):
    pass


class Installation(Base):
    """One row: who this installation is, and whether its queue is paused. Live clients start over when ``uid``
    changed."""

    __tablename__ = "installation"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    uid: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(Float)
    #: the code that the web process runs (``app.core.version``); workers with another take nothing
    code_version: Mapped[str | None] = mapped_column(String(64))
    #: ``host.id`` of the machine whose disk the database lies on; None where it is a server
    home_host: Mapped[str | None] = mapped_column(String(64))
    #: maintenance: nothing is claimed while it is set
    queue_paused_at: Mapped[float | None] = mapped_column(Float)
    queue_paused_by: Mapped[str | None] = mapped_column(String(100))
    queue_note: Mapped[str | None] = mapped_column(Text)


class User(Base):
    __tablename__ = "user_account"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    role: Mapped[str] = mapped_column(String(10))
    password_hash: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    __table_args__ = (CheckConstraint(_one_of("role", ROLES), name="role_known"),)


class LoginSession(Base):
    """A browser's session; the cookie carries a secret of which only the SHA-256 is kept."""

    __tablename__ = "login_session"
    id_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)


class ApiToken(Base):
    __tablename__ = "api_token"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)


class Conversation(Base):
    """A talk with a checkpoint, as a chat page keeps it; it belongs to one user and outlives the checkpoint."""

    __tablename__ = "conversation"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200))  # "" until there is a message to take it from
    checkpoint_id: Mapped[str | None] = mapped_column(String(32))  # it may be gone by now
    adapter_checkpoint_id: Mapped[str | None] = mapped_column(String(32))  # whose adapter is laid over it
    version: Mapped[int] = mapped_column(Integer)  # grows with each change: tabs notice each other's
    message_count: Mapped[int] = mapped_column(Integer)  # a list is shown without reading any message
    created_at: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)
    sampling: Mapped[dict] = mapped_column(JSON)
    system: Mapped[str] = mapped_column(Text)
    messages: Mapped[list] = mapped_column(JSON)
    __table_args__ = (Index("conversation_of_user", "user_id", "updated_at", "id"),)


class IdempotentAnswer(Base):
    """The answer to a POST with an ``Idempotency-Key``, replayed for 24 hours."""

    __tablename__ = "idempotent_answer"
    user_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    route: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    body_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    answer: Mapped[dict] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)


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
    __table_args__ = (CheckConstraint(_one_of("state", PIPELINE_STATES), name="pipeline_state_known"),)


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
        CheckConstraint(_one_of("state", RUN_STATES), name="run_state_known"),
        CheckConstraint(_one_of("desired", DESIRED), name="run_desired_known"),
        CheckConstraint(f"({_one_of('state', LEASED_STATES)}) = (lease_owner IS NOT NULL)", name="lease_iff_held"),
        CheckConstraint(f"({_one_of('state', TERMINAL_STATES)}) = (ended_at IS NOT NULL)", name="ended_iff_terminal"),
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
        CheckConstraint(_one_of("state", ("open", "closed", "lost")), name="attempt_state_known"),
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


class Checkpoint(Base):
    """A committed checkpoint directory. Readers trust this row and the manifest in the directory, both."""

    __tablename__ = "checkpoint"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int] = mapped_column(Integer)
    stage: Mapped[str] = mapped_column(String(32))
    step: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    loss: Mapped[float | None] = mapped_column(Float)
    eval_loss: Mapped[float | None] = mapped_column(Float)
    path: Mapped[str] = mapped_column(Text)  # absolute
    tokenizer_fingerprint: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(10), default="ready")  # ready | deleted | corrupt
    problem: Mapped[str | None] = mapped_column(Text)  # what is wrong with a corrupt one
    save_s: Mapped[float | None] = mapped_column(Float)  # how long training waited for it
    created_at: Mapped[float] = mapped_column(Float)
    run: Mapped[Run] = relationship(viewonly=True)  # whose name it is shown by
    __table_args__ = (UniqueConstraint("run_id", "step", "attempt", name="one_row_per_checkpoint"),)


class Dataset(Base):
    __tablename__ = "dataset"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    user_id: Mapped[str] = mapped_column(String(32))
    layout: Mapped[str] = mapped_column(String(20))  # "auto" until imported
    state: Mapped[str] = mapped_column(String(10))  # importing | ready | failed
    source: Mapped[dict] = mapped_column(JSON)  # {"kind": "upload", "filename"} | {"kind": "starter", ...}
    path: Mapped[str | None] = mapped_column(Text)  # absolute, set when ready
    rows: Mapped[int | None] = mapped_column(BigInteger)
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    #: ``bytes:mtime_ns`` of the file when it was hashed: a file that still has it need not be hashed again
    stamp: Mapped[str | None] = mapped_column(String(60))
    error: Mapped[dict | None] = mapped_column(JSON)  # {message, line, field, hint}
    warnings: Mapped[list] = mapped_column(JSON, default=list)
    job_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(Float)
    __table_args__ = (CheckConstraint(_one_of("state", ("importing", "ready", "failed")), name="dataset_state_known"),)


class TokenizerRow(Base):
    __tablename__ = "tokenizer"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    user_id: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(10))  # training | ready | failed
    fingerprint: Mapped[str | None] = mapped_column(String(64), index=True)
    vocab_size: Mapped[int | None] = mapped_column(Integer)
    path: Mapped[str | None] = mapped_column(Text)  # absolute directory, set when ready
    #: {"kind": "upload"} | {"kind": "dataset", "dataset_id", "vocab_size"} | {"kind": "run", "run_id"}
    source: Mapped[dict] = mapped_column(JSON)
    error: Mapped[dict | None] = mapped_column(JSON)
    job_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(Float)


class Job(Base):
    """Long work that is not a run (dataset import, tokenizer training), same claim and lease as runs."""

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    kind: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(10))
    payload: Mapped[dict] = mapped_column(JSON)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    cancel_wanted: Mapped[bool] = mapped_column(Boolean, default=False)
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_host: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[float | None] = mapped_column(Float)
    progress: Mapped[dict] = mapped_column(JSON, default=dict)  # {done, total, unit, message}
    result: Mapped[dict | None] = mapped_column(JSON)
    error: Mapped[dict | None] = mapped_column(JSON)
    user_id: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    __table_args__ = (
        CheckConstraint(_one_of("state", JOB_STATES), name="job_state_known"),
        CheckConstraint("(state = 'running') = (lease_owner IS NOT NULL)", name="job_lease_iff_running"),
    )
