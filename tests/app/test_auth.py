"""Who may come in, and what they may do: every address, every role, every kind of secret."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Mount, WebSocketRoute

from app.auth import service
from app.core.db import now, reading, transaction
from app.core.models import ApiToken, LoginSession, User
from minimind.errors import MiniMindError
from tests.app.conftest import LOGIN_TOKEN, Api

PUBLIC = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/login"), ("POST", "/login"), ("GET", "/favicon.ico"),
          ("POST", "/api/v1/login")}
CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
       "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")


def every_route(routes: object) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of included routers too."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from every_route(inner.routes)
        elif not isinstance(route, Mount | WebSocketRoute) and hasattr(route, "methods"):
            for method in route.methods:
                yield method, route.path


def test_every_route_but_the_doors_needs_a_login(api: Api) -> None:
    documented = {(method.upper(), path) for path, methods in api.app.openapi()["paths"].items()
                  for method in methods}
    walked = documented | set(every_route(api.app.routes))
    assert len(documented) > 40
    nobody = api.anonymous()
    for method, path in sorted(walked | {("GET", "/nowhere"), ("GET", "/api/v1/nowhere"), ("GET", "/v1/nowhere")}):
        answer = nobody.request(method, path.replace("{", "").replace("}", ""))
        if (method, path) in PUBLIC:
            assert answer.status_code != 401 or path == "/api/v1/login" or method == "POST", (method, path)
        else:
            assert answer.status_code == 401, (method, path, answer.status_code)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or "not logged in" in answer.json()["error"]["message"]
    wrong = api.anonymous(Authorization="Bearer " + "x" * 43)
    for method, path in sorted(documented - PUBLIC):
        assert wrong.request(method, path).status_code == 401, (method, path)


def test_every_answer_carries_the_security_headers(api: Api) -> None:
    for answer in (api.get("/runs"), api.anonymous().get("/"), api.anonymous().get("/static/css/studio.css"),
                   api.get("/nowhere"), api.anonymous().get("/healthz", headers={"Host": "evil.example"})):
        assert answer.headers["content-security-policy"] == CSP
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "server" not in answer.headers
    assert api.get("/runs").headers["cache-control"] == "no-store"


def test_the_login_token_opens_a_session(api: Api) -> None:
    browser = api.anonymous()
    page = browser.get("/", params={"token": LOGIN_TOKEN}, headers={"Accept": "text/html"})
    assert page.status_code == 200 and 'http-equiv="refresh"' in page.text and LOGIN_TOKEN not in page.text
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and "Path=/" in cookie
    assert browser.get("/api/v1/me").json() == {"id": "local", "name": "local admin", "role": "admin"}
    assert "Train your first model" in browser.get("/").text
    for wrong in ("", "x", LOGIN_TOKEN + "x", LOGIN_TOKEN[:-1], "ü" * 40, LOGIN_TOKEN.upper()):
        refused = api.anonymous().get("/", params={"token": wrong})
        assert refused.status_code == 401 and "set-cookie" not in refused.headers


def test_only_hashes_are_kept(api: Api, tmp_path: Path) -> None:
    browser = api.browser()
    (secret,) = browser.cookies.values()
    with transaction() as session:
        password = service.create_user(session, "anna", "member")
        token = service.create_token(session, "anna")
    with reading() as session:
        rows = [session.query(kind).all() for kind in (User, ApiToken, LoginSession)]
        said = repr([[vars(row) for row in found] for found in rows])
        assert session.query(User).filter_by(name="anna").one().password_hash.startswith("$argon2id$")
    for known in (secret, password, token, LOGIN_TOKEN):
        assert len(known) >= 32 and known not in said
    database = tmp_path / "studio.db"
    if database.exists():
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA wal_checkpoint")
        connection.close()
        content = b"".join(p.read_bytes() for p in tmp_path.glob("studio.db*"))
        assert not any(known.encode() in content for known in (secret, password, token, LOGIN_TOKEN))


def test_a_session_ends_by_logging_out_and_by_time(api: Api) -> None:
    browser = api.browser()
    assert browser.get("/api/v1/me").status_code == 200
    kept = dict(browser.cookies)
    assert browser.post("/api/v1/logout").status_code == 204
    stolen = api.anonymous()
    stolen.cookies.update(kept)
    assert stolen.get("/api/v1/me").status_code == 401, "the server has forgotten it too"
    later = api.browser()
    with transaction() as session:
        session.query(LoginSession).update({"expires_at": now(session) - 1})
    assert later.get("/api/v1/me").status_code == 401


def test_sessions_outlive_the_login_token(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.core.settings import get_settings

    browser = api.browser()
    monkeypatch.setenv("STUDIO_LOGIN_TOKEN", "the-token-of-the-next-start-0123456789")
    get_settings.cache_clear()
    assert browser.get("/api/v1/me").status_code == 200
    assert api.anonymous().get("/", params={"token": LOGIN_TOKEN}).status_code == 401


def test_without_a_login_token_nothing_is_the_login_token(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.core.settings import get_settings

    monkeypatch.setenv("STUDIO_LOGIN_TOKEN", "")
    get_settings.cache_clear()
    for given in ("", "None"):
        assert api.anonymous().get("/", params={"token": given}).status_code == 401


def test_users_log_in_with_a_password(api: Api) -> None:
    with transaction() as session:
        password = service.create_user(session, "anna", "member")
    browser = api.anonymous()
    assert browser.post("/api/v1/login", json={"name": "anna", "password": password}).json()["role"] == "member"
    assert browser.get("/api/v1/me").json()["name"] == "anna"
    form = api.anonymous()
    assert form.post("/login", data={"name": "anna", "password": password}).status_code == 200
    assert form.get("/api/v1/me").status_code == 200
    for name, wrong in (("anna", password + "x"), ("anna", ""), ("bob", password), ("local admin", "")):
        answer = api.anonymous().post("/api/v1/login", json={"name": name, "password": wrong})
        assert answer.status_code == 401 and "do not belong together" in answer.json()["error"]["message"]
    assert api.anonymous(Origin="http://evil.example").post(
        "/api/v1/login", json={"name": "anna", "password": password}).status_code == 403


def test_guessing_is_slowed_down(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_verify", lambda known, password: False)  # argon2 is slow on purpose
    answers = [api.anonymous().post("/api/v1/login", json={"name": "anna", "password": "x"}) for _ in range(12)]
    assert [a.status_code for a in answers] == [401] * 10 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) > 200
    assert api.anonymous().post("/api/v1/login", json={"name": "bob", "password": "x"}).status_code == 401


def test_a_viewer_changes_nothing(api: Api) -> None:
    run = api.post("/runs", {"stage": "pretrain", "config": {"max_steps": 1}}).json()
    viewer, member = api.as_role("vera", "viewer"), api.as_role("mia", "member")
    assert viewer.get(f"/api/v1/runs/{run['id']}").json() == run
    changing = [(method.upper(), path.replace("{id}", run["id"]))
                for path, methods in api.app.openapi()["paths"].items() for method in methods
                if method.upper() not in ("GET", "HEAD")]
    harmless = {"/api/v1/preflight", "/api/v1/chat_format", "/api/v1/tools/run", "/api/v1/logout", "/api/v1/login"}
    own = ("/api/v1/conversations", "/api/v1/chat/presets", "/api/v1/votes")  # their tests: what a viewer does there
    refused = [(m, p) for m, p in changing if p not in harmless and not p.startswith(("/v1/", *own))]
    assert len(refused) >= 15
    for method, path in refused:
        assert viewer.request(method, path, json={}).status_code == 403, (method, path)
    body = {"stage": "pretrain", "config": {"max_steps": 1}}
    assert viewer.post("/api/v1/preflight", json=body).status_code == 200
    assert member.post("/api/v1/runs", json=body).status_code == 201
    assert api.get(f"/runs/{run['id']}").json() == run


def test_tokens_belong_to_users_once_there_are_any(api: Api) -> None:
    assert api.http.get("/api/v1/me").json()["id"] == "local"
    with transaction() as session:
        service.create_user(session, "anna", "viewer")
        token = service.create_token(session, "anna")
        with pytest.raises(MiniMindError, match="There is no user named 'bob'"):
            service.create_token(session, "bob")
    assert api.anonymous(Authorization=f"Bearer {token}").get("/api/v1/me").json()["role"] == "viewer"
    assert api.anonymous(Authorization=f"bearer {token}").get("/api/v1/me").status_code == 200
    for value in (token, f"Basic {token}", f"Bearer {token}x", "Bearer", f"Bearer  {token} {token}"):
        assert api.anonymous(Authorization=value).get("/api/v1/me").status_code == 401, value
    with reading() as session:
        assert session.query(ApiToken).filter_by(name="anna").one().last_used_at is not None


def test_a_wrong_token_is_not_saved_by_a_cookie(api: Api) -> None:
    browser = api.browser()
    assert browser.get("/api/v1/me", headers={"Authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("name, role, says", [
    ("", "member", "1 to 100"), ("x" * 101, "member", "1 to 100"), ("a\nb", "member", "1 to 100"),
    ("anna", "king", "no role"), ("local admin", "member", "already"),
])
def test_users_that_cannot_be(api: Api, name: str, role: str, says: str) -> None:
    with transaction() as session, pytest.raises(MiniMindError, match=says):
        service.create_user(session, name, role)


def test_the_door_is_a_page_for_people(api: Api) -> None:
    page = api.anonymous().get("/", headers={"Accept": "text/html"})
    assert page.status_code == 401 and "<form" in page.text and "./studio up" in page.text
    assert api.anonymous().get("/login").status_code == 200
    browser = api.browser()
    assert "<form" in browser.post("/logout").text
    assert browser.get("/api/v1/me").status_code == 401
