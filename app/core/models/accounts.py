"""Who uses the studio: the installation, its users, their sessions and tokens."""

from __future__ import annotations

from sqlalchemy import JSON, CheckConstraint, Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.models.base import ROLES, Base, new_id, one_of


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
    __table_args__ = (CheckConstraint(one_of("role", ROLES), name="role_known"),)


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
