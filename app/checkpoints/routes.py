"""``/checkpoints``: what runs have saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.checkpoints import queries
from app.checkpoints.download import TarStream
from app.checkpoints.schemas import CheckpointOut
from app.core import damage
from app.core.db import Session, reading
from app.core.errors import Conflict, NotFound
from app.core.models import Checkpoint
from app.core.rest import Page, PagingQuery, Read, get_or_404, is_id

router = APIRouter(prefix="/checkpoints", tags=["checkpoints"])


@router.get("")
def list_checkpoints(session: Read, paging: PagingQuery, run_id: Annotated[str | None, Query(max_length=64)] = None,
                     stage: Annotated[str | None, Query(max_length=64)] = None) -> Page[CheckpointOut]:
    """Checkpoints, newest first; those whose ``state`` is ``corrupt`` cannot be used."""
    if not all(value is None or is_id(value) for value in (run_id, stage)):
        return Page(items=[])
    rows, cursor = queries.list_checkpoints(session, paging, run_id=run_id, stage=stage)
    return Page(items=[CheckpointOut.of(c) for c in rows], next_cursor=cursor)


@router.get("/{id}")
def get_checkpoint(id: str, session: Read) -> CheckpointOut:
    return CheckpointOut.of(_present(session, id))


@router.get("/{id}/download", response_class=StreamingResponse,
            responses={200: {"content": {"application/x-tar": {}}, "description": "A tar of the directory."}})
def download_checkpoint(id: str) -> StreamingResponse:
    """The whole checkpoint as a tar. 409 where its files are no longer what was saved."""
    damage.look(id)
    with reading() as session:
        row = _present(session, id)
    if row.state != "ready":
        raise Conflict(f"The checkpoint {id} is damaged: {row.problem}", hint="Choose another one of the run.")
    folder = f"{row.stage}-step-{row.step:08d}-{row.id}"
    stream = TarStream(Path(row.path), folder)
    return StreamingResponse(stream.blocks(), media_type="application/x-tar", headers={
        "Content-Length": str(stream.bytes), "Content-Disposition": f'attachment; filename="{folder}.tar"'})


def _present(session: Session, id: str) -> Checkpoint:
    row = get_or_404(session, Checkpoint, id, "checkpoint")
    if row.state == "deleted":
        raise NotFound(f"The checkpoint {id} is {row.state}.", hint="Choose another one of the run.")
    return row
