"""Logging in and out. The cookie is HttpOnly and SameSite=Strict: no script and no other site ever sees it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.auth import service
from app.auth.deps import User
from app.auth.guard import cookie_name
from app.auth.service import Identity
from app.core.db import reading, transaction
from app.core.errors import Unauthorized
from app.core.models import LOCAL_ADMIN_ID
from app.core.models import User as UserRow
from app.core.rest import RequestBody
from app.core.settings import get_settings

router = APIRouter(tags=["auth"])


class Login(RequestBody):
    """A user's name and password, or the token that ``./studio up`` printed."""

    name: Annotated[str, Field(max_length=100)] | None = None
    password: Annotated[str, Field(max_length=1000)] | None = None
    token: Annotated[str, Field(max_length=1000)] | None = None


class Me(BaseModel):
    id: str
    name: str
    role: str


@router.post("/login", response_model=Me)
def log_in(asked: Login, request: Request):
    """Open a session: answers with its cookie."""
    user_id = user_of(asked)
    with reading() as session:
        user = session.get_one(UserRow, user_id)
    return open_session(user_id, request, JSONResponse(Me(id=user.id, name=user.name, role=user.role).model_dump()))


def user_of(asked: Login) -> str:
    """Whom these credentials belong to; raises ``Unauthorized`` or ``TooMany``."""
    if asked.token is not None:
        if not service.is_login_token(get_settings(), asked.token):
            raise Unauthorized("This login token is not valid.", field="token",
                               hint="Each start of the studio prints a new one; use the last.")
        return LOCAL_ADMIN_ID
    with reading() as session:
        return service.check_password(session, asked.name or "", asked.password or "")


def open_session(user_id: str, request: Request, answer: Response) -> Response:
    """``answer`` with the cookie of a new session of this user."""
    with transaction() as session:
        secret = service.open_session(session, user_id)
    # A proxy's X-Forwarded-Proto is not believed, as anybody could send one: the owner says that there is TLS.
    secure = get_settings().behind_tls or request.url.scheme == "https"
    answer.set_cookie(cookie_name(get_settings()), secret, max_age=service.SESSION_DAYS * 86400, path="/",
                      httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/logout", status_code=204)
def log_out(user: User) -> Response:
    """End this session; its cookie is worth nothing from now on."""
    close_session(user)
    answer = Response(status_code=204)
    answer.delete_cookie(cookie_name(get_settings()), path="/", httponly=True, samesite="strict")
    return answer


def close_session(user: Identity) -> None:
    """A Bearer token has no session: nothing happens to it."""
    if user.session_hash is not None:
        with transaction() as session:
            service.close_session(session, user.session_hash)


@router.get("/me")
def get_me(user: User) -> Me:
    """Who you are."""
    return Me(id=user.user_id, name=user.name, role=user.role)
