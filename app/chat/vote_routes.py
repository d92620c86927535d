"""``/votes``: which of two answers somebody prefers, and what follows from it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.auth.deps import User
from app.chat import votes
from app.chat.vote_schemas import Standings, Verdict, VoteCreate, VoteOut
from app.core.db import reading, transaction
from app.core.once import Post
from app.core.rest import Page, PagingQuery, Read

router = APIRouter(prefix="/votes", tags=["votes"])


@router.get("")
def list_votes(session: Read, user: User, paging: PagingQuery,
               verdict: Annotated[Verdict | None, Query()] = None) -> Page[VoteOut]:
    """Your own votes, the newest first."""
    rows, cursor = votes.own(session, user.user_id, paging, verdict)
    return Page(items=[VoteOut.of(v) for v in rows], next_cursor=cursor)


@router.post("", status_code=201, response_model=VoteOut)
def create_vote(asked: VoteCreate, post: Post):
    """Keep which of two answers is better. Only you will see it."""
    return post.do(201, lambda session: VoteOut.of(votes.create(session, post.user_id, asked)))


@router.get("/standings")
def vote_standings(session: Read, user: User) -> Standings:
    """Which model wins how often against which other, by your own votes."""
    return votes.standings(session, user.user_id)


@router.get("/pairs", response_class=Response, responses={
    200: {"content": {"application/jsonl": {}}, "description": "Rows of the layout dpo, one a line."}})
def download_pairs(user: User) -> Response:
    """Your votes that name a winner as preference pairs, the layout ``dpo`` of docs/data.md."""
    with reading() as session:  # whole, so that a slow reader does not hold the database
        lines = "".join(votes.Pairs(session, user.user_id).lines())
    return Response(lines, media_type="application/jsonl", headers={
        "Content-Disposition": 'attachment; filename="votes.jsonl"', "Cache-Control": "no-store"})


@router.get("/{id}")
def get_vote(id: str, session: Read, user: User) -> VoteOut:
    return VoteOut.of(votes.get(session, user.user_id, id))


@router.delete("/{id}", status_code=204)
def delete_vote(id: str, user: User) -> Response:
    with transaction() as session:
        votes.remove(session, user.user_id, id)
    return Response(status_code=204)
