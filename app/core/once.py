"""POST requests that may be sent twice: ``Idempotency-Key``.

The answer is stored in the transaction that has the effect, so either both exist or neither does. Of two equal
requests at the same time the second waits for the first (SQLite: for the write lock, PostgreSQL: at the primary
key) and then gets its answer. Keys belong to one user and one address and live 24 hours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from app.core.db import Session, now, transaction
from app.core.errors import Conflict, Invalid
from app.core.models import IdempotentAnswer

KEEP_S = 24 * 3600.0
#: status of a row whose request has not come to its end (seen by nobody but its own transaction)
_PENDING = 0


class Once:
    """One POST request. ``do`` runs its work in one transaction and answers after the commit."""

    def __init__(self, user_id: str, route: str, key: str | None, body_hash: str):
        self.user_id = user_id
        self.route = route if len(route) <= 200 else hashlib.sha256(route.encode()).hexdigest()
        self.key = key
        self.body_hash = body_hash

    def do(self, status: int, work: Callable[[Session], BaseModel | dict | None]) -> JSONResponse:
        """The answer of ``work`` with ``status``, or the stored answer of the same request before.

        An error of ``work`` rolls everything back, the key too: the request may be corrected and sent again.
        """
        with transaction() as session:
            if self.key is None:
                return JSONResponse(_plain(work(session)), status)
            stored = self._reserve(session)
            if stored is not None:
                return JSONResponse(stored.answer, stored.status, {"Idempotency-Replayed": "true"})
            answer = _plain(work(session))
            row = session.get_one(IdempotentAnswer, (self.user_id, self.route, self.key))
            row.status, row.answer = status, answer
        return JSONResponse(answer, status)

    def stored(self, session: Session) -> JSONResponse | None:
        """The answer of the same request before, where there is one (an upload asks before it reads on)."""
        row = self._existing(session) if self.key is not None else None
        return JSONResponse(row.answer, row.status, {"Idempotency-Replayed": "true"}) if row else None

    def _reserve(self, session: Session) -> IdempotentAnswer | None:
        at = now(session)
        session.execute(delete(IdempotentAnswer).where(IdempotentAnswer.created_at <= at - KEEP_S))
        existing = self._existing(session)
        if existing is None:
            try:
                with session.begin_nested():
                    session.add(IdempotentAnswer(user_id=self.user_id, route=self.route, key=self.key, answer={},
                                                 body_hash=self.body_hash, status=_PENDING, created_at=at))
                return None
            except IntegrityError:  # the same request was faster and has committed by now
                existing = self._existing(session)
        if existing is None:
            raise Conflict("A request with the same Idempotency-Key is being worked on.", hint="Send it again.")
        return existing

    def _existing(self, session: Session) -> IdempotentAnswer | None:
        row = session.get(IdempotentAnswer, (self.user_id, self.route, self.key), populate_existing=True)
        if row is not None and row.body_hash != self.body_hash:
            raise Invalid("This Idempotency-Key was used with another body.", field="Idempotency-Key",
                          hint="Use a new key for a new request.")
        return row


def _plain(answer: BaseModel | dict | None) -> Any:
    return answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer or {}


def hash_of(body: bytes) -> str:
    """Equal for bodies that say the same in JSON, whatever the order of keys and the white space."""
    try:
        said = json.dumps(json.loads(body), sort_keys=True).encode()
    except (ValueError, RecursionError):
        said = body  # not JSON: the bytes themselves count
    return hashlib.sha256(said).hexdigest()


def checked_key(key: str | None) -> str | None:
    if key is not None and not (0 < len(key) <= 200 and key.isascii() and key.isprintable()):
        raise Invalid("Idempotency-Key must be 1 to 200 printable ASCII characters.", field="Idempotency-Key",
                      hint="A UUID will do.")
    return key


KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", description=(
    "Makes it safe to send this request again: the second one gets the answer of the first (24 hours)."))]


async def _once(request: Request, key: KeyHeader = None) -> Once:
    key = checked_key(key)
    body_hash = hash_of(await request.body()) if key is not None else ""
    return Once(user_id_of(request), f"{request.method} {request.url.path}", key, body_hash)


def user_id_of(request: Request) -> str:
    """Whom the guard has recognised; ``app.core`` knows nothing else of logins."""
    return request.scope["identity"].user_id


Post = Annotated[Once, Depends(_once)]
