"""What the studio is and what it can do: ``/system``, ``/stages``, ``/presets``, ``/preflight``, signs of life."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import AfterValidator, BaseModel, Field

from app.core import damage
from app.core.errors import Unavailable
from app.core.once import Post
from app.core.rest import Page, Read, RequestBody, is_plain
from app.runs import preflight
from app.runs.preflight import PreflightOut, PreflightRequest
from app.system import service
from minimind.config import STAGES, stage_schema
from minimind.presets import PRESETS

router = APIRouter(tags=["system"])
#: at the root, outside /api/v1
root_router = APIRouter(tags=["system"])


class PresetOut(BaseModel):
    name: str
    description: str
    parameters: int
    #: that one token passes: fewer with a mixture of experts
    active_parameters: int
    model: dict[str, Any]
    max_seq_len: int
    batch_size: int
    accumulation_steps: int
    learning_rate: dict[str, float]


@router.get("/stages")
def list_stages() -> Page[dict[str, Any]]:
    """Every stage with the JSON Schema of its config: defaults, help, units, groups."""
    return Page(items=[stage_schema(name) for name in STAGES])


@router.get("/presets")
def list_presets() -> Page[PresetOut]:
    """Named model sizes with their exact parameter counts."""
    return Page(items=[PresetOut(
        name=p.name, description=p.description, parameters=p.model.num_parameters(),
        active_parameters=p.model.num_active_parameters(), model=p.model.as_dict(),
        max_seq_len=p.max_seq_len, batch_size=p.batch_size, accumulation_steps=p.accumulation_steps,
        learning_rate=p.learning_rate) for p in PRESETS.values()])


@router.post("/preflight", response_model=PreflightOut)
def run_preflight(asked: PreflightRequest, post: Post):
    """What a run would need, computed without starting it; refused with the same problems as the run."""
    damage.look(asked.base_checkpoint_id)
    damage.look(asked.teacher_checkpoint_id)
    return post.do(200, lambda session: preflight.answer(session, asked))


@router.get("/system")
def get_system(session: Read) -> dict[str, Any]:
    """Machines, devices, queue, versions."""
    return service.system(session) | service.broker_status()


def _one_line(text: str) -> str:
    if not is_plain(text):
        raise ValueError("must not hold control characters")
    if any(c in text for c in "\t\n\r\u2028\u2029"):
        raise ValueError("must be one line")
    return text


class QueueWish(RequestBody):
    paused: Annotated[bool, Field(strict=True)]
    note: Annotated[str, Field(max_length=500), AfterValidator(_one_line)] | None = Field(
        None, description="Why, for everybody to read; an empty one takes away what stood there.")


class QueueOut(BaseModel):
    """``since`` is RFC 3339; all three are null while the queue goes on."""

    paused: bool
    since: str | None
    by: str | None
    note: str | None


@router.post("/system/queue", response_model=QueueOut)
def set_queue(wish: QueueWish, post: Post):
    """Maintenance: while the queue is paused no queued run starts; what runs goes on. Admins only."""
    note = wish.note.strip() if wish.note is not None else None
    return post.do(200, lambda session: service.set_queue(session, post.user_id, paused=wish.paused, note=note))


@root_router.get("/healthz")
async def healthz() -> dict[str, str]:
    """This process answers, also while all its threads wait for something."""
    return {"status": "ok"}


@root_router.get("/readyz")
def readyz() -> Response:
    """Migrations are applied, and database, worker and broker answer."""
    missing = service.not_ready()
    if missing:
        raise Unavailable(" ".join(missing), hint="Wait a moment; ./studio doctor says more.")
    return JSONResponse({"status": "ready"})


@root_router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(session: Read) -> str:
    """Prometheus text; needs a Bearer token like everything else."""
    return service.prometheus(session)
