"""``/conversations``: talks with checkpoints, kept so that another browser goes on where this one stopped; and
``/chat/presets``: how its user likes answers to be drawn.

What a model answers is asked of ``/v1/chat/completions``; whoever asked writes it down here.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.auth.deps import User
from app.chat import conversations, presets, search
from app.chat.schemas import (
    ConversationCreate,
    ConversationItem,
    ConversationOut,
    ConversationPatch,
    PresetCreate,
    PresetOut,
    PresetPatch,
)
from app.core.db import reading, transaction
from app.core.once import Post
from app.core.rest import Page, PagingQuery, Read

router = APIRouter(tags=["conversations"])

Searched = Annotated[str, Query(max_length=200, description="Only those that hold every one of these words, in their "
                                                            "title or in what was said, wherever a word begins.")]


@router.get("/conversations")
def list_conversations(user: User, paging: PagingQuery, q: Searched = "") -> Page[ConversationItem]:
    """Your own conversations, the one that was changed last first."""
    words = search.words_of(q)
    if not words:
        with reading() as session:
            rows, cursor = conversations.own(session, user.user_id, paging)
            return Page(items=[ConversationItem.of(c) for c in rows], next_cursor=cursor)
    _fill_search(user.user_id)
    with reading() as session:
        found, cursor = conversations.found(session, user.user_id, words, paging)
        return Page(items=[ConversationItem.of(c, excerpt) for c, excerpt in found], next_cursor=cursor)


def _fill_search(user_id: str) -> None:
    """Old conversations can be found too; only the first search has any of them to read."""
    with reading() as session:
        waiting = search.is_wanting(session, user_id)
    while waiting:
        with transaction() as session:
            waiting = search.fill(session, user_id) > 0


@router.post("/conversations", status_code=201, response_model=ConversationOut)
def create_conversation(asked: ConversationCreate, post: Post):
    """Keep a conversation. Only you will see it."""
    return post.do(201, lambda session: ConversationOut.of(conversations.create(session, post.user_id, asked)))


@router.get("/conversations/{id}")
def get_conversation(id: str, session: Read, user: User) -> ConversationOut:
    return ConversationOut.of(conversations.get(session, user.user_id, id))


@router.patch("/conversations/{id}")
def patch_conversation(id: str, changes: ConversationPatch, user: User) -> ConversationOut:
    """Change what is given. With ``version``, 409 where it was changed somewhere else meanwhile."""
    with transaction() as session:
        return ConversationOut.of(conversations.change(session, user.user_id, id, changes))


@router.delete("/conversations/{id}", status_code=204)
def delete_conversation(id: str, user: User) -> Response:
    with transaction() as session:
        conversations.remove(session, user.user_id, id)
    return Response(status_code=204)


@router.get("/chat/presets")
def list_presets(session: Read, user: User) -> Page[PresetOut]:
    """Your own presets of the chat page, by name."""
    return Page(items=[PresetOut.of(row) for row in presets.own(session, user.user_id)])


@router.post("/chat/presets", status_code=201, response_model=PresetOut)
def create_preset(asked: PresetCreate, post: Post):
    """Keep sampling and a system prompt under a name. Only you will see it."""
    return post.do(201, lambda session: PresetOut.of(presets.create(session, post.user_id, asked)))


@router.patch("/chat/presets/{id}")
def patch_preset(id: str, changes: PresetPatch, user: User) -> PresetOut:
    with transaction() as session:
        return PresetOut.of(presets.change(session, user.user_id, id, changes))


@router.delete("/chat/presets/{id}", status_code=204)
def delete_preset(id: str, user: User) -> Response:
    with transaction() as session:
        presets.remove(session, user.user_id, id)
    return Response(status_code=204)
