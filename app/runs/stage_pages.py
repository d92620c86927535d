"""Pages that explain: what each stage does, and the files of the core that do it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app import source
from app.auth.deps import User
from app.core.errors import NotFound
from app.rendering import page
from app.runs.explain import explain
from app.runs.form import OWN_GROUPS, stage_form
from minimind.config import STAGES

router = APIRouter(include_in_schema=False)


@router.get("/stages")
def stages_page(request: Request, user: User) -> Response:
    """Every stage in a sentence."""
    return page(request, "pages/stages.html", forms=[stage_form(name) for name in STAGES])


@router.get("/stages/{name}")
def stage_page(name: str, request: Request, user: User) -> Response:
    about = explain(name) if name in STAGES else None
    if about is None:
        raise NotFound("There is no stage of this name.", hint="/stages lists them.")
    form = stage_form(name)
    return page(request, "pages/stage.html", about=about, form=form, stages=list(STAGES),
                own=[group for group in form.groups if group.name in OWN_GROUPS])


@router.get("/source")
def sources_page(request: Request, user: User) -> Response:
    """Every file of the core with its first words."""
    return page(request, "pages/sources.html", files={path: source.summary(path) for path in source.files()})


@router.get("/source/{path:path}")
def source_page(path: str, request: Request, user: User) -> Response:
    """One file of the core, to read. ``path`` is looked up among the known names and never opened."""
    if path not in source.files():
        raise NotFound("There is no file of this name in the training core.", hint="/source lists them.")
    return page(request, "pages/source.html", file=path, lines=source.lines(path),
                definitions=source.definitions(path))
