"""Pages of runs: the list, one run, and the fragments that keep both up to date."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.auth.deps import User
from app.core.db import reading
from app.core.models import RUN_STATES
from app.core.rest import Paging, rfc3339
from app.rendering import page
from app.runs import queries, service
from app.runs.outlook import look
from app.runs.schemas import RunOut
from app.runs.view import view
from app.runs.waiting import paused_words
from minimind.config import STAGES

router = APIRouter(include_in_schema=False)
RUNS_SHOWN = 50
#: what a filter of the list may say, besides a single state
GROUPS = {"active": ("queued", "starting", "running", "pausing", "paused", "recovering", "cancelling")}


@router.get("/runs")
def runs_page(request: Request, user: User, state: Annotated[str, Query(max_length=20)] = "",
              stage: Annotated[str, Query(max_length=40)] = "", text: Annotated[str, Query(max_length=200)] = "",
              cursor: Annotated[str | None, Query(max_length=200)] = None, part: str = "") -> Response:
    """Runs, newest first. ``part=rows`` is the list alone, for a page that is open."""
    states = list(GROUPS.get(state, [state] if state in RUN_STATES else []))
    with reading() as session:
        rows, following = queries.list_runs(session, Paging(cursor=cursor, limit=RUNS_SHOWN), state=states or None,
                                            stage=[stage] if stage in STAGES else None,
                                            text=text.replace("\0", "").strip() or None)
        runs = [RunOut.of(r) for r in rows]
        trained = bool(runs) or queries.any_run(session)
        paused = look(session).paused
    template = "pages/runs_rows.html" if part == "rows" else "pages/runs.html"
    return page(request, template, runs=runs, next_cursor=following, is_filtered=bool(state or stage or text),
                trained=trained, state=state, stage=stage, text=text, cursor=cursor, stages=list(STAGES),
                paused=None if paused is None else paused_words(paused),
                paused_since=None if paused is None else rfc3339(paused.since))


@router.get("/runs/{id}")
def run_page(id: str, request: Request, user: User, part: str = "") -> Response:
    """One run. ``part=main`` is what changes while it runs, for a page that is open."""
    with reading() as session:
        seen = view(session, service.get_run(session, id))
    return page(request, "pages/run_main.html" if part == "main" else "pages/run.html", view=seen, run=seen.run)
