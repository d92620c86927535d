"""``/tokenizers``: vocabularies that runs can use (``config.tokenizer``)."""

from __future__ import annotations

import json
import shutil
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from app.auth.deps import User
from app.core.errors import Invalid
from app.core.models import TokenizerRow
from app.core.once import KeyHeader, Once, checked_key, hash_of
from app.core.rest import Name, Page, PagingQuery, Read, get_or_404, inlined_schema, newest_first, validated
from app.core.settings import get_settings
from app.core.upload import Upload, is_multipart, receive
from app.tokenizers import service
from app.tokenizers.schemas import TokenizerOut, TokenizerTrain
from minimind.tokenizer import MAX_FILE_BYTES

router = APIRouter(prefix="/tokenizers", tags=["tokenizers"])
_BODY = {"requestBody": {"required": True, "content": {
    "application/json": {"schema": inlined_schema(TokenizerTrain)},
    "multipart/form-data": {"schema": {
        "type": "object", "required": ["file"], "properties": {
            "file": {"type": "string", "format": "binary", "description": "tokenizer.json"},
            "config": {"type": "string", "format": "binary", "description": "tokenizer_config.json"},
            "name": {"type": "string"}}}}}}}


class UploadFields(BaseModel):
    name: Name | None = None


@router.post("", status_code=201, response_model=TokenizerOut, openapi_extra=_BODY)
async def create_tokenizer(request: Request, user: User, key: KeyHeader = None) -> Response:
    """Learn a vocabulary from a dataset (JSON; a job), or upload ``tokenizer.json`` as the part ``file`` and
    ``tokenizer_config.json`` as the part ``config`` (ready at once)."""
    key, route = checked_key(key), "POST /api/v1/tokenizers"
    if is_multipart(request):
        upload = await receive(request, get_settings().uploads_dir, fields={"name"}, files={"file", "config"},
                               max_file_bytes=MAX_FILE_BYTES)
        try:
            once = Once(user.user_id, route, key, upload.body_hash)
            return await run_in_threadpool(_take_in, once, upload)
        finally:
            upload.discard()
    if "json" not in request.headers.get("content-type", "").lower():
        raise Invalid("A tokenizer is sent as multipart/form-data or as JSON.", field="body",
                      hint='Upload tokenizer.json as the part file, or send {"dataset_id": ...} as JSON.')
    body = await request.body()
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Invalid("The request body is not valid JSON.", field="body", hint="Send a JSON object.") from None
    asked = validated(TokenizerTrain, values)
    once = Once(user.user_id, route, key, hash_of(body))
    return await run_in_threadpool(once.do, 201, lambda session: TokenizerOut.of(
        service.train(session, user.user_id, asked)))


def _take_in(once: Once, upload: Upload) -> Response:
    fields = validated(UploadFields, upload.fields)
    if "file" not in upload.files:
        raise Invalid("The part file is missing.", field="file", hint="Send tokenizer.json as the part named file.")
    name = fields.name or upload.files["file"].filename
    tokenizer, directory = service.read_upload(upload)
    home: Any = None

    def work(session: Any) -> TokenizerOut:
        nonlocal home
        row = service.keep(session, once.user_id, name, tokenizer, directory)
        home = row.path
        return TokenizerOut.of(row)

    try:
        return once.do(201, work)
    except BaseException:
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # there still, where the answer was a stored one


@router.get("")
def list_tokenizers(session: Read, paging: PagingQuery,
                    state: Annotated[str | None, Query(pattern="^(training|ready|failed)$")] = None
                    ) -> Page[TokenizerOut]:
    query = select(TokenizerRow)
    if state:
        query = query.where(TokenizerRow.state == state)
    rows, cursor = newest_first(session, query, TokenizerRow, paging)
    return Page(items=[TokenizerOut.of(t) for t in rows], next_cursor=cursor)


@router.get("/{id}")
def get_tokenizer(id: str, session: Read) -> TokenizerOut:
    return TokenizerOut.of(get_or_404(session, TokenizerRow, id, "tokenizer"))
