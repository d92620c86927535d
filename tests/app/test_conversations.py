"""Conversations by REST: kept whole, found again, one user's own, safe against two tabs."""

from __future__ import annotations

import json
import time

import pytest

from app.chat import schemas
from app.core.db import reading, transaction
from app.core.models import Conversation, User
from tests.app.conftest import Api
from tests.app.test_runs import problems

HI = {"role": "user", "content": "Hello there\nsecond line"}
ANSWER = {"role": "assistant", "content": "Good day.", "finish_reason": "stop", "checkpoint_id": "abc",
          "usage": {"prompt_tokens": 7, "completion_tokens": 3}, "created_at": "2026-01-31T12:00:00.250Z"}
EMPTY = {"finish_reason": None, "checkpoint_id": None, "adapter_checkpoint_id": None, "usage": None,
         "created_at": None}


def new(api: Api, **body: object) -> dict:
    answer = api.post("/conversations", body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def patch(api: Api, id: str, **body: object):
    return api.http.patch(f"/api/v1/conversations/{id}", json=body)


def test_a_conversation_is_kept_as_it_was_said(api: Api) -> None:
    said = [HI, ANSWER, {"role": "user", "content": "\t🦊 ünï\r\n\x1b[31m \u2028 <b>"}]
    made = new(api, checkpoint_id="abc", system="Be kind.\n", messages=said,
               sampling={"temperature": 0.5, "top_p": 1, "top_k": 0, "max_tokens": 64, "seed": -3})
    assert made["messages"] == [EMPTY | m for m in said]
    assert made["sampling"] == {"temperature": 0.5, "top_p": 1, "top_k": 0, "max_tokens": 64, "seed": -3}
    assert (made["system"], made["checkpoint_id"], made["version"], made["message_count"]) == (
        "Be kind.\n", "abc", 1, 3)
    assert made["created_at"] == made["updated_at"] and made["created_at"].endswith("Z")
    assert api.get(f"/conversations/{made['id']}").json() == made
    assert api.get("/conversations").json() == {"next_cursor": None, "items": [
        {k: made[k] for k in ("id", "title", "checkpoint_id", "adapter_checkpoint_id", "message_count", "version",
                              "created_at", "updated_at")}]}
    nothing = new(api)
    assert (nothing["title"], nothing["messages"], nothing["system"], nothing["checkpoint_id"]) == ("", [], "", None)
    assert set(nothing["sampling"].values()) == {None}


def test_a_title_is_taken_from_the_first_user_message(api: Api) -> None:
    assert new(api, messages=[HI])["title"] == "Hello there"
    assert new(api, messages=[HI], title="My own")["title"] == "My own"
    assert new(api, messages=[{"role": "user", "content": f"\n  \n a\x07 \t{'b' * 200}"}])["title"] == "a " + "b" * 78
    later = new(api, messages=[{"role": "assistant", "content": "I begin."}, {"role": "user", "content": " \n"}])
    assert later["title"] == ""
    assert patch(api, later["id"], messages=[HI, ANSWER]).json()["title"] == "Hello there"
    assert patch(api, later["id"], messages=[{"role": "user", "content": "Other"}]).json()["title"] == "Hello there"
    assert patch(api, later["id"], title=None).json()["title"] == "Other"
    assert patch(api, later["id"], title="Named").json()["title"] == "Named"


def test_two_tabs_do_not_overwrite_each_other(api: Api) -> None:
    made = new(api, messages=[HI], checkpoint_id="abc", system="x")
    first = patch(api, made["id"], version=1, messages=[HI, ANSWER])
    assert first.status_code == 200
    changed = first.json()
    assert (changed["version"], changed["message_count"]) == (2, 2)
    assert changed["updated_at"] >= made["updated_at"] and changed["created_at"] == made["created_at"]
    second = patch(api, made["id"], version=1, messages=[HI])
    assert second.status_code == 409
    error = second.json()["error"]
    assert error["problems"][0]["version"] == 2 and error["field"] == "version" and "2" in error["hint"]
    assert api.get(f"/conversations/{made['id']}").json() == changed
    assert patch(api, made["id"], version=2).json() == changed, "nothing was to change"
    again = patch(api, made["id"], checkpoint_id=None, sampling={"temperature": 1}, system="").json()
    assert (again["version"], again["checkpoint_id"], again["system"], again["sampling"]["temperature"]) == (
        3, None, "", 1)
    assert again["messages"] == changed["messages"]
    assert patch(api, made["id"], system=None, sampling=None, messages=None).json() == again


def test_lists_are_paged_by_the_last_change(api: Api) -> None:
    ids = []
    for i in range(5):
        ids.append(new(api, title=f"talk {i}")["id"])
        time.sleep(0.005)  # SQLite's clock has milliseconds
    patch(api, ids[1], title="touched")
    wanted = [ids[1], ids[4], ids[3], ids[2], ids[0]]
    first = api.get("/conversations", limit=2).json()
    second = api.get("/conversations", limit=2, cursor=first["next_cursor"]).json()
    third = api.get("/conversations", limit=2, cursor=second["next_cursor"]).json()
    assert [c["id"] for page in (first, second, third) for c in page["items"]] == wanted
    assert third["next_cursor"] is None
    assert api.get("/conversations", cursor="nonsense").status_code == 422
    assert api.http.delete(f"/api/v1/conversations/{ids[0]}").status_code == 204
    assert api.get(f"/conversations/{ids[0]}").status_code == 404
    assert api.http.delete(f"/api/v1/conversations/{ids[0]}").status_code == 404
    assert len(api.get("/conversations").json()["items"]) == 4


def test_nobody_sees_anothers(api: Api) -> None:
    mine = new(api, messages=[HI])
    viewer = api.as_role("vera", "viewer")
    hers = viewer.post("/api/v1/conversations", json={"messages": [HI]})
    assert hers.status_code == 201, "a viewer talks too"
    id = hers.json()["id"]
    assert viewer.patch(f"/api/v1/conversations/{id}", json={"title": "x"}).status_code == 200
    for client, other in ((viewer, mine["id"]), (api.http, id)):
        path = f"/api/v1/conversations/{other}"
        assert [client.get(path).status_code, client.patch(path, json={"title": "y"}).status_code,
                client.delete(path).status_code] == [404] * 3
        assert other not in [c["id"] for c in client.get("/api/v1/conversations").json()["items"]]
    assert viewer.delete(f"/api/v1/conversations/{id}").status_code == 204
    assert viewer.post("/api/v1/conversationsx", json={}).status_code == 403
    assert viewer.post("/api/v1/conversations/../runs", json={}).status_code in (403, 404)
    assert api.anonymous().get("/api/v1/conversations").status_code == 401


def test_they_go_with_their_user_and_stay_without_their_checkpoint(api: Api) -> None:
    viewer = api.as_role("vera", "viewer")
    viewer.post("/api/v1/conversations", json={"checkpoint_id": "gone-long-ago"})
    new(api)
    with transaction() as session:
        session.delete(session.query(User).filter_by(name="vera").one())
    with reading() as session:
        assert [c.user_id for c in session.query(Conversation)] == ["local"]


def test_the_same_post_twice_is_one_conversation(api: Api) -> None:
    first = api.post("/conversations", {"messages": [HI]}, **{"Idempotency-Key": "k"})
    again = api.post("/conversations", {"messages": [HI]}, **{"Idempotency-Key": "k"})
    assert first.json() == again.json() and len(api.get("/conversations").json()["items"]) == 1


@pytest.mark.parametrize("body, field", [
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x", "finish_reason": "tired"}]}, "messages.0.finish_reason"),
    ({"messages": [{"role": "user", "content": "x", "checkpoint_id": "../x"}]}, "messages.0.checkpoint_id"),
    ({"messages": [{"role": "user", "content": "x", "usage": {"prompt_tokens": 1}}]},
     "messages.0.usage.completion_tokens"),
    ({"messages": [{"role": "user", "content": "x", "created_at": "yesterday"}]}, "messages.0.created_at"),
    ({"messages": [{"role": "user", "content": "x", "created_at": "2026-01-31T12:00:00"}]}, "messages.0.created_at"),
    ({"messages": [{"role": "user", "content": "x", "created_at": "0001-01-01T00:00:00+23:00"}]},
     "messages.0.created_at"),
    ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages.0.colour"),
    ({"messages": [{"role": "user", "content": "x"}] * 1001}, "messages"),
    ({"messages": [{"role": "user", "content": "ü" * 60_000}] * 20}, "messages"),
    ({"messages": {}}, "messages"), ({"title": ""}, "title"), ({"title": "a\nb"}, "title"),
    ({"title": "x" * 201}, "title"), ({"system": "\0"}, "system"), ({"checkpoint_id": "x" * 33}, "checkpoint_id"),
    ({"sampling": {"temperature": 2.1}}, "sampling.temperature"), ({"sampling": {"top_p": -0.1}}, "sampling.top_p"),
    ({"sampling": {"top_k": -1}}, "sampling.top_k"), ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens"),
    ({"sampling": {"seed": 2**70}}, "sampling.seed"), ({"sampling": {"mood": 1}}, "sampling.mood"),
    ({"version": 0}, "version"), ({"colour": 1}, "colour"),
])
def test_what_cannot_be_kept(api: Api, body: dict, field: str) -> None:
    made = new(api)
    assert field in problems(patch(api, made["id"], **body))
    assert field in problems(api.post("/conversations", body))
    assert api.get(f"/conversations/{made['id']}").json() == made


def test_half_a_surrogate_pair_is_refused_with_a_sentence(api: Api) -> None:
    for body in (rb'{"messages": [{"role": "user", "content": "a\ud800"}]}', rb'{"system": "\udfff"}'):
        answer = api.http.post("/api/v1/conversations", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422 and "surrogate" in answer.json()["error"]["message"]
    assert api.get("/conversations").json()["items"] == []


def test_as_much_as_fits_is_kept(api: Api) -> None:
    message = {"role": "user", "content": "x" * 1900}
    made = new(api, messages=[message] * schemas.MAX_MESSAGES)
    assert made["message_count"] == 1000 and len(json.dumps(made["messages"])) > 1_900_000
    assert api.get(f"/conversations/{made['id']}").json() == made


def test_an_adapter_is_chosen_kept_and_taken_away(api: Api) -> None:
    answer = ANSWER | {"adapter_checkpoint_id": "def"}
    made = new(api, checkpoint_id="abc", adapter_checkpoint_id="def", messages=[HI, answer])
    assert made["adapter_checkpoint_id"] == made["messages"][1]["adapter_checkpoint_id"] == "def"
    assert patch(api, made["id"], title="Mine").json()["adapter_checkpoint_id"] == "def", "what is not said stays"
    assert patch(api, made["id"], adapter_checkpoint_id=None).json()["adapter_checkpoint_id"] is None
    assert patch(api, made["id"], adapter_checkpoint_id="no id!").status_code == 422
