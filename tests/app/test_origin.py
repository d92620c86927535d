"""Whom the server believes: tables of Host and Origin values, against the pure functions and the real server."""

from __future__ import annotations

import socket

import pytest
from websockets.exceptions import InvalidStatus

from app.auth.origin import Names, refusal, same_origin
from tests.app.conftest import BASE_URL, Api, Server

HOST = "127.0.0.1:8000"
ORIGINS = [
    ("http://127.0.0.1:8000", True),
    ("https://127.0.0.1:8000", True),  # behind a proxy that ends TLS
    ("http://127.0.0.1:8001", False),
    ("http://127.0.0.1", False),
    ("http://localhost:8000", False),  # another page than the one that is asked
    ("http://evil.example", False),
    ("http://evil.example:8000", False),
    ("null", False),
    ("", False),
    ("http://", False),
    ("//127.0.0.1:8000", False),
    ("HTTP://127.0.0.1:8000", False),  # no browser writes this
    ("http://127.0.0.1:8000/", False),
    ("http://127.0.0.1:8000/path", False),
    ("http://127.0.0.1:8000@evil.example", False),
    ("http://user@127.0.0.1:8000", False),
    ("http://127.0.0.1:8000.evil.example", False),
    ("http://127.0.0.1.:8000", False),
    ("http://127.0.0.1:08000", False),
    ("http://127.0.0.1:80000000", False),
    ("http://127.0.0.1:8000 ", False),
    ("http://127.0.0.1:8000, http://evil.example", False),
    ("http://１２７.0.0.1:8000", False),
    ("http://2130706433:8000", False),
    ("http://[::ffff:127.0.0.1]:8000", False),
    ("file://", False),
    ("chrome-extension://abcdef", False),
]


@pytest.mark.parametrize("origin, ours", ORIGINS)
def test_an_origin_is_ours_only_if_it_is_the_page_that_is_asked(origin: str, ours: bool) -> None:
    assert same_origin(origin, HOST) is ours


@pytest.mark.parametrize("origin, host, ours", [
    ("http://[::1]:8000", "[::1]:8000", True),
    ("http://localhost", "localhost", True),
    ("https://studio.example", "studio.example", True),
    ("http://localhost:80", "localhost", True),
    ("https://localhost", "localhost:443", True),
    ("https://localhost", "localhost:80", False),
    ("http://localhost:8000", "LOCALHOST:8000", True),
])
def test_ports_and_addresses_are_compared_as_browsers_mean_them(origin: str, host: str, ours: bool) -> None:
    assert same_origin(origin, host) is ours


@pytest.mark.parametrize("headers, accepted", [
    (["127.0.0.1:8000"], True), (["127.0.0.1:1"], True), (["localhost"], True), (["LocalHost:9"], True),
    (["[::1]:8000"], True), (["[::1]"], True),
    ([], False), ([""], False), (["127.0.0.1:8000", "127.0.0.1:8000"], False), (["evil.example"], False),
    (["127.0.0.1.evil.example"], False), (["localhost.evil.example"], False), (["localhost."], False),
    (["evil.example:8000"], False), (["127.0.0.2"], False), (["0.0.0.0:8000"], False), (["127.1"], False),
    (["localhost:abc"], False), (["localhost:0"], False), (["localhost:8000/"], False), (["user@localhost"], False),
    (["[::1"], False), (["::1"], False), (["localhost localhost"], False), (["loc\talhost"], False),
    (["10.0.0.7:8000"], False),
])
def test_hosts_of_a_loopback_server(headers: list[str], accepted: bool) -> None:
    assert Names.of("127.0.0.1").accept(headers) is accepted


