"""Pages of pipelines: the first-model wizard, the list, one line of stages."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select

from app.auth.deps import User
from app.core.db import Session, reading
from app.core.models import Dataset, Pipeline, Run
from app.core.rest import Paging, newest_first
from app.i18n import gettext
from app.pipelines.recipe_view import shown_recipes
from app.pipelines.service import get_pipeline
from app.pipelines.view import state_of, stations, view
from app.rendering import compact_number, page, stage_word
from app.system.service import ready_hosts
from minimind.config import STAGES, DistillConfig, DpoConfig
from minimind.data.starter import LANGUAGES, LAYOUT_OF_PART, plan
from minimind.presets import PRESETS

router = APIRouter(include_in_schema=False)
LINES_SHOWN = 30
DATASETS_OFFERED = 500
FIRST_MODEL_MINUTES = (1, 5, 30)
GPU_PRESET, GPU_MINUTES = "minimind2-small", 30


@router.get("/start")
def start_page(request: Request, user: User) -> Response:
    """The one thing to do first: pick a time, press Start, talk to the result."""
    with reading() as session:
        cores, gpus = _machines(session)
    asked = [(minutes, "tiny-cpu") for minutes in FIRST_MODEL_MINUTES] + ([(GPU_MINUTES, GPU_PRESET)] if gpus else [])
    choices = [{"minutes": minutes, "preset": preset, "plan": plan(minutes),
                "parameters": PRESETS[preset].model.num_parameters()} for minutes, preset in asked]
    return page(request, "pages/start.html", choices=choices, cores=cores, gpus=gpus, codes=LANGUAGES)


def _machines(session: Session) -> tuple[int, int]:
    """CPU slots and GPUs of all machines that answer."""
    alive = ready_hosts(session)
    return sum(h.cpu_slots for h in alive), sum(len(h.devices) for h in alive)


@router.get("/pipelines")
def pipelines_page(request: Request, user: User, cursor: Annotated[str | None, Query(max_length=200)] = None,
                   part: str = "") -> Response:
    with reading() as session:
        rows, following = newest_first(session, select(Pipeline), Pipeline, Paging(cursor=cursor, limit=LINES_SHOWN))
        runs = list(session.scalars(select(Run).where(Run.pipeline_id.in_([p.id for p in rows]))
                                    .order_by(Run.created_at, Run.id)))
        seen = []
        for row in rows:
            own = [r for r in runs if r.pipeline_id == row.id]
            seen.append({"id": row.id, "name": row.name, "created_at": row.created_at,
                         "state": state_of(row.state, own), "stations": stations(row, own)})
    template = "pages/pipelines_rows.html" if part == "rows" else "pages/pipelines.html"
    return page(request, template, lines=seen, next_cursor=following, cursor=cursor)


@router.get("/pipelines/new")
def new_pipeline_page(request: Request, user: User) -> Response:
    """Recipes, and a form for any line of stages."""
    with reading() as session:
        ready = session.scalars(select(Dataset).where(Dataset.state == "ready").order_by(Dataset.created_at.desc())
                                .limit(DATASETS_OFFERED))
        datasets = [{"id": d.id, "name": d.name, "layout": d.layout} for d in ready]
    presets = [{"name": p.name, "title": f"{p.name}, {compact_number(p.model.num_parameters())}"}
               for p in PRESETS.values()]
    return page(request, "pages/pipeline_new.html", recipes=shown_recipes(), presets=presets, codes=LANGUAGES, offer={
        "datasets": datasets, "presets": presets,
        "stages": [{"name": name, "title": stage_word(name), "summary": gettext(cls.summary),
                    "layouts": list(cls.layouts), "has_teacher": cls is DistillConfig,
                    "gate": "reward_accuracy" if cls is DpoConfig else "eval_loss",
                    "parts": [part for part, layout in LAYOUT_OF_PART.items() if layout in cls.layouts]}
                   for name, cls in STAGES.items()]})


@router.get("/pipelines/{id}")
def pipeline_page(id: str, request: Request, user: User, run: Annotated[str | None, Query(max_length=64)] = None,
                  part: str = "") -> Response:
    """One line. ``run`` chooses whose curves are shown; ``part=main`` is what changes, for a page that is open."""
    with reading() as session:
        seen = view(session, get_pipeline(session, id), run)
    template = "pages/pipeline_main.html" if part == "main" else "pages/pipeline.html"
    return page(request, template, line=seen, pipeline=seen.pipeline, view=seen.current,
                run=seen.current.run if seen.current else None)
