"""``Idempotency-Key`` and lists: the same request twice has one effect, a list shows every row once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.core.db import transaction
from app.core.models import IdempotentAnswer, Run
from tests.app.conftest import Api
from tests.app.test_runs import TINY, new_run

BODY = {"stage": "pretrain", "config": TINY}


def keyed(api: Api, key: str, body: dict | None = None, path: str = "/runs"):
    return api.post(path, BODY if body is None else body, **{"Idempotency-Key": key})


def count(api: Api) -> int:
    return len(api.get("/runs").json()["items"])


def test_the_same_request_has_one_effect(api: Api) -> None:
    first, again = keyed(api, "k1"), keyed(api, "k1", {"config": TINY, "stage": "pretrain"})
    assert (first.status_code, again.status_code) == (201, 201) and first.json() == again.json()
    assert "idempotency-replayed" not in first.headers and again.headers["idempotency-replayed"] == "true"
    other = keyed(api, "k1", {**BODY, "name": "other"})
    assert other.status_code == 422 and other.json()["error"]["field"] == "Idempotency-Key"
    assert keyed(api, "k2").json()["id"] != first.json()["id"]
    assert count(api) == 2


def test_a_refused_request_may_be_corrected(api: Api) -> None:
    assert keyed(api, "k", {"stage": "pretrain", "config": {"max_steps": 0}}).status_code == 422
    assert keyed(api, "k").status_code == 201
    assert count(api) == 1


def test_a_key_belongs_to_a_user_and_an_address(api: Api) -> None:
    run = keyed(api, "k").json()
    member = api.as_role("mia", "member")
    theirs = member.post("/api/v1/runs", json=BODY, headers={"Idempotency-Key": "k"})
    assert theirs.status_code == 201 and theirs.json()["id"] != run["id"]
    assert keyed(api, "k", {}, f"/runs/{run['id']}/pause").json()["state"] == "paused"
    assert keyed(api, "k", {}, f"/runs/{run['id']}/resume").json()["state"] == "queued"
    assert keyed(api, "k", {}, f"/runs/{run['id']}/pause").json()["state"] == "paused", "the stored answer"
    assert api.get(f"/runs/{run['id']}").json()["state"] == "queued"


def test_a_key_lives_a_day(api: Api) -> None:
    first = keyed(api, "k").json()
    with transaction() as session:
        session.query(IdempotentAnswer).update({"created_at": IdempotentAnswer.created_at - 24 * 3600 - 1})
    assert keyed(api, "k").json()["id"] != first["id"]


@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb"])
def test_keys_that_are_none(api: Api, key: str) -> None:
    assert keyed(api, key).status_code == 422


def test_duplicates_at_the_same_time_have_one_effect(api: Api) -> None:
    together = threading.Barrier(8)

    def send(_: int):
        together.wait()
        return keyed(api, "race")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(8)))
    assert {a.status_code for a in answers} == {201}, [a.text for a in answers]
    assert len({a.json()["id"] for a in answers}) == 1 and count(api) == 1


def test_pages_show_every_row_once(api: Api) -> None:
    made = [new_run(api)["id"] for _ in range(7)]
    with transaction() as session:  # equal times: the id decides
        session.query(Run).filter(Run.id.in_(made[2:5])).update({"created_at": 1.5})
    seen, cursor = [], None
    while True:
        page = api.get("/runs", limit=2, **({"cursor": cursor} if cursor else {})).json()
        seen += [r["id"] for r in page["items"]]
        if len(seen) == 2:
            new_run(api)  # comes in front: pages behind do not move
        cursor = page["next_cursor"]
        if cursor is None:
            break
        assert len(page["items"]) == 2
    assert sorted(seen) == sorted(made) and len(seen) == len(set(seen))
    assert set(seen[-3:]) == set(made[2:5])


@pytest.mark.parametrize("cursor", ["x", "AAAA", "W10", "WzEsMl0", "e30", "WyJ4IiwieCJd", "%00", "W1tbW1tb"])
def test_cursors_that_are_none(api: Api, cursor: str) -> None:
    assert api.get("/runs", cursor=cursor).status_code == 422


@pytest.mark.parametrize("limit", [0, -1, 501, "x"])
def test_limits(api: Api, limit: object) -> None:
    assert api.get("/runs", limit=limit).status_code == 422
