"""``/checkpoints/import``: models and adapters that were trained elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from app.auth.deps import User
from app.auth.guard import MAX_UPLOAD_BYTES
from app.checkpoints import imports
from app.checkpoints.imports import ImportFields
from app.core.errors import AppError
from app.core.once import KeyHeader, Once, checked_key
from app.core.rest import validated
from app.core.settings import get_settings
from app.core.upload import is_multipart, receive
from app.jobs.routes import JobOut

router = APIRouter(prefix="/checkpoints", tags=["checkpoints"])
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file"], "properties": {
        "file": {"type": "array", "items": {"type": "string", "format": "binary"},
                 "description": "A peft or Hugging Face folder's files, or one .gguf, .pth, .zip or .tar."},
        "name": {"type": "string"},
        "base_checkpoint_id": {"type": "string", "description": "The model that an adapter belongs to."},
        "tokenizer_id": {"type": "string", "description": "For weights that come without a tokenizer."}}}}}}}


@router.post("/import", status_code=202, response_model=JobOut, openapi_extra=_BODY)
async def import_checkpoint(request: Request, user: User, key: KeyHeader = None) -> Response:
    """Take in a model or an adapter: a peft folder, upstream's lora ``.pth``, a Hugging Face folder, a GGUF file, a
    ``.pth`` of weights, or a checkpoint downloaded from a studio. What it is, is seen from the files.

    The job's ``result`` is ``{run_id, checkpoint_id, kind}`` once it is completed; ``kind`` is adapter or model.
    """
    key = checked_key(key)
    if not is_multipart(request):
        raise AppError(415, "UNSUPPORTED_MEDIA_TYPE", "Files are sent as multipart/form-data.",
                       hint="Send them as parts named file.")
    upload = await receive(request, get_settings().uploads_dir, fields=set(ImportFields.model_fields), files={"file"},
                           max_file_bytes=MAX_UPLOAD_BYTES, many=True)
    taken: list[Path] = []

    def work(session: Any) -> JobOut:
        job = imports.create(session, user.user_id, fields, upload)
        taken.append(Path(job.payload["aside"]))
        return JobOut.of(job)

    def do() -> JSONResponse:
        return Once(user.user_id, "POST /api/v1/checkpoints/import", key, upload.body_hash).do(202, work)

    try:
        fields = validated(ImportFields, {name: value for name, value in upload.fields.items() if value})
        return await run_in_threadpool(do)
    except BaseException:
        for directory in taken:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        upload.discard()  # what was not moved: it was refused, or had been answered before
