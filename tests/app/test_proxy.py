"""Behind a proxy that ends TLS: the browser says https and the name of the site, the proxy speaks http with us."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from app.core.settings import get_settings
from tests.app.conftest import LOGIN_TOKEN, Api, Server

#: what Caddy, and nginx set up as in docs/running-elsewhere.md, add
FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "studio.example"}
SITE = {"Host": "studio.example", **FORWARDED}


@pytest.fixture
def behind_tls(api: Api, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setenv("STUDIO_ALLOWED_HOSTS", "studio.example")
    monkeypatch.setenv("STUDIO_BEHIND_TLS", "1")
    get_settings.cache_clear()
    return api


def log_in(client: TestClient) -> str:
    """The Set-Cookie header of a login."""
    answer = client.get("/", params={"token": LOGIN_TOKEN})
    assert answer.status_code == 200
    return answer.headers["set-cookie"]


def test_the_cookie_is_for_https_alone(behind_tls: Api) -> None:
    cookie = log_in(behind_tls.anonymous(**SITE))
    assert {"Secure", "HttpOnly"} <= {part.strip() for part in cookie.split(";")}


def test_without_the_setting_nobody_can_claim_that_there_is_tls(api: Api) -> None:
    assert "Secure" not in log_in(api.anonymous(**FORWARDED))


def test_a_page_of_the_site_may_write_and_listen(behind_tls: Api, server: Server) -> None:
    cookie = log_in(behind_tls.anonymous(**SITE)).split(";")[0]
    body = {"stage": "pretrain", "config": {"max_steps": 1}}

    def write(**headers: str) -> int:
        return behind_tls.anonymous(**{**SITE, "Cookie": cookie, **headers}).post("/api/v1/runs", json=body).status_code

    def listen(**headers: str) -> int:
        at = urlsplit(server.url)
        try:
            with socket.create_connection((at.hostname, at.port)) as proxy, connect(
                    "ws://studio.example/api/v1/live", sock=proxy, proxy=None,
                    additional_headers={**FORWARDED, "Cookie": cookie, **headers}):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    assert write(Origin="https://studio.example") == 201
    assert write(Origin="https://evil.example") == 403
    assert listen(Origin="https://studio.example") == 101
    assert listen(Origin="https://evil.example") == 403
    # a proxy that puts its own idea of the host in place of the browser's: refused, not guessed
    assert write(Origin="https://studio.example", Host="127.0.0.1:8000") == 403


def test_other_names_are_refused_whatever_the_proxy_forwards(behind_tls: Api) -> None:
    assert behind_tls.anonymous(**{**SITE, "Host": "evil.example"}).get("/healthz").status_code == 400
