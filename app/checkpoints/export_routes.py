"""``/exports``: checkpoints for other programs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse

from app.auth.deps import User
from app.checkpoints import exports
from app.checkpoints.exports import ExportCreate, ExportOut
from app.checkpoints.zip_stream import ZipStream
from app.core import damage
from app.core.db import reading, transaction
from app.core.errors import NotFound
from app.core.once import Post
from app.core.rest import Page, PagingQuery, Read, is_id

router = APIRouter(tags=["exports"])


@router.post("/checkpoints/{id}/export", status_code=202, response_model=ExportOut)
def export_checkpoint(id: str, asked: ExportCreate, post: Post):
    """Write a checkpoint for other programs. Asked again, the export that is there is the answer."""
    damage.look(id)
    return post.do(202, lambda session: ExportOut.of(exports.create(session, post.user_id, id, asked)))


@router.get("/exports")
def list_exports(session: Read, paging: PagingQuery,
                 checkpoint_id: Annotated[str | None, Query(max_length=64)] = None) -> Page[ExportOut]:
    if checkpoint_id is not None and not is_id(checkpoint_id):
        return Page(items=[], next_cursor=None)
    rows, cursor = exports.list_exports(session, paging, checkpoint_id)
    return Page(items=[ExportOut.of(job) for job in rows], next_cursor=cursor)


@router.get("/exports/{id}")
def get_export(id: str, session: Read) -> ExportOut:
    return ExportOut.of(exports.get(session, id))


@router.get("/exports/{id}/download", response_class=Response, responses={
    200: {"content": {"application/zip": {}, "application/octet-stream": {}},
          "description": "The file; a directory as a zip."}})
def download_export(id: str) -> Response:
    with reading() as session:
        path = exports.made_by(exports.get(session, id))
    try:  # somebody may delete the export meanwhile
        if not path.is_dir():
            return FileResponse(path, media_type="application/octet-stream", filename=path.name,
                                stat_result=path.stat())
        stream = ZipStream(path, path.name)
    except OSError as error:
        raise NotFound("The files of this export are no longer there.", hint="Make it again.") from error
    return StreamingResponse(stream.blocks(), media_type="application/zip", headers={
        "Content-Disposition": f'attachment; filename="{path.name}.zip"'})


@router.get("/exports/{id}/modelfile", response_class=PlainTextResponse)
def download_modelfile(id: str, session: Read) -> PlainTextResponse:
    """What ``ollama create NAME -f FILE`` reads, to be put beside the GGUF file."""
    name, text = exports.modelfile_of(exports.get(session, id))
    return PlainTextResponse(text, headers={"Content-Disposition": f'attachment; filename="{name}"'})


@router.delete("/exports/{id}", status_code=204)
def delete_export(id: str, user: User) -> Response:
    """Forget an export and its files; the checkpoint stays."""
    with transaction() as session:
        exports.remove(session, exports.get(session, id))
    return Response(status_code=204)
