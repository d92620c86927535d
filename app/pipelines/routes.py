"""``/pipelines``: several stages in a line, each starting from the one before."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from app.core import lines
from app.core.once import Post
from app.core.rest import Page, PagingQuery, Read
from app.pipelines import service
from app.pipelines.recipes import RECIPES
from app.pipelines.schemas import PipelineCreate, PipelineOut, RecipeOut
from app.runs.queries import event_out, events_after
from app.runs.schemas import Cancel, EventOut

router = APIRouter(tags=["pipelines"])
pipelines = APIRouter(prefix="/pipelines")
ACCEPTED = {"status_code": 202, "response_model": PipelineOut}
PipelineState = Literal["running", "paused", "completed", "failed", "cancelled"]


@pipelines.post("", status_code=201, response_model=PipelineOut)
def create_pipeline(asked: PipelineCreate, post: Post):
    """Start a line of stages, or a recipe that has them. The next run is made in the transaction that completes the one
    before it."""
    return post.do(201, lambda session: service.shown(session, service.create(session, post.user_id, asked)))


@pipelines.get("")
def list_pipelines(session: Read, paging: PagingQuery,
                   state: Annotated[list[PipelineState] | None, Query()] = None) -> Page[PipelineOut]:
    items, cursor = service.list_pipelines(session, paging, state)
    return Page(items=items, next_cursor=cursor)


@pipelines.get("/{id}")
def get_pipeline(id: str, session: Read) -> PipelineOut:
    return service.shown(session, service.get_pipeline(session, id))


@pipelines.get("/{id}/events")
def list_events(id: str, session: Read, after: Annotated[int, Query(ge=0, le=2**62)] = 0,
                limit: Annotated[int, Query(ge=1, le=5000)] = 500) -> Page[EventOut]:
    """Everything that happened to the line, in order. ``next_cursor`` goes into ``after``."""
    service.get_pipeline(session, id)
    rows, last = events_after(session, f"pipeline:{id}", after, limit)
    return Page(items=[event_out(e) for e in rows], next_cursor=None if last is None else str(last))


@pipelines.post("/{id}/pause", **ACCEPTED)
def pause_pipeline(id: str, post: Post):
    """Pause the line and the run it is at."""
    return post.do(202, lambda session: service.shown(
        session, lines.request_pause_line(session, service.get_pipeline(session, id))))


@pipelines.post("/{id}/resume", **ACCEPTED)
def resume_pipeline(id: str, post: Post):
    """Go on; a line that failed, or that a gate stopped, tries that stage again."""
    return post.do(202, lambda session: service.shown(
        session, lines.request_resume_line(session, service.get_pipeline(session, id))))


@pipelines.post("/{id}/cancel", **ACCEPTED)
def cancel_pipeline(id: str, post: Post, wish: Cancel | None = None):
    """Stop the line for good, with the run it is at; of one that failed the runs can then be deleted."""
    save = wish is not None and wish.save
    return post.do(202, lambda session: service.shown(
        session, lines.request_cancel_line(session, service.get_pipeline(session, id), save)))


@router.get("/recipes")
def list_recipes() -> Page[RecipeOut]:
    """Lines that are ready to start. ``minutes`` and ``config`` are those of a recipe that is started as it stands."""
    return Page(items=[service.recipe_out(recipe) for recipe in RECIPES.values()])


router.include_router(pipelines)
