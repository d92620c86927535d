"""``/api/v1/tools``: what is on offer and what calls give back."""

from __future__ import annotations

import pytest

from tests.app.conftest import Api


def run(api: Api, name: str, arguments: object, status: int = 200) -> dict:
    answer = api.post("/tools/run", {"name": name, "arguments": arguments})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_tools_are_listed_and_called(api: Api) -> None:
    offered = api.get("/tools").json()["items"]
    assert {"calculate_math", "calc", "clock"} <= {tool["function"]["name"] for tool in offered}
    assert all(set(tool) == {"type", "function"} for tool in offered), "as OpenAI defines them: nothing to take out"
    assert run(api, "calc", {"term": "57 - 44"}) == {"name": "calc", "content": "13", "is_error": False}
    assert run(api, "calculate_math", '{"expression": "6 / 4"}')["content"] == '{"result": "1.5"}'
    assert api.post("/tools/run", {"name": "random_number"}).json()["is_error"] is False


def test_what_went_wrong_is_for_the_model_to_read(api: Api) -> None:
    for name, arguments in [("rm", {}), ("calc", "{"), ("calc", {"term": "import os"}), ("calc", {}), ("calc", "[]")]:
        answer = run(api, name, arguments)
        assert answer["is_error"] and answer["content"].startswith('{"error": "'), answer


@pytest.mark.parametrize("body", [
    {}, {"name": 1}, {"name": "x" * 201}, {"name": "calc", "arguments": [1]}, {"name": "calc",
    "arguments": "x" * 10_001},
    {"name": "calc", "arguments": {}, "shell": "id"}, [], "calc",
])
def test_what_is_no_call_is_refused(api: Api, body: object) -> None:
    assert api.post("/tools/run", body).status_code == 422
    error = api.post("/tools/run", body).json()["error"]
    assert error["message"]


def test_much_or_deep_arguments_are_answered_and_bounded(api: Api) -> None:
    assert "more than" in run(api, "text_length", {"text": "x" * 50_000})["content"]
    deep: dict = {}
    for _ in range(100):
        deep = {"a": deep}
    assert run(api, "calc", deep)["is_error"]


def test_a_login_is_needed_and_a_viewer_may_call(api: Api) -> None:
    assert api.anonymous().get("/api/v1/tools").status_code == 401
    assert api.anonymous().post("/api/v1/tools/run", json={"name": "calc"}).status_code == 401
    viewer = api.as_role("vera", "viewer")
    assert viewer.get("/api/v1/tools").status_code == 200
    called = viewer.post("/api/v1/tools/run", json={"name": "calc", "arguments": {"term": "1 + 1"}})
    assert called.json()["content"] == "2"
