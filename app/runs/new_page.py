"""The form of a new run. Included before ``app.runs.pages``, whose ``/runs/{id}`` would take its address."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.auth.deps import User
from app.core.db import reading
from app.rendering import page
from app.runs.explain import explain
from app.runs.form import BUDGETS, preset_defaults
from app.runs.prefill import new_run
from app.system.service import system

router = APIRouter(include_in_schema=False)


@router.get("/runs/new")
def new_run_page(request: Request, user: User, part: str = "") -> Response:
    """Every parameter of the address is a prefilled value. ``part=stage`` is what depends on the stage, for a page
    that is open and switches it."""
    with reading() as session:
        shown = new_run(session, request.query_params)
        machines = {key: value for key, value in system(session).items() if key in ("hosts", "runs")}
    template = "pages/run_new_stage.html" if part == "stage" else "pages/run_new.html"
    return page(request, template, new=shown, form=shown.form, about=explain(shown.form.stage), budgets=BUDGETS,
                presets=preset_defaults(), machines=machines, stage_choices=[(s.value, s.label) for s in shown.stages])
