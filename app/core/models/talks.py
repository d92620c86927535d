"""Talks with models: what the chat page keeps, votes on answers, and the log of requests."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, CheckConstraint, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.models.base import Base, new_id


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
    messages: Mapped[list] = mapped_column(JSON)  # a tree: each with an id and its parent's
    head: Mapped[str | None] = mapped_column(String(32))  # id of the message that the shown branch ends with
    mode: Mapped[str | None] = mapped_column(String(8))  # chat or text; None: what suits the checkpoint
    search_text: Mapped[str] = mapped_column(Text, server_default="")  # title and messages, case-folded
    __table_args__ = (Index("conversation_of_user", "user_id", "updated_at", "id"),)


class ChatPreset(Base):
    """A system prompt and sampling under a name; it belongs to one user."""

    __tablename__ = "chat_preset"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(Float)
    sampling: Mapped[dict] = mapped_column(JSON)
    system: Mapped[str] = mapped_column(Text)
    __table_args__ = (UniqueConstraint("user_id", "name", name="chat_preset_name"),)


class Vote(Base):
    """Which of two answers to one prompt somebody prefers: a preference pair for DPO where the verdict is a or b."""

    __tablename__ = "vote"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"))
    created_at: Mapped[float] = mapped_column(Float)
    messages: Mapped[list] = mapped_column(JSON)  # the prompt, a system message included
    answers: Mapped[list] = mapped_column(JSON)  # two: who answered, with which sampling, and what
    verdict: Mapped[str] = mapped_column(String(8))
    is_blind: Mapped[bool] = mapped_column(Boolean)  # whether the names were hidden until the vote
    __table_args__ = (CheckConstraint("verdict IN ('a', 'b', 'tie', 'bad')", name="vote_verdict"),
                      Index("vote_of_user", "user_id", "created_at", "id"))


class RequestLog(Base):
    """One request to ``/v1``, without what was said unless the settings ask for it."""

    __tablename__ = "request_log"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    user_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(Float)
    route: Mapped[str] = mapped_column(String(64))
    client: Mapped[str] = mapped_column(String(200))  # its User-Agent
    model: Mapped[str] = mapped_column(String(200))
    status: Mapped[int] = mapped_column(Integer)  # HTTP
    finish_reason: Mapped[str | None] = mapped_column(String(32))
    error: Mapped[str | None] = mapped_column(String(64))  # its code
    prompt_tokens: Mapped[int] = mapped_column(Integer)
    cached_tokens: Mapped[int] = mapped_column(Integer)  # of the prompt, not computed again
    completion_tokens: Mapped[int] = mapped_column(Integer)
    first_token_s: Mapped[float | None] = mapped_column(Float)
    total_s: Mapped[float] = mapped_column(Float)
    content: Mapped[dict | None] = mapped_column(JSON)
    __table_args__ = (Index("request_log_newest", "created_at", "id"),)
