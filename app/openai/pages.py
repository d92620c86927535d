"""The page of the requests that programs (the chat page is one) have sent to ``/v1``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select

from app.auth.deps import User
from app.core.db import reading
from app.core.models import User as UserRow
from app.core.rest import Paging
from app.openai import request_log
from app.openai.log_routes import RequestOut
from app.rendering import page

router = APIRouter(include_in_schema=False)
REQUESTS_SHOWN = 100


@router.get("/requests")
def requests_page(request: Request, user: User,
                  cursor: Annotated[str | None, Query(max_length=200)] = None) -> Response:
    """Your requests, newest first; an admin sees everybody's and who sent them."""
    with reading() as session:
        rows, following = request_log.seen_by(session, user, Paging(cursor=cursor, limit=REQUESTS_SHOWN))
        requests = [RequestOut.of(row) for row in rows]
        senders = {r.user_id for r in requests} if user.role == "admin" else set()
        names = dict(session.execute(select(UserRow.id, UserRow.name).where(UserRow.id.in_(senders))).all())
    return page(request, "pages/requests.html", requests=requests, names=names, next_cursor=following, cursor=cursor)
