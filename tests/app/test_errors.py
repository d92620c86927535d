"""Whatever goes wrong, the answer has one shape, the right status and no traceback."""

from __future__ import annotations

import http.client
import json

import pytest
from sqlalchemy import delete
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError

from app.core.answers import as_app_error
from app.core.db import transaction
from app.core.errors import AppError, DiskFull, Invalid, NotFound
from app.core.models import LOCAL_ADMIN_ID, User
from minimind.errors import ConfigError, DataError, DiskFullError
from tests.app.conftest import Api, Server


def error_of(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json" and answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error["message"][0].isupper() and error["message"][-1] in ".!?" and error["code"]
    assert "Traceback" not in answer.text and "site-packages" not in answer.text
    return error


@pytest.mark.parametrize("body, content_type", [
    (b"", "application/json"), (b"{", "application/json"), (b"\xff\xfe", "application/json"),
    (b"[1]", "application/json"), (b"null", "application/json"), (b'"x"', "application/json"),
    (b"stage=pretrain", "application/x-www-form-urlencoded"), (b'{"stage": "pretrain"}', "text/plain"),
    (b"[" * 100_000, "application/json"), (b'{"a":' * 50_000, "application/json"),
    (b'{"stage": "pretrain", "config": {"learning_rate": NaN}}', "application/json"),
    (b'{"stage": "pretrain", "config": {"max_steps": ' + b"9" * 5000 + b"}}", "application/json"),
    (b'{"stage": "pretrain", "name": "\\ud800"}', "application/json"),
    (b'{"stage": "\\ud800"}', "application/json"),
    (b'{"stage": "pretrain", "config": {"\\ud800": 1}}', "application/json"),
    (b'{"stage": "pretrain", "config": {"wandb_project": "\\u0000"}}', "application/json"),
    (b'{"stage": "pretrain", "devices": ["\\ud800"]}', "application/json"),
])
def test_bodies_that_are_no_request(api: Api, body: bytes, content_type: str) -> None:
    answer = api.http.post("/api/v1/runs", content=body, headers={"Content-Type": content_type})
    error_of(answer, 422)
    assert api.get("/runs").json()["items"] == []


def test_addresses_and_methods_that_are_none(api: Api) -> None:
    assert error_of(api.get("/nowhere"), 404)["code"] == "NOT_FOUND"
    assert error_of(api.http.put("/api/v1/runs", json={}), 405)["code"] == "METHOD_NOT_ALLOWED"
    assert "no run" in error_of(api.get("/runs/nope"), 404)["message"]
    assert api.http.get("/api/v1/runs/").status_code == 404, "no redirects to a guessed address"
    assert api.http.get("/static/../app/main.py").status_code == 404
    assert api.http.get("/static/%2e%2e/%2e%2e/etc/passwd").status_code == 404


def test_a_body_that_is_too_large(api: Api) -> None:
    assert error_of(api.post("/runs", {"stage": "pretrain", "notes": "x" * (5 << 20)}), 413)["code"] == "TOO_LARGE"

    def chunks():
        for _ in range(6):
            yield b"x" * (1 << 20)

    assert error_of(api.http.post("/api/v1/runs", content=chunks(),
                                  headers={"Content-Type": "application/json"}), 413)


def test_whoever_still_sends_a_refused_body_gets_to_the_answer(server: Server) -> None:
    """A connection that is closed with unread bytes is reset: most clients see that in place of the 413."""
    for headers, status in (({"Authorization": f"Bearer {server.token}"}, 413), ({}, 413)):
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
        connection.request("POST", "/api/v1/runs", body=b"x" * (30 << 20), headers=headers)
        answer = connection.getresponse()
        assert answer.status == status and "error" in json.loads(answer.read())
        connection.close()


@pytest.mark.parametrize("raised, status, code", [
    (RuntimeError("secret path /srv/studio/x"), 500, "INTERNAL"),
    (OperationalError("SELECT 1", {}, Exception("server closed the connection")), 503, "UNAVAILABLE"),
    (PoolTimeoutError("QueuePool limit"), 503, "UNAVAILABLE"),
    (OSError(28, "No space left on device"), 507, "DISK_FULL"),
    (OSError(122, "Quota exceeded"), 507, "DISK_FULL"),
    (OperationalError("INSERT", {}, Exception("database or disk is full")), 507, "DISK_FULL"),
    (PermissionError(13, "Permission denied", "/srv/secret"), 500, "INTERNAL"),
    (DataError("Line 3 is broken.", line=3, field="text", hint="Correct it."), 422, "INVALID"),
    (DiskFullError("The disk is full."), 507, "DISK_FULL"),
    (AppError(418, "TEAPOT", "This is a teapot."), 418, "TEAPOT"),
    (RecursionError(), 500, "INTERNAL"),
])
def test_what_a_route_may_raise(api: Api, monkeypatch: pytest.MonkeyPatch, raised: Exception, status: int,
                                code: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise raised

    monkeypatch.setattr("app.runs.queries.list_runs", fail)
    answer = api.get("/runs")
    assert error_of(answer, status)["code"] == code
    assert "secret" not in answer.text and answer.headers["x-content-type-options"] == "nosniff"
    page = api.http.get("/", headers={"Accept": "text/html"})
    assert page.status_code in (200, status)


def test_under_v1_errors_have_openais_shape(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(answer, status: int) -> dict:
        assert answer.status_code == status, answer.text
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        return answer.json()["error"]

    assert shape(api.anonymous().get("/v1/models"), 401)["type"] == "authentication_error"
    assert shape(api.http.get("/v1/models/nope"), 404)["message"]
    assert shape(api.http.get("/v1/nowhere"), 404)
    foreign = api.http.post("/v1/chat/completions", json={}, headers={"Origin": "http://evil.example"})
    assert shape(foreign, 403)["type"] == "permission_error"
    monkeypatch.setattr("app.openai.service.list_models", lambda: 1 / 0)
    assert shape(api.http.get("/v1/models"), 500)["type"] == "server_error"


def test_the_database_goes_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.core.settings import get_settings

    monkeypatch.setenv("STUDIO_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
    get_settings.cache_clear()
    answer = api.get("/runs")
    assert error_of(answer, 503)["code"] == "UNAVAILABLE" and answer.headers["retry-after"]
    assert api.anonymous().get("/healthz").status_code == 200
    ready = api.anonymous().get("/readyz")
    assert "The database does not answer." in error_of(ready, 503)["message"]
    assert "The broker does not answer." in ready.json()["error"]["message"]


def test_every_problem_of_the_core_is_kept() -> None:
    said = as_app_error(ConfigError([{"field": "a", "message": "A is wrong.", "hint": "Use b."},
                                     {"field": "c", "message": "C is wrong.", "hint": None}]))
    assert isinstance(said, Invalid) and said.status == 422 and len(said.problems) == 2
    assert json.dumps(said.as_dict())
    one = NotFound("There is no run x.", hint="Look at the list.").as_dict()
    assert one == {"message": "There is no run x.", "code": "NOT_FOUND", "hint": "Look at the list."}
    assert str(DiskFull("Full.", hint="Free some.")) == "Full. Free some."


def test_what_was_deleted_while_its_lock_was_waited_for_is_not_there(api: Api) -> None:
    with pytest.raises(InvalidRequestError) as caught, transaction() as session:
        user = session.get(User, LOCAL_ADMIN_ID)
        session.execute(delete(User).where(User.id == LOCAL_ADMIN_ID), execution_options={"synchronize_session": False})
        session.refresh(user, with_for_update=True)
    assert as_app_error(caught.value).status == 404


def test_what_was_deleted_before_it_could_be_changed_is_a_conflict(api: Api) -> None:
    with pytest.raises(StaleDataError) as caught, transaction() as session:
        user = session.get(User, LOCAL_ADMIN_ID)
        session.execute(delete(User).where(User.id == LOCAL_ADMIN_ID), execution_options={"synchronize_session": False})
        user.name = "somebody"
    assert as_app_error(caught.value).status == 409
