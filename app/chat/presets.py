"""Presets: a system prompt and sampling under a name, each its user's own.

Each function works in the caller's transaction.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from app.chat.schemas import PresetCreate, PresetPatch
from app.core.db import Session, now
from app.core.errors import Conflict, NotFound
from app.core.models import ChatPreset, new_id
from app.core.rest import is_id

MAX_PRESETS = 200


def own(session: Session, user_id: str) -> list[ChatPreset]:
    """A user's presets by name."""
    rows = session.scalars(select(ChatPreset).where(ChatPreset.user_id == user_id))
    return sorted(rows, key=lambda row: (row.name.casefold(), row.id))


def get(session: Session, user_id: str, id: str) -> ChatPreset:
    """A preset of this user; raises ``NotFound``, also for another's."""
    query = select(ChatPreset).where(ChatPreset.id == id, ChatPreset.user_id == user_id).with_for_update()
    row = session.scalar(query) if is_id(id) else None
    if row is None:
        raise NotFound("There is no preset of this id.", hint="It may have been deleted; look at the list.")
    return row


def create(session: Session, user_id: str, asked: PresetCreate) -> ChatPreset:
    """Raises ``Conflict`` where the name is taken, or there are too many."""
    count = session.scalar(select(func.count()).select_from(ChatPreset).where(ChatPreset.user_id == user_id)) or 0
    if count >= MAX_PRESETS:
        raise Conflict(f"There are {MAX_PRESETS} presets already.", hint="Delete one that is not needed any more.")
    row = ChatPreset(id=new_id(), user_id=user_id, name=asked.name, created_at=now(session), system=asked.system,
                     sampling=asked.sampling.model_dump(exclude_none=True))
    session.add(row)
    _flush(session, asked.name)
    return row


def change(session: Session, user_id: str, id: str, changes: PresetPatch) -> ChatPreset:
    row = get(session, user_id, id)
    if changes.name is not None:
        row.name = changes.name
    if changes.system is not None:
        row.system = changes.system
    if changes.sampling is not None:
        row.sampling = changes.sampling.model_dump(exclude_none=True)
    _flush(session, row.name)
    return row


def remove(session: Session, user_id: str, id: str) -> None:
    session.delete(get(session, user_id, id))


def _flush(session: Session, name: str) -> None:
    try:
        session.flush()
    except IntegrityError:
        raise Conflict(f"There is a preset named {name} already.", field="name",
                       hint="Choose another name, or change that one.") from None
