"""Errors that a client of the server can cause or meet; ``app.core.answers`` turns them into answers."""

from __future__ import annotations

from typing import Any


class AppError(Exception):
    """An answer with an error status. ``message`` says what and where, ``hint`` what to do about it."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None, hint: str | None = None,
                 problems: list[dict] | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.hint = hint
        self.problems = problems
        self.headers = headers or {}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def as_dict(self) -> dict[str, Any]:
        """The ``error`` object of the answer; what is not known is left out."""
        optional = {"field": self.field, "hint": self.hint, "problems": self.problems}
        return {"message": self.message, "code": self.code} | {k: v for k, v in optional.items() if v}


class _Coded(AppError):
    """An error whose status and code belong to its class."""

    status_of_class = 500
    code_of_class = "INTERNAL"

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None,
                 problems: list[dict] | None = None, headers: dict[str, str] | None = None):
        super().__init__(self.status_of_class, self.code_of_class, message, field, hint, problems, headers)


class BadRequest(_Coded):
    status_of_class, code_of_class = 400, "BAD_REQUEST"


class Unauthorized(_Coded):
    status_of_class, code_of_class = 401, "UNAUTHORIZED"


class Forbidden(_Coded):
    status_of_class, code_of_class = 403, "FORBIDDEN"


class NotFound(_Coded):
    status_of_class, code_of_class = 404, "NOT_FOUND"


class Conflict(_Coded):
    status_of_class, code_of_class = 409, "CONFLICT"


class TooLarge(_Coded):
    status_of_class, code_of_class = 413, "TOO_LARGE"


class Invalid(_Coded):
    """Something in the request is wrong; ``problems`` names every field."""

    status_of_class, code_of_class = 422, "INVALID"

    @classmethod
    def of(cls, problems: list[dict]) -> Invalid:
        """One error for all ``problems`` (each ``{field, message, hint}``)."""
        return cls(" ".join(p["message"] for p in problems), field=problems[0].get("field"),
                   hint=problems[0].get("hint") if len(problems) == 1 else None, problems=problems)


class Problems(list[dict]):
    """What is wrong so far: material for ``Invalid.of``."""

    def say(self, field: str | None, message: str, hint: str | None = None) -> None:
        self.append({"field": field, "message": message, "hint": hint})


class TooMany(_Coded):
    status_of_class, code_of_class = 429, "TOO_MANY"


class Unavailable(_Coded):
    status_of_class, code_of_class = 503, "UNAVAILABLE"


class DiskFull(_Coded):
    status_of_class, code_of_class = 507, "DISK_FULL"


def _problem(error: dict[str, Any]) -> dict[str, Any]:
    """One sentence for one of pydantic's errors about a body, query or path."""
    # pydantic's words for a key of a mapping, and for the types that a field may have
    own = ("[key]",) if error["type"] == "extra_forbidden" else ("[key]", "str", "list[dict[str,any]]")
    place = [str(part) for part in error["loc"] if part not in own]
    field = ".".join(place[1:] if place and place[0] in ("body", "query", "path", "header") else place) or "body"
    if error["type"] == "json_invalid":
        return {"field": "body", "message": "The request body is not valid JSON.",
                "hint": f"{error.get('ctx', {}).get('error', 'It cannot be read')}; send a JSON object."}
    if error["type"] == "missing":
        what = "The request body" if field == "body" else f"The field {field}"
        return {"field": field, "message": f"{what} is missing.", "hint": None}
    if error["type"] == "extra_forbidden":
        return {"field": field, "message": f"There is no field {field} here.", "hint": "Check its spelling."}
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    return {"field": field, "message": f"The field {field} is wrong: {message[0].lower()}{message[1:]}.", "hint": None}


def problems_of(error: Any) -> list[dict]:
    """As the handler would say them: the problems of a ``ValidationError`` that a schema met by itself."""
    return [_problem(e) for e in error.errors()]
