"""What lies on a disk: checkpoints, datasets, tokenizers."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, CheckConstraint, Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.models.base import Base, new_id, one_of
from app.core.models.runs import Run


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
    __table_args__ = (CheckConstraint(one_of("state", ("importing", "ready", "failed")), name="dataset_state_known"),)


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
