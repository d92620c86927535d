"""``/secrets/teacher``: keys of the servers that teach. They can be given and forgotten, and never be read."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.auth.deps import User
from app.core import secrets
from app.core.errors import NotFound
from app.core.rest import rfc3339
from app.datasets import teacher
from app.datasets.teacher_schemas import KeyIn, KeyList, KeyOut

router = APIRouter(prefix="/secrets/teacher", tags=["datasets"])


@router.get("")
def list_keys(user: User) -> KeyList:
    """The servers that you have given keys for."""
    return KeyList(items=[KeyOut(url=origin, kept_at=rfc3339(at))
                          for origin, at in secrets.origins_with_keys(user.user_id)])


@router.put("", status_code=204)
def keep_key(asked: KeyIn, user: User) -> Response:
    """Keep a key for a server, in place of the one before. Only your own jobs use it, and only for this server."""
    secrets.keep_key(user.user_id, teacher.address_of(asked.url).origin, asked.key.get_secret_value())
    return Response(status_code=204)


@router.delete("", status_code=204)
def forget_key(url: Annotated[str, Query(max_length=2000)], user: User) -> Response:
    """Forget your key for a server; 404 where there is none."""
    if not secrets.forget_key(user.user_id, teacher.address_of(url).origin):
        raise NotFound("There is no key for this server.", hint="GET /api/v1/secrets/teacher lists them.")
    return Response(status_code=204)
