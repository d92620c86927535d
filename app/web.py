"""Pages rendered by the server. They stand alone without scripts; the same facts are in the JSON of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.staticfiles import StaticFiles

from app.auth.deps import User, require_user
from app.auth.routes import Login, close_session, open_session, user_of
from app.core.db import reading
from app.core.errors import AppError
from app.core.rest import Paging
from app.docs_page import sections
from app.runs.queries import list_runs
from app.runs.schemas import RunOut
from app.system.service import system

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "static"
RUNS_SHOWN = 50

environment = Environment(loader=FileSystemLoader(ROOT / "templates"), undefined=StrictUndefined,
                          autoescape=select_autoescape(default=True, default_for_string=True),
                          extensions=["jinja2.ext.i18n"], trim_blocks=True, lstrip_blocks=True)
environment.install_null_translations(newstyle=True)
router = APIRouter(include_in_schema=False)


def page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    return HTMLResponse(environment.get_template(template).render(**context), status)


def error_page(request: Request, error: AppError) -> Response:
    """The page that a person sees instead of an error's JSON; without a login it is the door to one."""
    shown = page("error.html", error.status, error=error, login=error.status == 401)
    shown.headers.update(error.headers)
    return shown


@router.get("/")
def index(request: Request, token: Annotated[str | None, Query(max_length=1000)] = None) -> Response:
    """What the studio is doing. With ``?token=`` it opens a session instead and moves on without it."""
    if token is not None:
        return open_session(user_of(Login(token=token)), request, page("welcome.html"))
    user = require_user(request)
    with reading() as session:
        rows, _ = list_runs(session, Paging(limit=RUNS_SHOWN))
        return page("index.html", user=user, runs=[RunOut.of(r) for r in rows], system=system(session))


@router.get("/login")
def login_page() -> Response:
    return page("login.html")


@router.post("/login")
def log_in(request: Request, name: Annotated[str, Form(max_length=100)] = "",
           password: Annotated[str, Form(max_length=1000)] = "") -> Response:
    return open_session(user_of(Login(name=name, password=password)), request, page("welcome.html"))


@router.post("/logout")
def log_out(user: User) -> Response:
    close_session(user)
    return page("login.html")


@router.get("/api/docs")
def docs(request: Request, user: User) -> Response:
    """The API as a readable page, made from its OpenAPI description."""
    schema = request.app.openapi()
    return page("docs.html", user=user, info=schema["info"], sections=sections(schema))


@router.get("/favicon.ico")
def favicon() -> Response:
    return FileResponse(STATIC / "favicon.svg", media_type="image/svg+xml")


def install(app: FastAPI) -> None:
    app.state.error_page = error_page
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
