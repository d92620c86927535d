"""The one place that turns any error into an answer.

Every error answer is ``{"error": {"message", "code", "field"?, "hint"?, "problems"?}}``; ``problems`` lists all
that is wrong, not only the first. Under ``/v1`` the shape is OpenAI's. No answer carries a traceback.
"""

from __future__ import annotations

import errno
import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException

from app.core.errors import AppError, Conflict, DiskFull, Invalid, NotFound, Unavailable, problems_of
from app.core.logging import get_logger
from minimind.errors import ConfigError, DiskFullError, MiniMindError

log = get_logger(__name__)

_CODES = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED",
          413: "TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE", 422: "INVALID"}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def as_app_error(error: Exception) -> AppError:
    """What an answer says of ``error``, whatever raised it."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, MiniMindError):
        return _of_core(error)
    if isinstance(error, RequestValidationError):
        return Invalid.of(problems_of(error))
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return DiskFull("The disk of the server is full.", hint="Free some space in the data directory and try again.")
    if isinstance(error, SQLAlchemyError):
        return _of_database(error)
    return AppError(500, "INTERNAL", "The server made a mistake; its log says more.")


def _of_core(error: MiniMindError) -> AppError:
    if isinstance(error, ConfigError):
        return Invalid.of(error.problems)
    kind = DiskFull if isinstance(error, DiskFullError) else Invalid
    return kind(error.message, field=error.field, hint=error.hint)


def _of_http(error: HTTPException) -> AppError:
    cause = error.__cause__  # FastAPI wraps whatever was raised while it read a body
    if isinstance(cause, AppError):
        return cause
    if isinstance(cause, RecursionError):
        return Invalid("The request body is nested too deeply.", field="body")
    if isinstance(cause, ValueError):
        return Invalid("The request body is not usable JSON: it is not UTF-8, or has a number that is too long.",
                       field="body", hint="Send a JSON object in UTF-8.")
    message = str(error.detail)
    if error.status_code == 404:
        message = "There is nothing at this address."
    elif error.status_code == 405:
        message = "This address does not know the request's method."
    return AppError(error.status_code, _CODES.get(error.status_code, "ERROR"), message,
                    hint="GET /api/v1/openapi.json lists every address." if error.status_code in (404, 405) else None,
                    headers=dict(error.headers or {}))


def _of_database(error: SQLAlchemyError) -> AppError:
    if isinstance(error, DBAPIError) and "disk is full" in str(error.orig):
        return DiskFull("The disk of the database is full.", hint="Free some space and try again.")
    if isinstance(error, PoolTimeoutError) or (
            isinstance(error, DBAPIError) and (error.connection_invalidated or _is_operational(error))):
        return Unavailable("The database does not answer.", headers={"Retry-After": "2"},
                           hint="Nothing is lost; try again in a moment. ./studio doctor says more.")
    if isinstance(error, InvalidRequestError) and str(error).startswith("Could not refresh instance"):
        return NotFound("It was deleted at this moment.", hint="Look at the list.")  # while its lock was waited for
    if isinstance(error, IntegrityError | StaleDataError):  # the second: it was deleted before it could be changed
        return Conflict("Somebody else changed the same thing at the same time.", hint="Look again and retry.")
    return AppError(500, "INTERNAL", "The server made a mistake; its log says more.")


def _is_operational(error: DBAPIError) -> bool:
    """The driver's word for trouble with the connection or the server, not with the statement."""
    return type(error).__name__ in ("OperationalError", "InterfaceError")


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                 429: "rate_limit_error"}


class _ErrorResponse(JSONResponse):
    """JSON that survives text which is not Unicode: a message may quote what the client sent."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def answer(path: str, error: AppError) -> Response:
    """``error`` as JSON, in the shape that belongs to ``path``."""
    if path == "/v1" or path.startswith("/v1/"):
        kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
        body = {"message": str(error), "type": kind, "param": error.field, "code": error.code.lower()}
        return _ErrorResponse({"error": body}, error.status, error.headers)
    return _ErrorResponse({"error": error.as_dict()}, error.status, error.headers)


def log_unexpected(error: Exception, answered: AppError, path: str) -> None:
    """What the answer does not say: where an error that nobody foresaw came from."""
    if answered.status >= 500 and not isinstance(error, AppError):
        log.error("request_failed", path=path, status=answered.status, exc_info=error)


async def handle(request: Request, error: Exception) -> Response:
    """The one exception handler; a page for a browser, JSON for everybody else."""
    answered = as_app_error(error)
    log_unexpected(error, answered, request.url.path)
    page = getattr(request.app.state, "error_page", None)
    if page is not None and wants_page(request.url.path, request.headers.get("accept", "")):
        return page(request, answered)
    return answer(request.url.path, answered)


def wants_page(path: str, accept: str) -> bool:
    """Whether whoever asks for ``path`` is a person with a browser."""
    programmatic = path.startswith(("/api/v1", "/v1", "/static", "/healthz", "/readyz", "/metrics"))
    return not programmatic and "text/html" in accept


def install(app: FastAPI) -> None:
    """Handle every kind of error of ``app`` here. (Anything else is caught by ``app.auth.guard``.)"""
    for kind in (AppError, MiniMindError, RequestValidationError, HTTPException, SQLAlchemyError, OSError):
        app.add_exception_handler(kind, handle)
