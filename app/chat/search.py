"""Finding conversations by what was said in them, in any language: each word is looked for as it stands, wherever it
begins, so that Chinese needs no spaces. Case does not count.
"""

from __future__ import annotations

from itertools import accumulate

from sqlalchemy import Select, select

from app.chat.messages import Message, kept
from app.core.db import Session
from app.core.models import Conversation
from app.core.rest import like

MAX_WORDS = 10
EXCERPT_BEFORE, EXCERPT_CHARS = 30, 120
#: conversations from before there was a search that are read in one transaction
BATCH = 100


def words_of(q: str) -> list[str]:
    return list(dict.fromkeys(q.casefold().split()))[:MAX_WORDS]


def text_of(title: str, messages: list[Message]) -> str:
    """What a conversation is found by. Never empty: an empty one was not made yet."""
    return "\n".join([title, *(m.content for m in messages if m.role != "system"), ""]).casefold()


def matching(query: Select, words: list[str]) -> Select:
    """``query`` of conversations, only those that hold every one of ``words``."""
    for word in words:
        query = query.where(Conversation.search_text.like(like(word), escape="\\"))
    return query


def is_wanting(session: Session, user_id: str) -> bool:
    """Whether some of a user's conversations cannot be found yet."""
    return session.scalar(_unfilled(user_id).with_only_columns(Conversation.id)) is not None


def _unfilled(user_id: str) -> Select:
    return select(Conversation).where(Conversation.user_id == user_id, Conversation.search_text == "").limit(BATCH)


def fill(session: Session, user_id: str) -> int:
    """Write down what some of a user's old conversations are found by; how many those were."""
    rows = session.scalars(_unfilled(user_id).with_for_update(skip_locked=True))
    count = 0
    for row in rows:
        row.search_text = text_of(row.title, kept(row.messages))
        count += 1
    session.flush()
    return count


def excerpt(messages: list[Message], words: list[str]) -> str | None:
    """Round the first of ``words`` that was said, one line; None where none was."""
    for message in messages:
        if message.role == "system":
            continue
        at = min((found for found in (_place(message.content, word) for word in words) if found >= 0), default=-1)
        if at >= 0:
            start = max(0, at - EXCERPT_BEFORE)
            cut = message.content[start:start + EXCERPT_CHARS]
            line = " ".join("".join(c if c.isprintable() else " " for c in cut).split())
            return ("…" if start else "") + line + ("…" if start + EXCERPT_CHARS < len(message.content) else "")
    return None


def _place(text: str, word: str) -> int:
    """Where ``word`` begins in ``text``, -1 where nowhere; folding case may change how long a text is."""
    folded = text.casefold()
    at = folded.find(word)
    if at <= 0 or len(folded) == len(text):
        return at
    ends = accumulate(len(c.casefold()) for c in text)
    return next(place for place, end in enumerate(ends) if end > at)
