"""Streaming clients of ``/v1`` that write down when each piece of their answer came.

They speak HTTP by hand: a client library takes longer for a chunk than the server, and its pauses would count against
the server on the same cores.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

#: the answers begin at once; a head or a chunk of an answer that takes longer has hung
SILENCE_S = 120.0
#: bytes of a connection that may wait to be read
_LINE_LIMIT = 1 << 20


@dataclass
class Heard:
    """One answer. Times are of the monotonic clock, of what arrived with text in it."""

    asked: float = 0.0
    status: int = 0
    times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    is_done: bool = False  #: ``[DONE]`` came
    error: dict[str, Any] | None = None  #: instead of an answer, or in its middle
    ended: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def first_s(self) -> float:
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:])]


class Client:
    """Asks one studio for streamed answers; each has a connection of its own."""

    def __init__(self, url: str, token: str):
        self.address, self.token = urlsplit(url), token

    async def ask(self, body: dict[str, Any], path: str = "/v1/completions", leave_after: int | None = None,
                  heard: Heard | None = None) -> Heard:
        """The answer to ``body``; with ``leave_after`` the connection is closed behind so many pieces of text.
        ``heard`` is filled while it comes. Raises ``OSError`` and ``TimeoutError`` where the server is gone."""
        heard = heard or Heard()
        heard.asked = time.monotonic()
        reader, writer = await asyncio.open_connection(self.address.hostname, self.address.port, limit=_LINE_LIMIT)
        try:
            content = json.dumps({**body, "stream": True}).encode()
            writer.write(f"POST {path} HTTP/1.1\r\nHost: {self.address.netloc}\r\nConnection: close\r\n"
                         f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
                         f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            async with asyncio.timeout(SILENCE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
            heard.status = int(head.split(maxsplit=2)[1])
            if heard.status != 200:
                heard.error = json.loads(await reader.read())["error"]
            else:
                async for event in _events(reader):
                    _take(heard, event)
                    if leave_after is not None and len(heard.times) >= leave_after:
                        break
        finally:
            heard.ended = time.monotonic()
            writer.close()
        return heard

    async def crowd(self, bodies: Sequence[dict[str, Any]], path: str = "/v1/completions") -> list[Heard]:
        """All ``bodies`` at the same time."""
        return await asyncio.gather(*(self.ask(body, path) for body in bodies))


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Data of the server-sent events in a chunked body."""
    text = b""
    while True:
        async with asyncio.timeout(SILENCE_S):
            size = int(await reader.readline() or b"0", 16)
            text += (await reader.readexactly(size + 2))[:-2]
        *events, text = text.split(b"\n\n")
        for event in events:
            yield event.decode().removeprefix("data: ")
        if size == 0:
            return


def _take(heard: Heard, event: str) -> None:
    if event == "[DONE]":
        heard.is_done = True
        return
    chunk = json.loads(event)
    heard.error = chunk.get("error", heard.error)
    for choice in chunk.get("choices", []):
        said = choice.get("text") or choice.get("delta", {}).get("content") or ""
        if said:
            heard.times.append(time.monotonic())
            heard.texts.append(said)
        heard.finish_reason = choice["finish_reason"] or heard.finish_reason
