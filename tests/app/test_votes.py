"""Votes by REST: kept with who answered, one user's own, counted, and turned into pairs that DPO learns from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.chat import votes
from app.core.db import transaction
from app.core.models import Checkpoint
from minimind.data.layouts import iter_rows, scan
from tests.app.conftest import Api
from tests.app.test_chat_pages import add_checkpoint
from tests.app.test_datasets import left_behind, work_off
from tests.app.test_pages import HOSTILE
from tests.app.test_runs import new_run


def answer(text: str, checkpoint: str = "ckpta", **more: Any) -> dict:
    return {"checkpoint_id": checkpoint, "messages": [{"role": "assistant", "content": text}], **more}


def body(verdict: str = "a", first: str = "Yes.", second: str = "No.", **more: Any) -> dict:
    return {"messages": [{"role": "user", "content": "Is it raining?"}], "verdict": verdict, "is_blind": True,
            "answers": [answer(first), answer(second, "ckptb")], **more}


def vote(api: Api, *arguments: str, **more: Any) -> dict:
    made = api.post("/votes", body(*arguments, **more))
    assert made.status_code == 201, made.text
    return made.json()


def test_a_vote_is_kept_with_who_answered(api: Api) -> None:
    run = new_run(api, name="Tuned")
    checkpoint = add_checkpoint(run, step=20)
    made = vote(api, answers=[answer("Yes.", checkpoint, sampling={"temperature": 0.5, "seed": 3}),
                              answer("No.", "gone", adapter_checkpoint_id=checkpoint)])
    first, second = made["answers"]
    assert (first["name"], first["model"], first["sampling"]["seed"]) == ("Tuned, step 20", checkpoint, 3)
    assert (second["name"], second["model"]) == (None, f"gone+{checkpoint}"), "it may be gone by now"
    assert api.get(f"/votes/{made['id']}").json() == made
    with transaction() as session:
        session.delete(session.get(Checkpoint, checkpoint))
    assert api.get(f"/votes/{made['id']}").json()["answers"][0]["name"] == "Tuned, step 20"


def test_lists_have_pages_and_a_filter(api: Api) -> None:
    made = [vote(api, verdict)["id"] for verdict in ("a", "b", "tie", "bad", "a")]
    page = api.get("/votes", limit=2).json()
    assert [v["id"] for v in page["items"]] == made[:2:-1]
    rest = api.get("/votes", cursor=page["next_cursor"]).json()
    assert [v["id"] for v in rest["items"]] == made[2::-1] and rest["next_cursor"] is None
    assert [v["id"] for v in api.get("/votes", verdict="a").json()["items"]] == [made[4], made[0]]
    assert api.get("/votes", verdict="c").status_code == 422
    assert api.http.delete(f"/api/v1/votes/{made[0]}").status_code == 204
    assert api.get(f"/votes/{made[0]}").status_code == 404
    assert api.http.delete(f"/api/v1/votes/{made[0]}").status_code == 404


def test_nobody_sees_what_another_voted(api: Api) -> None:
    made = vote(api)
    for role in ("admin", "viewer"):
        other = api.as_role(f"some {role}", role)
        assert other.get("/api/v1/votes").json()["items"] == []
        assert other.get(f"/api/v1/votes/{made['id']}").status_code == 404
        assert other.delete(f"/api/v1/votes/{made['id']}").status_code == 404
        assert other.get("/api/v1/votes/standings").json()["votes"] == 0
        assert other.get("/api/v1/votes/pairs").text == ""
        assert other.post("/api/v1/votes", json=body()).status_code == 201, "everybody may keep his own"
    assert api.get("/votes/standings").json()["votes"] == 1
    assert api.anonymous().post("/api/v1/votes", json=body()).status_code == 401


@pytest.mark.parametrize("wrong, said", [
    ({"verdict": "c"}, "verdict"),
    ({"answers": [answer("Yes.")]}, "answers"),
    ({"answers": [answer("Yes."), answer("No.", "../x")]}, "checkpoint"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": " "}]}, "needs a text"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "ends with a message of the user"),
    ({"messages": [{"role": "user", "content": "\0"}]}, "zero byte"),
    ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "100000"),
    ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, "reasoning_content"),
    ({"answers": [answer("Yes.", sampling={"temperature": 3}), answer("No.")]}, "temperature"),
    ({"answers": [answer("Yes.") | {"messages": [{"role": "user", "content": "x"}]}, answer("No.")]}, "an answer is"),
    ({"messages": [{"role": "user", "content": "é" * 99_000}] * 6}, "1 MiB"),
    ({"is_blind": "yes"}, "is_blind"), ({"colour": 1}, "colour"),
])
def test_votes_that_cannot_be(api: Api, wrong: dict, said: str) -> None:
    refused = api.post("/votes", body() | wrong)
    assert refused.status_code == 422 and said in refused.text, refused.text
    assert api.get("/votes").json()["items"] == []


def test_in_later_turns_both_are_asked_the_same(api: Api) -> None:
    def longer(text: str, question: str = "And now?") -> dict:
        return answer("Well.") | {"messages": [{"role": "assistant", "content": "Well."},
                                               {"role": "user", "content": question},
                                               {"role": "assistant", "content": text}]}

    assert api.post("/votes", body(answers=[longer("Yes."), longer("No.", "And then?")])).status_code == 422
    assert api.post("/votes", body(answers=[longer("Yes."), answer("No.")])).status_code == 422
    assert api.post("/votes", body(answers=[longer("Yes."), longer("No.")])).status_code == 201


def test_who_wins(api: Api) -> None:
    run = new_run(api, name="Tuned")
    one, two = sorted([add_checkpoint(run, step=1), add_checkpoint(run, step=2)])
    for verdict, order in (("a", (one, two)), ("b", (two, one)), ("a", (one, two)), ("b", (one, two)),
                           ("tie", (two, one)), ("bad", (one, two)), ("a", (one, one)), ("tie", (two, two))):
        vote(api, answers=[answer("Yes.", order[0]), answer("No.", order[1])], verdict=verdict)
    seen = api.get("/votes/standings").json()
    assert (seen["votes"], seen["decided"], seen["of_one_model"], seen["base_checkpoint_id"]) == (8, 5, 2, one)
    [pair] = seen["items"]
    assert (pair["model_a"], pair["wins_a"], pair["wins_b"], pair["ties"], pair["bad"]) == (one, 3, 1, 1, 1)
    assert pair["share"] == 0.75 and pair["name_a"].startswith("Tuned, step")
    with transaction() as session:
        session.get(Checkpoint, one).state = "deleted"
    assert api.get("/votes/standings").json()["base_checkpoint_id"] == two


def test_wilsons_interval() -> None:
    """Against the table of Newcombe (1998), method 3: 81/263, 15/148, 0/20, 1/29."""
    for wins, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                   (1, 29, 0.0061, 0.1718)):
        assert votes.wilson(wins, count) == pytest.approx((low, high), abs=6e-5)
    assert votes.wilson(0, 0) == (None, None)


def test_pairs_for_dpo(api: Api, tmp_path: Any) -> None:
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Is it raining?"}]
    thought = [{"role": "assistant", "content": "No.", "reasoning_content": "The sky is blue."}]
    vote(api, "b", messages=prompt, answers=[answer("Yes."), answer("", "ckptb") | {"messages": thought}])
    vote(api, "a", "Same.", " Same.\n")
    vote(api, "a", " on", " off", answers=[answer(" on", mode="text"), answer(" off", mode="text")])
    vote(api, "a", "", "No.")
    vote(api, "tie")
    for text in HOSTILE:
        vote(api, "a", text, "Plain.\u2028")
    got = api.get("/votes/pairs")
    assert got.headers["content-type"] == "application/jsonl" and "votes.jsonl" in got.headers["content-disposition"]
    rows = [json.loads(line) for line in got.text.split("\n") if line]
    assert rows[0] == {"chosen": prompt + thought, "rejected": [*prompt, {"role": "assistant", "content": "Yes."}]}
    assert [row["chosen"][-1]["content"] for row in rows[1:]] == HOSTILE
    file = tmp_path / "votes.jsonl"
    file.write_text(got.text, encoding="utf-8")
    assert [row for _, row in iter_rows(file, "dpo")] == rows
    assert scan(file).layout == "dpo"

    made = api.post("/datasets", {"source": {"kind": "votes"}})
    assert made.status_code == 201, made.text
    dataset = made.json()
    assert dataset["layout"] == "dpo" and dataset["state"] == "importing"
    assert dataset["source"] == {"kind": "votes", "filename": "votes.jsonl", "pairs": len(rows),
                                 "left_out": {"equal": 1, "text": 1, "empty": 1}}
    assert dataset["name"].startswith("votes 2") and dataset["name"].endswith(f"{len(rows)} pairs")
    work_off()
    dataset = api.get(f"/datasets/{dataset['id']}").json()
    assert (dataset["state"], dataset["rows"], dataset["error"]) == ("ready", len(rows), None)
    shown = api.get(f"/datasets/{dataset['id']}/preview", limit=1).json()["items"]
    assert shown[0]["row"] == rows[0]
    assert not left_behind(api)
    page = api.browser().get(f"/datasets/{dataset['id']}", headers={"Accept": "text/html"}).text
    assert f"{len(rows)} preference pairs out of votes" in " ".join(page.split())


def test_without_usable_votes_there_is_no_dataset(api: Api) -> None:
    refused = api.post("/datasets", {"source": {"kind": "votes"}})
    assert refused.status_code == 422 and "not voted" in refused.json()["error"]["message"]
    vote(api, "a", "Same.", "Same.")
    vote(api, "tie")
    refused = api.post("/datasets", {"source": {"kind": "votes"}})
    error = refused.json()["error"]
    assert refused.status_code == 422 and error["field"] == "source" and "None of your 1 votes" in error["message"]
    assert api.get("/datasets").json()["items"] == [] and not left_behind(api)
    assert api.post("/datasets", {"source": {"kind": "votes", "user_id": "other"}}).status_code == 422
    viewer = api.as_role("viewer", "viewer")
    assert viewer.post("/api/v1/datasets", json={"source": {"kind": "votes"}}).status_code == 403


def test_the_same_request_twice_is_one_vote(api: Api) -> None:
    made = [api.post("/votes", body(), **{"Idempotency-Key": "k"}).json() for _ in range(2)]
    assert made[0] == made[1] and len(api.get("/votes").json()["items"]) == 1
