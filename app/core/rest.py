"""What the routes of every feature share: reading sessions, ids, times, hostile text, lists with a cursor."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from sqlalchemy import Select, tuple_

from app.core.db import Session, reading
from app.core.errors import Invalid, NotFound, problems_of
from app.core.models import Base

_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
Row = TypeVar("Row", bound=Base)
Item = TypeVar("Item")
Body = TypeVar("Body", bound=BaseModel)
MAX_PAGE = 500


def _reading_session() -> Iterator[Session]:
    with reading() as session:
        yield session


#: one consistent look at the database, closed before the answer is sent
Read = Annotated[Session, Depends(_reading_session, scope="function")]


def is_id(value: str) -> bool:
    """Whether ``value`` could be an id of ours; anything else is never sent to the database."""
    return _ID.fullmatch(value) is not None


def find(session: Session, model: type[Row], id: str | None) -> Row | None:
    return session.get(model, id) if id is not None and is_id(id) else None


def hold(session: Session, model: type[Row], id: str | None) -> Row | None:
    """As ``find``; until the commit nobody deletes the row (PostgreSQL; SQLite has one writer at a time)."""
    if id is None or not is_id(id):
        return None
    return session.get(model, id, with_for_update={"read": True, "key_share": True}, populate_existing=True)


def get_or_404(session: Session, model: type[Row], id: str, what: str) -> Row:
    """The row of this id; raises ``NotFound`` ("There is no run ...")."""
    row = find(session, model, id)
    if row is None:
        shown = id if is_id(id) else "of this name"
        raise NotFound(f"There is no {what} {shown}.", hint="It may have been deleted; look at the list.")
    return row


def rfc3339(t: float | None) -> str | None:
    """Unix seconds as RFC 3339 in UTC with milliseconds."""
    if t is None:
        return None
    return datetime.fromtimestamp(t, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_plain(value: Any) -> bool:
    """Whether every text in a JSON value, keys too, is one that a database and a terminal can hold."""
    if isinstance(value, str):
        return not any((ord(c) < 32 and c not in "\t\n\r") or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000
                       for c in value)
    if isinstance(value, dict):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    return all(is_plain(v) for v in value) if isinstance(value, list) else True


def _plain_text(text: str) -> str:
    """Text without control characters: whatever else it says is hostile only if somebody runs it."""
    if not is_plain(text):
        raise ValueError("must not hold control characters")
    return text


def _one_line(text: str) -> str:
    text = _plain_text(text).strip()
    if not text:
        raise ValueError("must not be empty")
    if any(c in text for c in "\t\n\r\u2028\u2029"):
        raise ValueError("must be one line")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_line)]
Text = Annotated[str, Field(max_length=20_000), AfterValidator(_plain_text)]
Tag = Annotated[str, Field(min_length=1, max_length=50), AfterValidator(_one_line)]
Priority = Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)]


class RequestBody(BaseModel):
    """A JSON body whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class CollectingBody(RequestBody):
    """A body that keeps the problems of its fields, so that a service can report them together with its own.

    A field with a problem has its default, a required one its stand-in: its problem is known already.
    """

    stand_ins: ClassVar[dict[str, Any]] = {}
    _problems: list[dict] = PrivateAttr(default_factory=list)

    @property
    def problems(self) -> list[dict]:
        return list(self._problems)

    @model_validator(mode="wrap")
    @classmethod
    def _collect(cls, values: Any, handler: Any) -> Any:
        try:
            return handler(values)
        except ValidationError as error:
            if not isinstance(values, dict):
                raise
            problems = problems_of(error)
            wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
        good = {k: v for k, v in values.items() if k in cls.model_fields and k not in wrong}
        body = handler({**{k: v for k, v in cls.stand_ins.items() if k not in good}, **good})
        body._problems = problems
        return body


class Page(BaseModel, Generic[Item]):
    """One page of a list; ``next_cursor`` is null on the last."""

    items: list[Item]
    next_cursor: str | None = None


class Paging(BaseModel):
    cursor: str | None = None
    limit: int = 50


def _paging(cursor: Annotated[str | None, Query(max_length=200, description="next_cursor of the page before")] = None,
            limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50) -> Paging:
    return Paging(cursor=cursor, limit=limit)


PagingQuery = Annotated[Paging, Depends(_paging)]


def newest_first(session: Session, query: Select[Any], model: Any, paging: Paging,
                 by: str = "created_at") -> tuple[list[Any], str | None]:
    """A page of ``query``'s rows, newest first by the time in the column ``by``, and the cursor of the next one.

    The cursor names the last row shown, so rows that come or go meanwhile are never shown twice.
    """
    column = getattr(model, by)
    query = query.order_by(column.desc(), model.id.desc()).limit(paging.limit + 1)
    if paging.cursor is not None:
        query = query.where(tuple_(column, model.id) < tuple_(*_decode(paging.cursor)))
    rows = list(session.scalars(query))
    if len(rows) <= paging.limit:
        return rows, None
    last = rows[paging.limit - 1]
    return rows[:-1], _encode([getattr(last, by), last.id])


def _encode(place: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[float, str]:
    try:
        created_at, id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        genuine = isinstance(created_at, float) and isinstance(id, str) and is_id(id)
    except (ValueError, TypeError, RecursionError):
        genuine = False
    if genuine:
        return created_at, id
    raise Invalid("This cursor was not made by this server.", field="cursor",
                  hint="Use next_cursor of the page before, or leave it out.")


def validated(model: type[Body], values: Any) -> Body:
    """``values`` of a body that a route reads by itself, as the model. Raises ``Invalid`` with every problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Invalid.of(problems_of(error)) from None


def inlined_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of ``model`` without references, for a body that a route reads by itself."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inline(definitions[value["$ref"].rsplit("/", 1)[-1]])
            return {k: inline(v) for k, v in value.items()}
        return [inline(v) for v in value] if isinstance(value, list) else value

    return inline(schema)


def like(text: str) -> str:
    """A LIKE pattern (escape character ``\\``) that finds ``text`` anywhere, its own wildcards taken literally."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
