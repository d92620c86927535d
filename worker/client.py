"""A small client of the studio's own REST API, for ``./studio demo`` and the tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2

from minimind.errors import MiniMindError

TERMINAL = ("completed", "failed", "cancelled")


class ApiError(MiniMindError):
    """The studio refused a request; ``status`` is the HTTP status, ``body`` its JSON."""

    code = "API"

    def __init__(self, status: int, body: Any):
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {"message": str(body)[:500]}
        super().__init__(error.get("message", ""), field=error.get("field"), hint=error.get("hint"))
        self.status = status
        self.body = body


class StudioClient:
    """``get``, ``post``, ``patch`` and ``delete`` on ``/api/v1`` with a Bearer token; JSON in, JSON out."""

    def __init__(self, base_url: str, token: str, timeout_s: float = 60.0):
        self.base_url = base_url.rstrip("/")
        # trust_env=False: never through a proxy, the studio is on this machine
        self.http = httpx2.Client(base_url=self.base_url, headers={"Authorization": f"Bearer {token}"},
                                  timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        self.http.close()

    def request(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request; ``path`` is under ``/api/v1`` unless it starts with ``/v1``. Raises ``ApiError``."""
        url = path if path.startswith(("/v1/", "/readyz", "/healthz", "/metrics")) else "/api/v1" + path
        answer = self.http.request(method, url, **kwargs)
        body = answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
        if answer.status_code >= 400:
            raise ApiError(answer.status_code, body)
        return body

    def get(self, path: str, **params: Any) -> Any:
        return self.request("GET", path, params=params)

    def post(self, path: str, json: Any = None, **kwargs: Any) -> Any:
        return self.request("POST", path, json={} if json is None and not kwargs else json, **kwargs)

    def patch(self, path: str, json: Any) -> Any:
        return self.request("PATCH", path, json=json)

    def delete(self, path: str) -> Any:
        return self.request("DELETE", path)

    def wait(self, path: str, done: Callable[[dict], bool], *, timeout_s: float = 60.0, every_s: float = 0.2) -> dict:
        """``GET path`` until ``done(answer)``; ``TimeoutError`` names what it last was."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.get(path)
            if done(seen):
                return seen
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} did not get there within {timeout_s:.0f} s; last seen: {seen}")
            time.sleep(every_s)

    def wait_ready(self, kind: str, id: str, *, timeout_s: float = 60.0) -> dict:
        """A dataset or tokenizer once it is ``ready`` or ``failed``."""
        return self.wait(f"/{kind}/{id}", lambda x: x["state"] in ("ready", "failed"), timeout_s=timeout_s)

    def wait_run(self, id: str, states: tuple[str, ...] = TERMINAL, *, timeout_s: float = 120.0) -> dict:
        """A run once its state is one of ``states``; a state that cannot get there any more raises at once."""
        def done(run: dict) -> bool:
            if run["state"] in TERMINAL and run["state"] not in states:
                raise AssertionError(f"run {id} ended as {run['state']}: {run['error']}")
            return run["state"] in states

        return self.wait(f"/runs/{id}", done, timeout_s=timeout_s)

    def chat(self, model: str, text: str, **options: Any) -> dict:
        """One answer of a checkpoint (or of a run's latest) to one user message."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **options}
        return self.request("POST", "/v1/chat/completions", json=body)
