"""One row for each request to ``/v1``: who asked which model, how long it took, how it ended.

Without what was said, unless ``STUDIO_LOG_REQUEST_CONTENT`` asks for it. Rows are written behind the answer, several in
one transaction when many end together; one that cannot be written is left out. The newest ``KEPT`` of the last
``KEPT_S`` stay.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import delete, select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.auth.service import Identity
from app.core.db import Session, transaction
from app.core.logging import get_logger
from app.core.models import RequestLog, new_id, unix_now
from app.core.rest import Paging, newest_first

log = get_logger(__name__)

KEPT = 10_000
KEPT_S = 30 * 86_400.0
#: how often the old ones are looked for
PRUNE_EVERY = 200
#: characters of one text of a row's content, and entries of one conversation
MAX_TEXT, MAX_TEXTS = 20_000, 200
#: rows that wait for a database that does not answer
MAX_WAITING = 5_000


@dataclass
class Entry:
    """A row in the making; ``began`` is of the monotonic clock."""

    user_id: str
    route: str
    client: str
    model: str = ""
    status: int = 200
    finish_reason: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    total_s: float = 0.0
    content: dict[str, Any] | None = None
    created_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)

    def row(self) -> RequestLog:
        values = asdict(self)
        del values["began"]
        return RequestLog(id=new_id(), **values)


def one_line(text: Any, length: int) -> str:
    """What a client said of itself, as a column can hold it."""
    printable = "".join(c if c.isprintable() else "?" for c in str(text)[:length])
    return printable.encode("utf-8", "replace").decode()


def bounded(value: Any) -> Any:
    """A JSON value with its texts cut, and NUL taken out, which PostgreSQL refuses."""
    if isinstance(value, str):
        return value[:MAX_TEXT].replace("\0", "\N{SYMBOL FOR NULL}")
    if isinstance(value, list):
        return [bounded(each) for each in value[-MAX_TEXTS:]]
    return {key: bounded(each) for key, each in value.items()} if isinstance(value, dict) else value


class RequestLogWriter:
    """One per web process."""

    def __init__(self) -> None:
        self._waiting: list[Entry] = []
        self._task: asyncio.Task[None] | None = None
        self._until_pruned = 0

    def add(self, entry: Entry) -> None:
        entry.total_s = time.monotonic() - entry.began
        if len(self._waiting) >= MAX_WAITING:
            log.warning("request_log_full")
            return
        self._waiting.append(entry)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Write what waits."""
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await run_in_threadpool(self._store, batch)
        finally:
            self._task = None

    def _store(self, batch: list[Entry]) -> None:
        try:
            with transaction() as session:
                session.add_all(entry.row() for entry in batch)
                self._until_pruned -= len(batch)
                if self._until_pruned <= 0:
                    self._until_pruned = PRUNE_EVERY
                    session.flush()
                    prune(session)
        except Exception as error:  # a log is never worth a request
            short = str(error).splitlines()[0] if isinstance(error, SQLAlchemyError) else repr(error)
            log.warning("requests_not_logged", rows=len(batch), error=short)


def prune(session: Session) -> None:
    """Forget what is too old, and what lies behind the newest ``KEPT``."""
    session.execute(delete(RequestLog).where(RequestLog.created_at < unix_now() - KEPT_S))
    last = session.execute(select(RequestLog.created_at, RequestLog.id).order_by(
        RequestLog.created_at.desc(), RequestLog.id.desc()).offset(KEPT).limit(1)).first()
    if last is not None:
        session.execute(delete(RequestLog).where(
            tuple_(RequestLog.created_at, RequestLog.id) <= tuple_(*last)))


def seen_by(session: Session, user: Identity, paging: Paging) -> tuple[list[RequestLog], str | None]:
    """Requests, newest first: your own, an admin's are all; and the cursor of the next page."""
    query = select(RequestLog)
    if user.role != "admin":
        query = query.where(RequestLog.user_id == user.user_id)
    return newest_first(session, query, RequestLog, paging)
