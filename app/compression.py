"""Answers packed on their way, where that pays: pages and JSON, not what is streamed, packed already or huge."""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

SMALLEST_BYTES = 1024
LEVEL = 5


class Compression:
    """``/v1`` streams token by token, a download is a tar of floats, and built files lie packed on the disk."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.packed = GZipMiddleware(app, minimum_size=SMALLEST_BYTES, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        plain = scope["type"] != "http" or path.startswith(("/v1/", "/static/")) or path.endswith("/download")
        await (self.app if plain else self.packed)(scope, receive, send)
