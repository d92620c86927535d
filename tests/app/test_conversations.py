"""Conversations by REST: kept whole, found again, one user's own, safe against two tabs."""

from __future__ import annotations

import json
import time

import pytest

from app.chat import messages
from app.core.db import reading, transaction
from app.core.models import Conversation, User
from tests.app.conftest import Api
from tests.app.test_runs import problems

HI = {"role": "user", "content": "Hello there\nsecond line"}
ANSWER = {"role": "assistant", "content": "Good day.", "finish_reason": "stop", "checkpoint_id": "abc",
          "usage": {"prompt_tokens": 7, "completion_tokens": 3}, "created_at": "2026-01-31T12:00:00.250Z"}
EMPTY = dict.fromkeys(("reasoning", "tool_calls", "tool_call_id", "name", "is_error", "finish_reason", "checkpoint_id",
                       "adapter_checkpoint_id", "usage", "speed", "created_at"))


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
    ids = ["m000000", "m000001", "m000002"]
    assert made["messages"] == [EMPTY | {"id": id, "parent_id": parent} | m
                                for id, parent, m in zip(ids, [None, *ids], said, strict=False)], "read as a chain"
    assert (made["head"], made["mode"]) == (ids[-1], None)
    assert {k: v for k, v in made["sampling"].items() if v is not None} == {
        "temperature": 0.5, "top_p": 1, "top_k": 0, "max_tokens": 64, "seed": -3}
    assert (made["system"], made["checkpoint_id"], made["version"], made["message_count"]) == (
        "Be kind.\n", "abc", 1, 3)
    assert made["created_at"] == made["updated_at"] and made["created_at"].endswith("Z")
    assert api.get(f"/conversations/{made['id']}").json() == made
    assert api.get("/conversations").json() == {"next_cursor": None, "items": [
        {k: made[k] for k in ("id", "title", "checkpoint_id", "adapter_checkpoint_id", "mode", "message_count",
                              "version", "created_at", "updated_at")} | {"excerpt": None}]}
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


def test_what_was_saved_already_is_no_conflict(api: Api) -> None:
    """A page that is left saves again what may be on its way: with both there, the second finds what it would make."""
    id = new(api, messages=[HI])["id"]
    save = {"version": 1, "messages": [HI, ANSWER], "sampling": {"temperature": 0.5}, "system": "x", "title": "Talk",
            "head": None, "mode": "chat"}
    made = patch(api, id, **save).json()
    assert made["version"] == 2
    again = patch(api, id, **save)
    assert again.status_code == 200 and again.json() == made
    for other in ({"system": "y"}, {"messages": [HI]}, {"sampling": {}}, {"title": "Another"}, {"head": "not-there-1"}):
        assert patch(api, id, **{**save, **other}).status_code == 409, other
    assert api.get(f"/conversations/{id}").json() == made


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
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "x", "reasoning": "y"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "x", "id": "short"}]}, "messages.0.id"),
    ({"messages": [{"role": "user", "content": "x", "parent_id": "aaaaaa"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "id": "aaaaaa", "parent_id": "aaaaaa"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "id": "aaaaaa"}] * 2}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "id": "aaaaaa"}, {"role": "user", "content": "y"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "id": "aaaaaa", "parent_id": "bbbbbb"},
                   {"role": "user", "content": "y", "id": "bbbbbb"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "id": "aaaaaa"}], "head": "bbbbbb"}, "head"),
    ({"head": "bbbbbb"}, "head"), ({"mode": "sing"}, "mode"), ({"sampling": {"stop": [""]}}, "sampling.stop.0"),
    ({"sampling": {"min_p": 2}}, "sampling.min_p"), ({"sampling": {"repetition_penalty": 0}},
                                                     "sampling.repetition_penalty"),
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
    made = new(api, messages=[message] * messages.MAX_MESSAGES)
    assert made["message_count"] == 1000 and len(json.dumps(made["messages"])) > 1_900_000
    assert api.get(f"/conversations/{made['id']}").json() == made


def test_an_adapter_is_chosen_kept_and_taken_away(api: Api) -> None:
    answer = ANSWER | {"adapter_checkpoint_id": "def"}
    made = new(api, checkpoint_id="abc", adapter_checkpoint_id="def", messages=[HI, answer])
    assert made["adapter_checkpoint_id"] == made["messages"][1]["adapter_checkpoint_id"] == "def"
    assert patch(api, made["id"], title="Mine").json()["adapter_checkpoint_id"] == "def", "what is not said stays"
    assert patch(api, made["id"], adapter_checkpoint_id=None).json()["adapter_checkpoint_id"] is None
    assert patch(api, made["id"], adapter_checkpoint_id="no id!").status_code == 422


