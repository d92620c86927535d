"""The web process in this process: its own database, a client that is logged in with a token; and, for websockets,
the same application behind a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import event
from starlette.testclient import TestClient
from websockets.sync.client import ClientConnection, connect

from app.auth.service import create_token, create_user, failed_logins
from app.core.db import engine_for, transaction
from app.core.models import LOCAL_ADMIN_ID, Installation, User
from app.core.settings import get_settings
from app.main import create_app
from tests import database_rig

BASE_URL = "http://127.0.0.1:8000"
LOGIN_TOKEN = "login-token-of-this-start-0123456789abcdef"


@dataclass
class Api:
    """``http`` sends the local admin's Bearer token; ``anonymous()`` sends nothing."""

    app: FastAPI
    http: TestClient
    token: str
    data_dir: Path

    def anonymous(self, **headers: str) -> TestClient:
        return TestClient(self.app, base_url=BASE_URL, headers=headers, raise_server_exceptions=False)

    def browser(self) -> TestClient:
        """A browser that is logged in: it has a cookie and says where its requests come from."""
        client = self.anonymous()
        assert client.get("/", params={"token": LOGIN_TOKEN}).status_code == 200
        client.headers["Origin"] = BASE_URL
        return client

    def as_role(self, name: str, role: str) -> TestClient:
        with transaction() as session:
            create_user(session, name, role)
            token = create_token(session, name)
        return self.anonymous(Authorization=f"Bearer {token}")

    def get(self, path: str, **params: object):
        return self.http.get(f"/api/v1{path}", params=params)

    def post(self, path: str, json: object = None, **headers: str):
        return self.http.post(f"/api/v1{path}", json=json, headers=headers)


@pytest.fixture(params=database_rig.backends())
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new database on each backend that is there; its URL."""
    monkeypatch.setenv("STUDIO_LOGIN_TOKEN", LOGIN_TOKEN)
    for url in database_rig.make_database(request.param, tmp_path, monkeypatch):
        with transaction() as session:
            session.add(Installation(id=1, uid="installation-1", created_at=1.0))
            session.add(User(id=LOCAL_ADMIN_ID, name="local admin", role="admin", created_at=1.0))
        yield url


@pytest.fixture(scope="session")
def apps() -> tuple[FastAPI, FastAPI]:
    """One application for the client, one for the server; they look at the settings with each request."""
    return create_app(own_process=False), create_app(own_process=False)


@pytest.fixture
def api(database: str, tmp_path: Path, apps: tuple[FastAPI, FastAPI]) -> Iterator[Api]:
    failed_logins.__init__()
    app = apps[0]
    with transaction() as session:
        token = create_token(session, "test")
    with TestClient(app, base_url=BASE_URL, headers={"Authorization": f"Bearer {token}"},
                    raise_server_exceptions=False) as http:
        yield Api(app, http, token, tmp_path)


@dataclass
class Server:
    """A real uvicorn in a thread."""

    app: FastAPI
    url: str
    token: str

    def connect(self, *, sock: socket.socket | None = None, max_queue: int | None = None,
                **headers: str) -> ClientConnection:
        """A websocket with the token; ``headers`` replace the defaults, an empty value leaves one out.

        ``max_queue``: frames that the client reads ahead (None: all, then it also closes at once).
        """
        sent = {"Authorization": f"Bearer {self.token}"} | headers
        return connect(f"{self.url.replace('http', 'ws')}/api/v1/live", proxy=None, open_timeout=10, sock=sock,
                       max_queue=max_queue, additional_headers={k: v for k, v in sent.items() if v})


def receive(socket_: ClientConnection, timeout_s: float = 10) -> dict[str, Any]:
    return json.loads(socket_.recv(timeout=timeout_s))


@pytest.fixture
def server(api: Api, apps: tuple[FastAPI, FastAPI]) -> Iterator[Server]:
    app = apps[1]
    config = uvicorn.Config(app, log_config=None, access_log=False, ws_max_size=64 * 1024,
                            timeout_graceful_shutdown=2)
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Server(app, f"http://127.0.0.1:{listener.getsockname()[1]}", api.token)
        running.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive()


def statements(api: Api, path: str) -> int:
    """How many the answer costs."""
    seen: list[str] = []
    engine = engine_for(get_settings().sqlalchemy_url)

    def listener(*arguments: Any) -> None:
        seen.append(arguments[2])

    event.listen(engine, "before_cursor_execute", listener)
    try:
        assert api.get(path).status_code == 200
    finally:
        event.remove(engine, "before_cursor_execute", listener)
    return len(seen)
