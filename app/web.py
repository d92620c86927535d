"""The pages: server-rendered HTML with a JSON twin each (the REST API); scripts make the live parts live.

Each feature has its pages in its ``pages.py``; here are the doors, the error page, and what serves files.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Form, Query, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from app import i18n
from app.auth.deps import User, require_user
from app.auth.guard import cookie_name
from app.auth.routes import Login, close_session, open_session, user_of
from app.chat import compare_pages
from app.chat import pages as chat_pages
from app.checkpoints import pages as checkpoints_pages
from app.core.db import reading
from app.core.errors import AppError
from app.core.settings import get_settings
from app.datasets import pages as datasets_pages
from app.openai import pages as openai_pages
from app.pipelines import pages as pipelines_pages
from app.rendering import STATIC, page
from app.runs import new_page as runs_new_page
from app.runs import pages as runs_pages
from app.runs import stage_pages
from app.runs.queries import any_run
from app.static_files import BuiltFiles
from app.system import pages as system_pages

router = APIRouter(include_in_schema=False)


async def speak(request: Request) -> None:
    """From here on the request's texts are in the visitor's language, also those made before a template is rendered.
    (Async, so that it sets the context that the route's thread gets a copy of.)"""
    i18n.current_language.set(i18n.language_of(request))


def error_page(request: Request, error: AppError) -> Response:
    """The page that a person sees instead of an error's JSON; without a login it is the door to one."""
    shown = page(request, "error.html", error.status, error=error, login=error.status == 401)
    shown.headers.update(error.headers)
    return shown


@router.get("/")
def index(request: Request, token: Annotated[str | None, Query(max_length=1000)] = None) -> Response:
    """The first model where nothing was trained yet, else the runs. With ``?token=`` it opens a session first."""
    if token is not None:
        return open_session(user_of(Login(token=token)), request, page(request, "welcome.html"))
    require_user(request)
    with reading() as session:
        trained = any_run(session)
    return RedirectResponse("/runs" if trained else "/start", 303)


@router.get("/login")
def login_page(request: Request) -> Response:
    return page(request, "login.html", user=None)


@router.post("/login")
def log_in(request: Request, name: Annotated[str, Form(max_length=100)] = "",
           password: Annotated[str, Form(max_length=1000)] = "") -> Response:
    try:
        user_id = user_of(Login(name=name, password=password))
    except AppError as error:
        answer = page(request, "login.html", error.status, user=None, refused=error, name=name)
        answer.headers.update(error.headers)
        return answer
    return open_session(user_id, request, page(request, "welcome.html"))


@router.post("/logout")
def log_out(request: Request, user: User) -> Response:
    close_session(user)
    answer = page(request, "login.html", user=None, left=True)
    answer.delete_cookie(cookie_name(get_settings()), path="/", httponly=True, samesite="strict")
    return answer


@router.get("/favicon.ico")
def favicon() -> Response:
    return FileResponse(STATIC / "favicon.svg", media_type="image/svg+xml")


def install(app: FastAPI) -> None:
    app.state.error_page = error_page
    app.include_router(router, dependencies=[Depends(speak)])
    for feature in (runs_new_page, runs_pages, stage_pages, pipelines_pages, datasets_pages, checkpoints_pages,
                    compare_pages, chat_pages, openai_pages, system_pages):
        app.include_router(feature.router, dependencies=[Depends(speak)])
    app.mount("/static/dist", BuiltFiles(directory=STATIC / "dist", check_dir=False), name="dist")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
