"""What every request and every websocket passes before anything of the studio sees it.

In this order: Host, Origin, size, who it is, what that person may do. What is not named in ``is_public`` needs
a login, also addresses that do not exist: a new route is closed until somebody decides otherwise. Behind it
every answer gets the security headers, and an error that nothing else handled becomes a plain 500.

Written against ASGI itself, so that streams and websockets go through untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import service
from app.auth.deps import LOGIN_HINT
from app.auth.origin import Names, refusal
from app.core.answers import answer, as_app_error, log_unexpected, wants_page
from app.core.db import reading, transaction
from app.core.errors import AppError, BadRequest, Forbidden, TooLarge, Unauthorized
from app.core.settings import Settings, get_settings
from app.core.tasks import Together, Turnstile

#: JSON bodies; uploads have their own bounds
MAX_BODY_BYTES = 4 << 20
MAX_UPLOAD_BYTES = 64 << 30
UPLOAD_PATHS = ("/api/v1/datasets", "/api/v1/datasets/inspect", "/api/v1/tokenizers",
                "/api/v1/checkpoints/import")
#: a refused request's body is read and forgotten up to here, so that its sender gets to the answer
DRAIN_BYTES, DRAIN_S = 64 << 20, 5.0
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
#: POSTs that change nothing but compute: a viewer may send them
HARMLESS_POSTS = ("/api/v1/preflight", "/api/v1/chat_format", "/api/v1/tools/run", "/api/v1/logout", "/logout")
#: everybody's own talks with models and votes, which no other user sees: a viewer keeps them too
OWN_PLACES = ("/api/v1/conversations", "/api/v1/votes", "/api/v1/chat/presets")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not "no-referrer": with it browsers send "Origin: null" from our own forms
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def is_public(method: str, path: str) -> bool:
    """What may be asked without a login: signs of life, assets, and the doors to the login itself."""
    if path in ("/healthz", "/readyz", "/favicon.ico", "/login"):
        return True
    if path == "/api/v1/login":
        return method == "POST"
    return path.startswith("/static/") and method in ("GET", "HEAD")


def cookie_name(settings: Settings) -> str:
    """Cookies know no ports: studios on one machine keep theirs apart by their database."""
    return f"studio_{hashlib.sha256(settings.sqlalchemy_url.encode()).hexdigest()[:8]}"


class Guard:
    """Wraps the whole application. ``app`` is asked only for requests that may go on."""

    def __init__(self, app: ASGIApp, *, studio: FastAPI):
        self.app = app
        self.studio = studio
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in ("http.response.start", "websocket.accept", "websocket.close")
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                _add_headers(message, scope["path"])
            await send(message)

        body = receive
        try:
            receive = await self._admit(scope, receive)
            await self._turnstile()
            await self.app(scope, receive, guarded_send)
        except ClientDisconnect:
            return
        except Exception as error:  # the last resort: no traceback ever leaves the server
            answered = as_app_error(error)
            log_unexpected(error, answered, scope["path"])
            if started:
                raise
            await self._refuse(scope, body, guarded_send, answered)

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """Raises ``AppError`` for what must not go on; returns ``receive`` with a bound on the body."""
        headers, settings = Headers(scope=scope), get_settings()
        websocket = scope["type"] == "websocket"
        method = "GET" if websocket else scope["method"]
        if not Names.of(settings.host, settings.allowed_hosts).accept(headers.getlist("host")):
            raise BadRequest("This server is not known under the name in the request's Host header.", field="host",
                             hint="Use the address that ./studio up prints, or list the name in STUDIO_ALLOWED_HOSTS.")
        bearer = _bearer(headers)
        if websocket or method not in SAFE_METHODS:
            reason = refusal(origins=headers.getlist("origin"), fetch_site=headers.get("sec-fetch-site"),
                             host_header=headers["host"], has_cookie="cookie" in headers,
                             has_bearer=bearer is not None, websocket=websocket)
            if reason:
                raise Forbidden(reason, hint="Open the studio itself and try there.")
        limit = _limit(scope["path"], headers)
        if not websocket and _declared_length(headers) > limit:
            raise _too_large(limit)
        if not is_public(method, scope["path"]):
            identity = scope["identity"] = await _identify(headers, bearer, settings)
            if identity is None and not _carries_login_token(scope):
                raise Unauthorized("You are not logged in." if bearer is None else "This token is not valid.",
                                   hint=LOGIN_HINT, headers={"WWW-Authenticate": "Bearer"})
            if identity and not identity.may_write and method not in SAFE_METHODS and not _is_harmless(scope["path"]):
                raise Forbidden("A viewer can look at everything but change nothing.",
                                hint="Ask an admin for the role member.")
        return receive if websocket else _bounded(receive, limit)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: AppError) -> None:
        if scope["type"] == "websocket":
            if "websocket.http.response" not in scope.get("extensions", {}):
                await send({"type": "websocket.close", "code": 1008, "reason": error.code})
                return
            body = answer(scope["path"], error)
            await send({"type": "websocket.http.response.start", "status": error.status, "headers": body.raw_headers})
            await send({"type": "websocket.http.response.body", "body": body.body})
            return
        await _drain(scope, receive)
        page = getattr(self.studio.state, "error_page", None)
        if page is not None and wants_page(scope["path"], Headers(scope=scope).get("accept", "")):
            response = page(Request({**scope, "app": self.studio}), error)
        else:
            response = answer(scope["path"], error)
        await response(scope, receive, send)


async def _drain(scope: Scope, receive: Receive) -> None:
    """Read on for a moment: closing a connection with unread bytes resets it, and most clients, still sending,
    would see "connection reset" in place of the answer."""
    if "expect" in Headers(scope=scope):  # this one waits for the answer before it sends
        return
    seen = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while seen <= DRAIN_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


async def _identify(headers: Headers, bearer: str | None, settings: Settings) -> service.Identity | None:
    """Who sends this; a Bearer token, where one is sent, is the only thing that counts."""
    if bearer is not None:
        return await _owners_of_tokens(bearer)
    secret = cookie_parser(headers.get("cookie", "")).get(cookie_name(settings))
    return await _owners_of_sessions(secret) if secret else None


def _by_token(secret: str) -> service.Identity | None:
    with reading() as session:
        found = service.identify_token(session, secret)
    if found is None:
        return None
    identity, stale = found
    if stale:
        with transaction() as session:
            service.mark_used(session, secret)
    return identity


def _by_cookie(secret: str) -> service.Identity | None:
    with reading() as session:
        return service.identify_session(session, secret)


_owners_of_tokens, _owners_of_sessions = Together(_by_token), Together(_by_cookie)


def _bearer(headers: Headers) -> str | None:
    """The token of an Authorization header; any other scheme counts as a token that nobody has."""
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _carries_login_token(scope: Scope) -> bool:
    """The page that takes this start's login token, and only it, may be asked by nobody in particular."""
    return scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET" and b"token=" in scope[
        "query_string"]


def _is_harmless(path: str) -> bool:
    return (path in HARMLESS_POSTS or path.startswith("/v1/")
            or any(path == place or path.startswith(f"{place}/") for place in OWN_PLACES))


def _limit(path: str, headers: Headers) -> int:
    """Only a multipart body goes to the disk as it comes; every other one is held in memory."""
    is_upload = path in UPLOAD_PATHS and headers.get("content-type", "").lower().startswith("multipart/form-data")
    return MAX_UPLOAD_BYTES if is_upload else MAX_BODY_BYTES


def _declared_length(headers: Headers) -> int:
    value = headers.get("content-length", "0")
    return int(value[:20]) if value.isdecimal() else 0


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request is larger than {limit >> 20} MiB.", hint="Upload data as a dataset.")


def _bounded(receive: Receive, limit: int) -> Receive:
    """``receive`` that refuses more than ``limit`` bytes of body, whatever the headers said."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
        return message

    return bounded


def _add_headers(message: Message, path: str) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    if not path.startswith("/static/"):
        headers.setdefault("Cache-Control", "no-store")
