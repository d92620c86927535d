"""``/runs``: queue training, watch it, steer it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from app.auth.deps import User
from app.checkpoints.queries import of_run
from app.checkpoints.schemas import CheckpointOut
from app.core import damage
from app.core.db import transaction
from app.core.errors import Invalid
from app.core.once import Post
from app.core.rest import Page, PagingQuery, Read
from app.core.states import request_cancel, request_pause, request_resume, request_sample
from app.runs import attempts, order, queries, service
from app.runs.metrics import DEFAULT_POINTS, MAX_POINTS, MIN_POINTS, metrics
from app.runs.schemas import (
    AttemptOut,
    Cancel,
    Clone,
    EventOut,
    LogPage,
    MetricsOut,
    Move,
    Resume,
    RunCreate,
    RunOut,
    RunPatch,
    SampleOut,
    State,
)

router = APIRouter(prefix="/runs", tags=["runs"])
ACCEPTED = {"status_code": 202, "response_model": RunOut}


@router.post("", status_code=201, response_model=RunOut)
def create_run(asked: RunCreate, post: Post):
    """Queue a run. It starts as soon as a machine with free devices finds it the best in the queue."""
    for id in (asked.base_checkpoint_id, asked.teacher_checkpoint_id):
        damage.look(id)  # reads its files once: not while others wait for the database
    return post.do(201, lambda session: RunOut.of(service.create(session, post.user_id, asked)))


@router.get("")
def list_runs(session: Read, paging: PagingQuery, state: Annotated[list[State] | None, Query()] = None,
              stage: Annotated[list[str] | None, Query()] = None, tag: Annotated[list[str] | None, Query()] = None,
              text: Annotated[str | None, Query(max_length=200, description="In name, notes or id.")] = None,
              pipeline_id: str | None = None) -> Page[RunOut]:
    """Runs that fit every filter, newest first. ``state`` and ``stage`` may be given several times (or)."""
    _refuse_zero_bytes(*(stage or []), *(tag or []), text or "", pipeline_id or "")
    rows, cursor = queries.list_runs(session, paging, state=state, stage=stage, tag=tag, text=text,
                                     pipeline_id=pipeline_id)
    return Page(items=[RunOut.of(r) for r in rows], next_cursor=cursor)


@router.get("/{id}")
def get_run(id: str, session: Read) -> RunOut:
    return RunOut.of(service.get_run(session, id))


@router.patch("/{id}")
def patch_run(id: str, changes: RunPatch, user: User) -> RunOut:
    """Change name, notes, tags or priority."""
    with transaction() as session:
        return RunOut.of(service.patch(session, service.get_run(session, id), changes))


@router.delete("/{id}", status_code=204)
def delete_run(id: str, user: User) -> Response:
    """Forget a run that has ended, its checkpoints and files too."""
    with transaction() as session:
        service.remove(session, service.get_run(session, id))
    return Response(status_code=204)


@router.post("/{id}/pause", **ACCEPTED)
def pause_run(id: str, post: Post):
    """Save at the end of the present step and stop. The state becomes ``paused`` once the save is confirmed."""
    return post.do(202, lambda session: RunOut.of(request_pause(session, service.get_run(session, id))))


@router.post("/{id}/resume", **ACCEPTED)
def resume_run(id: str, post: Post, wish: Resume | None = None):
    """Go on from the last checkpoint."""
    allow = wish is not None and wish.allow_changes
    return post.do(202, lambda session: RunOut.of(request_resume(session, service.get_run(session, id), allow)))


@router.post("/{id}/cancel", **ACCEPTED)
def cancel_run(id: str, post: Post, wish: Cancel | None = None):
    """Stop for good. Checkpoints that exist stay usable; a last one is saved only if asked."""
    save = wish is not None and wish.save
    return post.do(202, lambda session: RunOut.of(request_cancel(session, service.get_run(session, id), save)))


@router.post("/{id}/sample", **ACCEPTED)
def sample_run(id: str, post: Post):
    """Let the model that is being trained answer its prompts after the present step, whatever its
    ``sample_interval`` is. They come as ``sample`` events; training goes on, and learns the same."""
    return post.do(202, lambda session: RunOut.of(request_sample(session, service.get_run(session, id))))


@router.post("/{id}/move", **ACCEPTED)
def move_run(id: str, post: Post, wish: Move):
    """Give a queued run another place in the queue; past a neighbour of another priority it takes that priority."""
    return post.do(202, lambda session: RunOut.of(order.move(session, service.get_run(session, id), wish.to)))


@router.post("/{id}/clone", **ACCEPTED)
def clone_run(id: str, post: Post, changes: Clone | None = None):
    """Queue the same run again, with some keys of its configuration changed."""
    return post.do(202, lambda session: RunOut.of(
        service.clone(session, post.user_id, service.get_run(session, id), changes or Clone())))


@router.get("/{id}/events")
def list_events(id: str, session: Read, after: Annotated[int, Query(ge=0, le=2**62)] = 0,
                type: Annotated[list[str] | None, Query(max_length=20)] = None,
                limit: Annotated[int, Query(ge=1, le=5000)] = 500) -> Page[EventOut]:
    """Everything that happened, of all attempts, in order. ``next_cursor`` goes into ``after``."""
    service.get_run(session, id)
    _refuse_zero_bytes(*(type or []))
    rows, last = queries.events_after(session, f"run:{id}", after, limit, type)
    return Page(items=[queries.event_out(e) for e in rows], next_cursor=None if last is None else str(last))


@router.get("/{id}/metrics", response_model_exclude_unset=True)
def get_metrics(id: str, session: Read,
                keys: Annotated[str | None, Query(max_length=2000, description="Comma-separated; all if none.")] = None,
                x: Literal["step", "tokens", "time", "flops"] = "step",
                start: Annotated[float | None, Query(alias="from", allow_inf_nan=False)] = None,
                end: Annotated[float | None, Query(alias="to", allow_inf_nan=False)] = None,
                points: Annotated[int, Query(ge=MIN_POINTS, le=MAX_POINTS)] = DEFAULT_POINTS,
                smooth: Annotated[float | None, Query(ge=0, lt=1, allow_inf_nan=False)] = None) -> MetricsOut:
    """Curves, thinned so that every spike and every non-finite value stays visible; ``from`` and ``to`` zoom.

    ``smooth`` adds the moving average of the whole curve, the same at every zoom; 0.9 is a mean of about ten points.
    """
    service.get_run(session, id)
    wanted = [k.strip() for k in keys.split(",") if k.strip()] if keys is not None else None
    return metrics(session, id, keys=wanted, x=x, start=start, end=end, points=points, smooth=smooth)


@router.get("/{id}/logs")
def get_log(id: str, session: Read, rank: Annotated[int, Query(ge=0, le=9999)] = 0,
            after: Annotated[str | None, Query(max_length=40)] = None) -> LogPage:
    """What a rank printed. ``next_cursor`` goes into ``after``, also to follow a log that still grows."""
    service.get_run(session, id)
    return queries.log_page(id, rank, after)


@router.get("/{id}/samples")
def list_samples(id: str, session: Read) -> Page[SampleOut]:
    """What the model said to the fixed prompts while it learnt."""
    service.get_run(session, id)
    return Page(items=queries.samples(session, id))


@router.get("/{id}/attempts")
def list_attempts(id: str, session: Read) -> Page[AttemptOut]:
    """Every start of this run, the newest first: where it ran, and how it ended."""
    service.get_run(session, id)
    return Page(items=attempts.of_run(session, id))


@router.get("/{id}/checkpoints")
def list_checkpoints(id: str, session: Read) -> Page[CheckpointOut]:
    """Checkpoints of this run, oldest step first; those whose ``state`` is ``corrupt`` cannot be used."""
    service.get_run(session, id)
    return Page(items=[CheckpointOut.of(c) for c in of_run(session, id)])


def _refuse_zero_bytes(*values: str) -> None:
    """PostgreSQL knows no zero byte in text; nothing of ours holds one either."""
    if any("\0" in value for value in values):
        raise Invalid("A filter must not hold a zero byte.", hint="Take it out.")


