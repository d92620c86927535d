"""``/runs/{id}/way``: what its page of time travel stands on."""

from __future__ import annotations

from fastapi import APIRouter

from app.auth.deps import User
from app.chat import travel
from app.core.models import Run
from app.core.rest import Read, get_or_404

router = APIRouter(tags=["checkpoints"])


@router.get("/runs/{id}/way")
def run_way(id: str, session: Read, user: User) -> travel.Way:
    """The checkpoints that a run's model came through, the earliest first, those of the runs it started from too."""
    return travel.way(session, get_or_404(session, Run, id, "run"))
