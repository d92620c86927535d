"""``/conversations``: talks with checkpoints, kept so that another browser goes on where this one stopped.

What a model answers is asked of ``/v1/chat/completions``; whoever asked writes it down here.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.auth.deps import User
from app.chat import conversations
from app.chat.schemas import ConversationCreate, ConversationItem, ConversationOut, ConversationPatch
from app.core.db import transaction
from app.core.once import Post
from app.core.rest import Page, PagingQuery, Read

router = APIRouter(prefix="/conversations", tags=["conversations"])


@router.get("")
def list_conversations(session: Read, user: User, paging: PagingQuery) -> Page[ConversationItem]:
    """Your own conversations, the one that was changed last first."""
    rows, cursor = conversations.own(session, user.user_id, paging)
    return Page(items=[ConversationItem.of(c) for c in rows], next_cursor=cursor)


@router.post("", status_code=201, response_model=ConversationOut)
def create_conversation(asked: ConversationCreate, post: Post):
    """Keep a conversation. Only you will see it."""
    return post.do(201, lambda session: ConversationOut.of(conversations.create(session, post.user_id, asked)))


@router.get("/{id}")
def get_conversation(id: str, session: Read, user: User) -> ConversationOut:
    return ConversationOut.of(conversations.get(session, user.user_id, id))


@router.patch("/{id}")
def patch_conversation(id: str, changes: ConversationPatch, user: User) -> ConversationOut:
    """Change what is given. With ``version``, 409 where it was changed somewhere else meanwhile."""
    with transaction() as session:
        return ConversationOut.of(conversations.change(session, user.user_id, id, changes))


@router.delete("/{id}", status_code=204)
def delete_conversation(id: str, user: User) -> Response:
    with transaction() as session:
        conversations.remove(session, user.user_id, id)
    return Response(status_code=204)
