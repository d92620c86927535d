"""``/requests``: what was asked of ``/v1``, without what was said."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.auth.deps import User
from app.core.models import RequestLog
from app.core.rest import Page, PagingQuery, Read, rfc3339
from app.openai import request_log

router = APIRouter(tags=["openai"])


class RequestOut(BaseModel):
    """One request to ``/v1``."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    user_id: str | None
    created_at: str
    route: str
    client: str = Field(description="What the client calls itself (User-Agent).")
    model: str = Field(description="As the client named it.")
    status: int = Field(description="HTTP; 499 where the client left before the end.")
    finish_reason: str | None
    error: str | None = Field(description="The code of the error that ended it.")
    prompt_tokens: int
    cached_tokens: int = Field(description="Of the prompt's, those that were in memory already.")
    completion_tokens: int
    first_token_s: float | None
    total_s: float
    content: dict[str, Any] | None = Field(description="What was asked and answered, where the server keeps it.")

    @classmethod
    def of(cls, row: RequestLog) -> RequestOut:
        values = {name: getattr(row, name) for name in cls.model_fields}
        return cls(**(values | {"created_at": rfc3339(row.created_at)}))


@router.get("/requests")
def list_requests(session: Read, user: User, paging: PagingQuery) -> Page[RequestOut]:
    """Your requests to `/v1`, newest first; an admin sees those of everybody. The newest 10,000 of the last 30 days
    are kept."""
    rows, cursor = request_log.seen_by(session, user, paging)
    return Page(items=[RequestOut.of(row) for row in rows], next_cursor=cursor)
