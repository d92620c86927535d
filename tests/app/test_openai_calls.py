"""What becomes of a request to ``/v1`` however it ends: the log, the limits, and who leaves."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from app.core.db import reading, transaction
from app.core.inference import Reply
from app.core.models import RequestLog
from app.core.settings import get_settings
from app.openai import request_log
from app.openai.limits import Limits
from tests.app.conftest import Api, Server
from tests.app.openai_rig import HELLO, MODEL, V1, failed, said, scripted_v1
from tests.inference_rig import Broker, wait_for


@pytest.fixture
def v1(api: Api, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[V1]:
    monkeypatch.setattr("app.core.settings.Settings.broker_url", broker.url)
    api.app.state.api_limits = None
    yield from scripted_v1(api, broker, monkeypatch)


def told(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"STUDIO_{name.upper()}", str(value))
    get_settings.cache_clear()


def logged(api: Api, number: int = 1) -> list[dict[str, Any]]:
    """The newest ``number`` requests, as soon as there are so many."""
    def rows() -> list[dict[str, Any]]:
        items = api.get("/requests").json()["items"]
        return items[:number] if len(items) >= number else []

    return wait_for(rows, "the log", 10)


# -- the log --------------------------------------------------------------------------------------------------------


def test_a_request_is_written_down_without_what_was_said(v1: V1) -> None:
    v1.process.script = lambda request: said("A secret", " answer", finish="length")
    v1.api.http.headers["User-Agent"] = "tester/1.0\x07"
    v1.chat()
    v1.stream()
    v1.text(n=2)
    rows = logged(v1.api, 3)
    assert [r["route"] for r in rows] == ["/v1/completions", "/v1/chat/completions", "/v1/chat/completions"]
    for row, tokens in zip(rows, (4, 2, 2)):
        assert (row["status"], row["finish_reason"], row["error"]) == (200, "length", None)
        assert (row["prompt_tokens"], row["cached_tokens"], row["completion_tokens"]) == (7, 2, tokens)
        assert (row["model"], row["client"], row["content"]) == (MODEL, "tester/1.0?", None)
        assert 0 < row["first_token_s"] <= row["total_s"] < 10
    assert "secret" not in v1.api.http.get("/requests").text


def test_refusals_and_failures_are_written_down(v1: V1) -> None:
    v1.post("/chat/completions", {"model": "nothing\n", "messages": HELLO})
    v1.post("/chat/completions", {"messages": HELLO, "n": 99})
    v1.api.http.post("/v1/completions", content=b"{")
    v1.process.script = lambda request: [*said("One")[:2], failed("internal")]
    v1.post("/chat/completions", {"messages": HELLO, "stream": True})
    assert {(r["status"], r["error"], r["model"]) for r in logged(v1.api, 4)} == {
        (404, "model_not_found", "nothing?"), (400, "invalid_value", MODEL), (400, "bad_request", ""),
        (200, "internal", MODEL)}


def test_content_is_kept_where_the_server_was_told_to(v1: V1, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, log_request_content="true")
    v1.process.script = lambda request: said("An answer\0")
    v1.chat(messages=[*HELLO, {"role": "user", "content": "x" * 50_000}])
    content = logged(v1.api)[0]["content"]
    assert content["messages"][0] == HELLO[0] and len(content["messages"][1]["content"]) == request_log.MAX_TEXT
    assert content["answers"] == ["An answer␀"]


def test_a_log_that_cannot_be_written_harms_nobody(v1: V1, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise OperationalError("x", {}, Exception("away"))

    monkeypatch.setattr(request_log, "transaction", away)
    assert v1.chat()["choices"] and v1.chat()["choices"]


def test_old_requests_are_forgotten(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "KEPT", 5)

    def entry(age_s: float) -> RequestLog:
        return request_log.Entry("me", "/v1/x", "c", created_at=time.time() - age_s).row()

    with transaction() as session:
        session.add_all([entry(age) for age in (10, 20, 30, 40, 50, 60, 70)])
        session.flush()
        request_log.prune(session)
        ages = [round(time.time() - at, -1) for at in session.scalars(select(RequestLog.created_at))]
        assert sorted(ages) == [10, 20, 30, 40, 50]
        session.add_all([entry(31 * 86_400)])
        session.flush()
        request_log.prune(session)
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(RequestLog)) == 5


def test_others_do_not_see_your_requests(v1: V1) -> None:
    anna = v1.api.as_role("anna", "member")
    v1.post("/chat/completions", {"messages": HELLO})
    v1.post("/chat/completions", {"messages": HELLO}, Authorization=anna.headers["Authorization"])
    rows = logged(v1.api, 2)
    assert rows[0]["user_id"] != rows[1]["user_id"], "an admin sees all"
    own = anna.get("/api/v1/requests").json()["items"]
    assert [r["id"] for r in own] == [r["id"] for r in rows if r["user_id"] == own[0]["user_id"]] and len(own) == 1
    assert "anna" in v1.api.http.get("/requests").text and "local admin" not in anna.get("/requests").text


def test_pages_of_the_log(v1: V1) -> None:
    with transaction() as session:
        session.add_all([request_log.Entry("me", "/v1/x", f"<b>{at}", created_at=1e9 + at).row() for at in range(150)])
    page = v1.api.http.get("/requests").text
    assert page.count("&lt;b&gt;") == 100 and "<b>1" not in page
    first = v1.api.get("/requests", limit=100).json()
    assert first["next_cursor"] in page
    older = v1.api.http.get("/requests", params={"cursor": first["next_cursor"]}).text
    assert older.count("&lt;b&gt;") == 50 and "Show older" not in older
    assert "Nothing has been asked yet" in v1.api.as_role("eve", "viewer").get("/requests").text


# -- limits ---------------------------------------------------------------------------------------------------------


def test_requests_per_minute(v1: V1, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "x-ratelimit-limit-requests" not in v1.post("/chat/completions", {"messages": HELLO}).headers
    told(monkeypatch, api_requests_per_minute=2)
    for left, body in ((1, {"messages": HELLO}), (0, {"messages": HELLO, "stream": True})):
        headers = v1.post("/chat/completions", body).headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", str(left))
    refused = v1.post("/chat/completions", {"messages": HELLO})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error" and 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert float(refused.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    anna = v1.api.as_role("anna", "member")
    hers = v1.post("/chat/completions", {"messages": HELLO}, Authorization=anna.headers["Authorization"])
    assert hers.status_code == 200, "each user for itself"


def test_the_window_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("app.openai.limits.time.monotonic", lambda: now[0])
    limits = Limits()
    for at in (100.0, 130.0):
        now[0] = at
        limits.count("me", 2)
    now[0] = 159.0
    with pytest.raises(Exception, match="Try again in 1 s") as raised:
        limits.count("me", 2)
    assert raised.value.headers["Retry-After"] == "1"
    now[0] = 160.0
    assert limits.count("me", 2)["x-ratelimit-remaining-requests"] == "0"


def test_answers_at_a_time(v1: V1, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, api_concurrency=3)
    refused = v1.post("/completions", {"prompt": ["a", "b"], "n": 2})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "2" and not v1.process.asked
    for _ in range(3):  # places are given back, however a request ends
        v1.text(prompt="a", n=3)
        v1.stream(n=3)
        v1.post("/completions", {"prompt": "", "n": 3})
    v1.process.script = lambda request: [failed("request")]
    assert v1.post("/chat/completions", {"messages": HELLO, "n": 3}).status_code == 400
    assert not v1.api.app.state.api_limits.running


# -- many, and those who leave --------------------------------------------------------------------------------------


def ask(server: Server, client: httpx2.AsyncClient, **body: Any) -> Any:
    return client.stream("POST", f"{server.url}/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **body},
                         headers={"Authorization": f"Bearer {server.token}"})


def test_leaving_ends_the_generation_at_once(v1: V1, server: Server) -> None:
    server.app.state.api_limits = None
    v1.process.pace_s = 0.01
    v1.process.script = lambda request: said(*["x "] * 10_000)

    async def leave(after: int, **body: Any) -> float:
        async with httpx2.AsyncClient(timeout=10) as client:
            async with ask(server, client, stream=True, **body) as answer:
                seen = 0
                async for line in answer.aiter_lines():
                    seen += line.startswith("data:")
                    if seen > after:
                        break
            return time.monotonic()

    for _ in range(5):
        left_at = asyncio.run(leave(5, n=2))
        ids = [r.id for r in v1.process.asked[-2:]]
        wait_for(lambda ids=ids: set(ids) <= set(v1.process.left), "the slots", 5)
        assert max(v1.process.left[id] for id in ids) - left_at < 0.2
    rows = logged(v1.api, 5)
    assert {r["status"] for r in rows} == {499} and not server.app.state.api_limits.running


def test_a_plain_answer_that_nobody_waits_for_ends_too(v1: V1, server: Server) -> None:
    v1.process.pace_s = 0.01
    v1.process.script = lambda request: said(*["x "] * 10_000)

    async def leave() -> float:
        async with httpx2.AsyncClient(timeout=0.5) as client:
            with pytest.raises(httpx2.TimeoutException):
                async with ask(server, client):
                    pass
            return time.monotonic()

    left_at = asyncio.run(leave())
    wait_for(lambda: v1.process.left, "the slot", 5)
    assert next(iter(v1.process.left.values())) - left_at < 0.2
    assert logged(v1.api)[0]["status"] == 499


@pytest.mark.slow  # a busy machine lets some of them wait for more than they would
def test_a_hundred_streams(v1: V1, server: Server) -> None:
    """All of them whole, and none starves: the longest gap of each is within ten of the median."""
    server.app.state.api_limits = None
    steps, pace_s = 40, 0.03
    v1.process.pace_s = pace_s
    v1.process.script = lambda request: said(*[f"{at} " for at in range(steps)])

    async def one(client: httpx2.AsyncClient) -> tuple[str, list[float]]:
        text, times = "", []
        async with ask(server, client, stream=True) as answer:
            async for line in answer.aiter_lines():
                if '"content":"' in line and '"role"' not in line:
                    text += line.split('"content":"')[1].split('"')[0]
                    times.append(time.monotonic())
        return text, times

    async def all_of_them() -> list[tuple[str, list[float]]]:
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(one(client) for _ in range(100)))

    answers = asyncio.run(all_of_them())
    assert {text for text, _ in answers} == {"".join(f"{at} " for at in range(steps))}
    gaps = [b - a for _, times in answers for a, b in zip(times, times[1:])]
    assert max(gaps) < 10 * max(statistics.median(gaps), pace_s)
    connections = server.app.state.inference._broker.connection_pool
    assert len(connections._available_connections) < 150


def test_a_broker_that_goes_away_is_a_503(v1: V1, broker: Broker) -> None:
    v1.process.script = lambda request: [Reply(type="started", prompt_tokens=1)]
    v1.process.stop()
    broker.kill()
    try:
        answer = v1.post("/chat/completions", {"messages": HELLO})
    finally:
        broker.start()
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