def node(id: str, parent: str | None, role: str, content: str, **more: object) -> dict:
    return {"id": id, "parent_id": parent, "role": role, "content": content, **more}


TREE = [node("aaaaaa", None, "user", "One?"), node("bbbbbb", "aaaaaa", "assistant", "1"),
        node("cccccc", "aaaaaa", "assistant", "", reasoning="hm", finish_reason="tool_calls",
             tool_calls=[{"id": "call_1", "name": "calc", "arguments": "{}"}],
             speed={"tokens_per_s": 9.5, "first_token_s": 0.1}),
        node("dddddd", "cccccc", "tool", "2", tool_call_id="call_1", name="calc", is_error=False)]


def test_branches_are_kept(api: Api) -> None:
    made = new(api, messages=TREE, head="bbbbbb", mode="text")
    assert (made["head"], made["mode"], made["message_count"]) == ("bbbbbb", "text", 4)
    assert [{k: v for k, v in m.items() if v is not None} for m in made["messages"]] == [
        {k: v for k, v in m.items() if v is not None} for m in TREE]
    turned = patch(api, made["id"], head="dddddd").json()
    assert (turned["head"], turned["version"]) == ("dddddd", 2) and turned["messages"] == made["messages"]
    assert patch(api, made["id"], head="zzzzzz").status_code == 422
    assert patch(api, made["id"], messages=TREE[:2]).json()["head"] == "bbbbbb", "else the last one is shown"
    assert patch(api, made["id"], messages=[]).json()["head"] is None
    assert patch(api, made["id"], mode=None).json()["mode"] is None


def found(client, q: str) -> list[tuple[str, str | None]]:
    items = client.get("/api/v1/conversations", params={"q": q}).json()["items"]
    return [(c["title"], c["excerpt"]) for c in items]


def test_what_was_said_is_found(api: Api) -> None:
    new(api, title="Straße", messages=[HI, ANSWER])
    new(api, title="中文", messages=[{"role": "user", "content": "x" * 500 + " 今天天气很好 100%_sure"}])
    assert found(api.http, "STRASSE") == [("Straße", None)]
    assert found(api.http, "good day") == [("Straße", "Good day.")]
    assert found(api.http, "good night") == []
    assert found(api.http, "天气")[0][0] == "中文" and "天天气很" in found(api.http, "天气")[0][1]
    assert [t for t, _ in found(api.http, "0%_s")] == ["中文"] and found(api.http, "0_%s") == []
    assert len(found(api.http, "  ")) == 2
    assert found(api.as_role("vera", "viewer"), "good") == []
    with transaction() as session:
        session.query(Conversation).update({"search_text": ""})
    assert [t for t, _ in found(api.http, "天气")] == ["中文"], "one from before there was a search"
    id = api.get("/conversations", q="天气").json()["items"][0]["id"]
    patch(api, id, title="Renamed")
    assert [t for t, _ in found(api.http, "renamed")] == ["Renamed"]


def test_presets_are_their_users_own(api: Api) -> None:
    made = api.post("/chat/presets", {"name": "Poet", "system": "Rhyme.", "sampling": {"temperature": 1.5}})
    assert made.status_code == 201 and made.json()["sampling"]["temperature"] == 1.5
    id = made.json()["id"]
    taken = api.post("/chat/presets", {"name": "Poet"})
    assert taken.status_code == 409 and taken.json()["error"]["field"] == "name"
    viewer = api.as_role("vera", "viewer")
    hers = viewer.post("/api/v1/chat/presets", json={"name": "Poet"})
    assert hers.status_code == 201
    path = f"/api/v1/chat/presets/{id}"
    assert viewer.patch(path, json={"name": "x"}).status_code == viewer.delete(path).status_code == 404
    assert [p["id"] for p in viewer.get("/api/v1/chat/presets").json()["items"]] == [hers.json()["id"]]
    changed = api.http.patch(path, json={"name": "Bard", "sampling": {"seed": 1}}).json()
    assert (changed["name"], changed["system"], changed["sampling"]["seed"]) == ("Bard", "Rhyme.", 1)
    assert api.http.delete(path).status_code == 204
    assert api.get("/chat/presets").json()["items"] == []
