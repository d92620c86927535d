"""A small real server that speaks OpenAI's shape, for whoever asks a teacher."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "sk-a-secret-of-this-test"


class Server(ThreadingHTTPServer, AbstractContextManager):
    """``reply(body, count)`` gives ``(status, headers, body)`` for the ``count``-th request; what came is kept."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict, int], tuple]):
        self.reply, self.bodies, self.headers, self.lock = reply, [], [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    @property
    def keys(self) -> set[str | None]:
        """What stood in ``Authorization``."""
        return {headers.get("Authorization") for headers in self.headers}

    def handle_error(self, *_: object) -> None:
        """A client that went away or was killed is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, {}, {"data": [{"id": "small"}, {"id": "large"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            count = len(self.server.bodies)
        self._send(*self.server.reply(body, count))

    def _send(self, status: int, headers: dict, body: dict | bytes) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """The tests say what matters."""


def completion(content: str | None, reason: str = "stop", **message: object) -> tuple:
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": content, **message},
                                  "finish_reason": reason}]}


def asked(body: dict) -> str:
    """The question of a request."""
    return body["messages"][-1]["content"]


def echo(body: dict, count: int) -> tuple:
    return completion(f"You asked: {asked(body)}")


def write_questions(path: Path, count: int = 6) -> Path:
    """What is 1? What is 2? And so on."""
    path.write_text("".join(json.dumps({"question": f"What is {n}?"}) + "\n" for n in range(1, count + 1)))
    return path