def test_hosts_of_a_server_on_other_addresses() -> None:
    named = Names.of("192.168.1.5", "Studio.example, other.example")
    assert named.accept(["192.168.1.5:8000"]) and named.accept(["studio.example"]) and named.accept(["localhost:8000"])
    assert not named.accept(["192.168.1.6:8000"]) and not named.accept(["evil.example"])
    everywhere = Names.of("0.0.0.0")
    assert everywhere.accept(["10.0.0.7:8000"]) and everywhere.accept(["[fe80::1]:8000"])
    assert not everywhere.accept(["evil.example"]), "a name can be rebound, an address cannot"
    assert Names.of("::1").accept(["[::1]:8000"])


@pytest.mark.parametrize("cookie, bearer, websocket, origins, site, goes_on", [
    (True, False, False, [BASE_URL], None, True),
    (True, False, False, [], "same-origin", True),
    (True, False, False, [], "none", True),
    (True, False, False, [], None, False),
    (True, False, False, [], "same-site", False),
    (True, False, False, [], "cross-site", False),
    (True, False, False, [BASE_URL], "cross-site", False),
    (True, False, False, [BASE_URL, "http://evil.example"], None, False),
    (True, False, True, [], "same-origin", False),
    (True, False, True, [BASE_URL], None, True),
    (False, True, False, [], None, True),
    (False, True, True, [], None, True),
    (True, True, False, [], None, True),
    (False, True, False, ["http://evil.example"], None, False),
    (False, True, False, [], "cross-site", False),
    (False, True, True, ["null"], None, False),
    (False, False, False, [], None, True),  # nobody: refused for that
    (False, False, False, ["http://evil.example"], None, False),
])
def test_what_must_come_with_a_cookie(cookie: bool, bearer: bool, websocket: bool, origins: list[str],
                                      site: str | None, goes_on: bool) -> None:
    reason = refusal(origins=origins, fetch_site=site, host_header=HOST, has_cookie=cookie, has_bearer=bearer,
                     websocket=websocket)
    assert (reason is None) is goes_on, reason


def test_the_server_refuses_foreign_pages(api: Api) -> None:
    browser = api.browser()
    body = {"stage": "pretrain", "config": {"max_steps": 1}}
    assert browser.post("/api/v1/runs", json=body).status_code == 201
    assert browser.get("/api/v1/runs", headers={"Host": "evil.example"}).status_code == 400
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9"},
                    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert browser.post("/api/v1/runs", json=body, headers=headers).status_code == 403, headers
        assert browser.request("DELETE", "/api/v1/runs/x", headers=headers).status_code == 403
        assert browser.patch("/api/v1/runs/x", json={}, headers=headers).status_code == 403
    del browser.headers["Origin"]
    assert browser.post("/api/v1/runs", json=body).status_code == 403, "neither header, but a cookie"
    assert browser.post("/api/v1/runs", json=body, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 201
    assert api.post("/runs", body, Origin="http://evil.example").status_code == 403, "foreign, even with a token"
    assert len(api.get("/runs").json()["items"]) == 2


def test_the_websocket_is_refused_before_it_opens(api: Api, server: Server) -> None:
    def status(**headers: str) -> int:
        try:
            with server.connect(**headers):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    name, value = next(iter(api.browser().cookies.items()))
    cookie = {"Authorization": "", "Cookie": f"{name}={value}"}
    assert status(**cookie, Origin=server.url) == 101
    assert status(**cookie, Origin="http://evil.example") == 403
    assert status(**cookie, Origin="null") == 403
    assert status(**cookie) == 403, "a cookie without Origin"
    assert status(Authorization="") == 401
    assert status(Authorization="", Origin=server.url) == 401
    assert status(Authorization="Bearer wrong") == 401
    assert status() == 101
    assert status(Origin=server.url) == 101
    assert status(Origin="http://evil.example") == 403
    assert status(Cookie=f"{name}=wrong", Authorization="", Origin=server.url) == 401


def test_a_websocket_under_a_foreign_name_is_refused(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET /api/v1/live HTTP/1.1\r\nHost: evil.example\r\nConnection: Upgrade\r\n"
                    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                    b"Authorization: Bearer " + server.token.encode() + b"\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400")
