"""Conversations, each its user's own: nobody else, whatever his role, is told that it exists.

Each function works in the caller's transaction.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import defer

from app.chat import search
from app.chat.messages import Message, kept, stored
from app.chat.schemas import ConversationCreate, ConversationPatch, head_of
from app.core.db import Session, now
from app.core.errors import Conflict, Invalid, NotFound
from app.core.models import Conversation, new_id
from app.core.rest import Paging, is_id, newest_first

TITLE_CHARS = 80


def own(session: Session, user_id: str, paging: Paging) -> tuple[list[Conversation], str | None]:
    """A page of a user's conversations, the one that was changed last first; what was said is not read."""
    query = _of(user_id).options(defer(Conversation.messages))
    return newest_first(session, query, Conversation, paging, by="updated_at")


def found(session: Session, user_id: str, words: list[str], paging: Paging,
          ) -> tuple[list[tuple[Conversation, str | None]], str | None]:
    """A page of those that hold every one of ``words``, each with an excerpt. ``search.fill`` comes before."""
    rows, cursor = newest_first(session, search.matching(_of(user_id), words), Conversation, paging, by="updated_at")
    return [(row, search.excerpt(kept(row.messages), words)) for row in rows], cursor


def _of(user_id: str) -> Select:
    return select(Conversation).where(Conversation.user_id == user_id).options(
        defer(Conversation.system), defer(Conversation.sampling), defer(Conversation.search_text))


def get(session: Session, user_id: str, id: str, *, lock: bool = False) -> Conversation:
    """A conversation of this user, ``lock``ed until the commit; raises ``NotFound``, also for another's."""
    query = select(Conversation).where(Conversation.id == id, Conversation.user_id == user_id)
    row = session.scalar(query.with_for_update() if lock else query) if is_id(id) else None
    if row is None:
        raise NotFound("There is no conversation of this id.", hint="It may have been deleted; look at the list.")
    return row


def create(session: Session, user_id: str, asked: ConversationCreate) -> Conversation:
    at, title = now(session), asked.title or title_of(asked.messages)
    row = Conversation(id=new_id(), user_id=user_id, title=title,
                       checkpoint_id=asked.checkpoint_id, adapter_checkpoint_id=asked.adapter_checkpoint_id,
                       version=1, message_count=len(asked.messages), created_at=at, updated_at=at,
                       sampling=asked.sampling.model_dump(exclude_none=True), system=asked.system,
                       messages=stored(asked.messages), head=_head(asked.messages, asked.head), mode=asked.mode,
                       search_text=search.text_of(title, asked.messages))
    session.add(row)
    session.flush()
    return row


def change(session: Session, user_id: str, id: str, changes: ConversationPatch) -> Conversation:
    """Change what is given. Raises ``Conflict`` where the conversation is no longer at ``changes.version``, unless it
    is what the change would make of it: a page that is left saves once more what may be on its way already."""
    row = get(session, user_id, id, lock=True)
    if changes.version is not None and changes.version != row.version:
        if _is_made(changes, row):
            return row
        message = "This conversation was changed somewhere else meanwhile."
        hint = f"Its present version is {row.version}; load it again."
        raise Conflict(message, field="version", hint=hint, problems=[
            {"field": "version", "message": message, "hint": hint, "version": row.version}])
    given = _columns(changes, row)
    if given:
        for name, value in given.items():
            setattr(row, name, value)
        row.version += 1
        row.updated_at = now(session)
        session.flush()
    return row


def _is_made(changes: ConversationPatch, row: Conversation) -> bool:
    try:
        return all(getattr(row, name) == value for name, value in _columns(changes, row).items())
    except Invalid:  # its head is a message that is not there (any more)
        return False


def _columns(changes: ConversationPatch, row: Conversation) -> dict[str, Any]:
    """The new values of ``row``. Null means: no checkpoint, no adapter, no mode, a title from the messages, the last
    message as head, else unchanged."""
    given = {name: getattr(changes, name) for name in changes.model_fields_set - {"version"}}
    columns = {name: given[name] for name in ("title", "checkpoint_id", "adapter_checkpoint_id", "mode")
               if name in given}
    if given.get("system") is not None:
        columns["system"] = given["system"]
    if given.get("sampling") is not None:
        columns["sampling"] = given["sampling"].model_dump(exclude_none=True)
    messages = given.get("messages")
    if messages is not None:
        columns |= {"messages": stored(messages), "message_count": len(messages)}
    if messages is not None or "head" in given:
        columns["head"] = _head(messages if messages is not None else kept(row.messages), given.get("head"))
    if not columns.get("title", row.title):
        made = title_of(messages if messages is not None else kept(row.messages))
        if made != row.title:
            columns["title"] = made
        else:
            columns.pop("title", None)
    if "title" in columns or messages is not None:
        said = messages if messages is not None else kept(row.messages)
        columns["search_text"] = search.text_of(columns.get("title", row.title), said)
    return columns


def _head(messages: list[Message], asked: str | None) -> str | None:
    """Raises ``Invalid`` where no message has the id that was asked for."""
    head = head_of(messages, asked)
    if asked is not None and head != asked:
        raise Invalid(f"No message has the id {asked}.", field="head", hint="Name one of messages, or leave it out.")
    return head


def remove(session: Session, user_id: str, id: str) -> None:
    session.delete(get(session, user_id, id, lock=True))


def title_of(messages: list[Message]) -> str:
    """The first line of the first user message that says anything, at most 80 characters; "" without one."""
    for message in messages:
        if message.role == "user":
            for line in message.content.splitlines():
                shown = " ".join("".join(c if c.isprintable() else " " for c in line).split())
                if shown:
                    return shown[:TITLE_CHARS].rstrip()
    return ""
