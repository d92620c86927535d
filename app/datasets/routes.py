"""``/datasets``: text and dialogues to learn from."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from app.auth.deps import User
from app.auth.guard import MAX_UPLOAD_BYTES
from app.core.db import reading, transaction
from app.core.errors import AppError, Invalid
from app.core.models import Dataset
from app.core.once import KeyHeader, Once, checked_key, hash_of
from app.core.rest import Page, PagingQuery, Read, inlined_schema, newest_first, validated
from app.core.settings import get_settings
from app.core.upload import is_multipart, receive
from app.datasets import service, teacher, tokens
from app.datasets.schemas import (
    DatasetCreate,
    DatasetOut,
    InspectFields,
    Inspection,
    PreviewRow,
    TokenCount,
    UploadFields,
    VotesCreate,
)
from app.datasets.teacher_schemas import TeacherCreate

router = APIRouter(prefix="/datasets", tags=["datasets"])
#: a teacher's system prompt of 20,000 characters, each written as \uXXXX, fits in
MAX_JSON_BYTES = 256 << 10
MAX_INSPECTED_BYTES = 64 << 20
_BODY = {"requestBody": {"required": True, "content": {
    "application/json": {"schema": {"anyOf": [inlined_schema(DatasetCreate), inlined_schema(TeacherCreate),
                                              inlined_schema(VotesCreate)]}},
    "multipart/form-data": {"schema": {
        "type": "object", "required": ["file"], "properties": {
            "file": {"type": "string", "format": "binary"}, "name": {"type": "string"},
            "layout": {"type": "string", "default": "auto"},
            "mapping": {"type": "string", "description": "JSON: what the columns mean, see docs/data.md"}}}}}}}
_BODIES = {"starter": DatasetCreate, "teacher": TeacherCreate, "votes": VotesCreate}
_CREATE = {DatasetCreate: service.create_starter, TeacherCreate: teacher.create, VotesCreate: service.create_votes}
_INSPECT_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file"], "properties": {
        "file": {"type": "string", "format": "binary"}, "layout": {"type": "string", "default": "auto"},
        "mapping": {"type": "string"}, "is_partial": {"type": "boolean", "default": False}}}}}}}


@router.post("", status_code=201, response_model=DatasetOut, openapi_extra=_BODY)
async def create_dataset(request: Request, user: User, key: KeyHeader = None) -> Response:
    """Upload a file (multipart with ``file``), or (JSON) have the server write a part of the starter corpus, have a
    teacher answer questions, or make preference pairs of your votes.

    The answer comes at once with state ``importing``; a job then reads every row.
    """
    key, route = checked_key(key), "POST /api/v1/datasets"
    if is_multipart(request):
        return await _receive_file(request, user.user_id, route, key)
    asked, body = await _json_body(request)
    once = Once(user.user_id, route, key, hash_of(body))
    create = _CREATE[type(asked)]
    return await run_in_threadpool(once.do, 201, lambda session: DatasetOut.of(create(session, user.user_id, asked)))


async def _receive_file(request: Request, user_id: str, route: str, key: str | None) -> JSONResponse:
    upload = await receive(request, get_settings().uploads_dir, fields={"name", "layout", "mapping"},
                           files={"file"}, max_file_bytes=MAX_UPLOAD_BYTES)
    kept = False

    def work(session: Any) -> DatasetOut:
        nonlocal kept
        dataset = DatasetOut.of(service.create_upload(session, user_id, fields, file))
        kept = True
        return dataset

    try:
        fields = validated(UploadFields, upload.fields)
        file = upload.files.get("file")
        if file is None:
            raise Invalid("The part file is missing.", field="file", hint="Send the data as the part named file.")
        answer = await run_in_threadpool(Once(user_id, route, key, upload.body_hash).do, 201, work)
    except BaseException:
        upload.discard()
        raise
    if not kept:  # the same request was answered before: its file is there already
        upload.discard()
    return answer


@router.post("/inspect", response_model=Inspection, openapi_extra=_INSPECT_BODY)
async def inspect_file(request: Request, user: User) -> Inspection:
    """What is recognised in a file, and its first rows as training would read them; nothing is kept.

    Send a file of at most 64 MiB, or its first megabyte with ``is_partial``: the answer is the same but for
    ``counted``. A zip must be whole. ``POST /datasets`` with the answer's ``mapping`` imports it as shown.
    """
    if not is_multipart(request):
        raise AppError(415, "UNSUPPORTED_MEDIA_TYPE", "A file to look at is sent as multipart/form-data.",
                       hint="Send it as the part file.")
    upload = await receive(request, get_settings().uploads_dir, fields={"layout", "mapping", "is_partial"},
                           files={"file"}, max_file_bytes=MAX_INSPECTED_BYTES)
    try:
        fields = validated(InspectFields, upload.fields)
        if "file" not in upload.files:
            raise Invalid("The part file is missing.", field="file", hint="Send the data as the part named file.")
        return await run_in_threadpool(service.inspect_upload, fields, upload.files["file"])
    finally:
        upload.discard()


async def _json_body(request: Request) -> tuple[DatasetCreate | TeacherCreate | VotesCreate, bytes]:
    if "json" not in request.headers.get("content-type", "").lower():
        raise AppError(415, "UNSUPPORTED_MEDIA_TYPE", "A dataset is sent as multipart/form-data or as JSON.",
                       hint='Upload a file as the part file, or send {"source": {"kind": "starter"}}.')
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise AppError(413, "TOO_LARGE", "This JSON is too large for a dataset's description.",
                           hint="Upload data as a file (multipart).")
    try:
        values = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise Invalid("The request body is not valid JSON.", field="body", hint="Send a JSON object.") from None
    source = values.get("source") if isinstance(values, dict) else None
    kind = source.get("kind") if isinstance(source, dict) else None
    if kind in ("path", "hub", "modelscope"):
        raise Invalid(f"Datasets of the kind {kind} are not part of this version.", field="source.kind",
                      hint="Upload a file, or use the kind starter, teacher or votes.")
    if isinstance(kind, str) and kind not in _BODIES:
        raise Invalid(f"There is no kind of source named {kind[:60]!r}.", field="source.kind",
                      hint="Use starter, teacher or votes, or upload a file.")
    return validated(_BODIES[kind] if isinstance(kind, str) else DatasetCreate, values), bytes(body)


@router.get("")
def list_datasets(session: Read, paging: PagingQuery) -> Page[DatasetOut]:
    rows, cursor = newest_first(session, select(Dataset), Dataset, paging)
    return Page(items=[DatasetOut.of(d) for d in rows], next_cursor=cursor)


@router.get("/{id}")
def get_dataset(id: str, session: Read) -> DatasetOut:
    return DatasetOut.of(service.get_dataset(session, id))


@router.get("/{id}/preview")
def preview_dataset(id: str, limit: Annotated[int, Query(ge=1, le=100)] = 20,
                    cursor: Annotated[int, Query(ge=0, le=service.MAX_PREVIEW_ROW)] = 0,
                    tokenizer: Annotated[str | None, Query(max_length=64)] = None,
                    checkpoint: Annotated[str | None, Query(max_length=64)] = None,
                    stage: Annotated[str | None, Query(max_length=32)] = None) -> Page[PreviewRow]:
    """Rows as they stand in the file; with ``tokenizer`` or ``checkpoint`` (ids) also as the tokens that training
    reads. ``stage``: refuse rows from which this stage does not learn."""
    with reading() as session:  # reading a large file must not hold the database
        dataset = service.get_dataset(session, id)
        directory = tokens.tokenizer_dir(session, tokenizer, checkpoint)
    tokens.check_stage(stage, dataset.layout)
    if directory is None:
        rows, following = service.preview(dataset, cursor, limit)
    elif limit > tokens.MAX_ROWS:
        raise Invalid(f"At most {tokens.MAX_ROWS} rows are shown as tokens.", field="limit",
                      hint="Ask for fewer rows, or leave the tokenizer out.")
    else:
        view = tokens.TokenView(tokens.loaded(directory), dataset.layout)
        rows, following = service.preview(dataset, cursor, limit, view.fields)
    return Page(items=rows, next_cursor=following)


@router.get("/{id}/tokens")
def count_tokens(request: Request, id: str, tokenizer: Annotated[str, Query(max_length=64)]) -> TokenCount:
    """How many tokens one pass over the data has with a tokenizer (its id)."""
    with reading() as session:  # reading a large file must not hold the database
        dataset, row = service.get_dataset(session, id), service.ready_tokenizer(session, tokenizer)
    counted = service.count_tokens(dataset, row)
    if counted.is_exact and request.scope["identity"].may_write:
        service.keep_count(id, counted.tokens)
    return counted


@router.delete("/{id}", status_code=204)
def delete_dataset(id: str, user: User) -> Response:
    """Forget a dataset and its files; refused while a run, a pipeline or a job stands on it."""
    with transaction() as session:
        service.remove(session, service.get_dataset(session, id))
    return Response(status_code=204)
