"""``/jobs``: long work that is not a run: imports, exports, tokenizers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import select

from app.core.db import Session
from app.core.errors import Conflict
from app.core.models import Job
from app.core.once import Post
from app.core.queue import request_cancel_job
from app.core.rest import Page, PagingQuery, Read, get_or_404, newest_first, rfc3339

router = APIRouter(prefix="/jobs", tags=["jobs"])
JobState = Literal["queued", "running", "completed", "failed", "cancelled"]
JobKind = Literal["dataset_import", "tokenizer_train", "teacher_answers", "checkpoint_export", "checkpoint_import"]


class JobOut(BaseModel):
    """``progress`` is ``{done, total, unit, message}`` once there is any; ``result`` names what was made."""

    id: str
    kind: str
    state: JobState
    attempt: int
    cancel_wanted: bool
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: str
    started_at: str | None
    ended_at: str | None

    @classmethod
    def of(cls, job: Job) -> JobOut:
        plain = {name: getattr(job, name) for name in (
            "id", "kind", "state", "attempt", "cancel_wanted", "progress", "result", "error")}
        return cls(**plain, **{n: rfc3339(getattr(job, n)) for n in ("created_at", "started_at", "ended_at")})


@router.get("")
def list_jobs(session: Read, paging: PagingQuery, state: Annotated[list[JobState] | None, Query()] = None,
              kind: Annotated[list[JobKind] | None, Query()] = None) -> Page[JobOut]:
    query = select(Job)
    if state:
        query = query.where(Job.state.in_(state))
    if kind:
        query = query.where(Job.kind.in_(kind))
    rows, cursor = newest_first(session, query, Job, paging)
    return Page(items=[JobOut.of(j) for j in rows], next_cursor=cursor)


@router.get("/{id}")
def get_job(id: str, session: Read) -> JobOut:
    return JobOut.of(get_or_404(session, Job, id, "job"))


@router.post("/{id}/cancel", status_code=202, response_model=JobOut)
def cancel_job(id: str, post: Post):
    """A queued job ends at once, a running one at its next look."""
    return post.do(202, lambda session: JobOut.of(_cancel(session, id)))


def _cancel(session: Session, id: str) -> Job:
    job = get_or_404(session, Job, id, "job")
    session.refresh(job, with_for_update=True)
    if job.state in ("completed", "failed"):
        raise Conflict(f"A job that is {job.state} cannot be cancelled.", field="state",
                       hint=f"Its present state is {job.state}.")
    return job if job.state == "cancelled" else request_cancel_job(session, job)
