"""``/exports``: checkpoints for other programs."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, StreamingResponse

from app.auth.deps import User
from app.checkpoints import exports
from app.checkpoints.exports import ExportCreate, ExportOut
from app.checkpoints.zip_stream import ZipStream
from app.core import damage
from app.core.db import reading, transaction
from app.core.errors import NotFound
from app.core.once import Post
from app.core.rest import Read

router = APIRouter(tags=["exports"])


@router.post("/checkpoints/{id}/export", status_code=202, response_model=ExportOut)
def export_checkpoint(id: str, asked: ExportCreate, post: Post):
    """Write a checkpoint for other programs. Asked again, the export that is there is the answer."""
    damage.look(id)
    return post.do(202, lambda session: ExportOut.of(exports.create(session, post.user_id, id, asked)))


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


@router.delete("/exports/{id}", status_code=204)
def delete_export(id: str, user: User) -> Response:
    """Forget an export and its files; the checkpoint stays."""
    with transaction() as session:
        exports.remove(session, exports.get(session, id))
    return Response(status_code=204)
