"""Datasets that a teacher writes, as the API takes them; and keys, which it takes and never gives back."""

from __future__ import annotations

import json
import sqlite3

import pytest

from app.core.db import reading, transaction
from app.core.models import Checkpoint, Dataset, Job, Run
from app.core.settings import get_settings
from tests.app.conftest import Api
from tests.app.test_runs import problems

KEY = "sk-a-secret-of-this-test-0123456789"
ENDPOINT = {"url": "http://127.0.0.1:11434/v1/", "model": "small"}


def create(api: Api, *, name: str | None = None, http: object = None, **source: object):
    body = {"source": {"kind": "teacher", **source}} | ({"name": name} if name else {})
    return (http or api.http).post("/api/v1/datasets", json=body)


def payload() -> dict:
    with reading() as session:
        return session.query(Job).one().payload


def questions(id: str = "asked", layout: str = "questions", state: str = "ready") -> str:
    with transaction() as session:
        session.add(Dataset(id=id, name="My questions", user_id="local", layout=layout, state=state, warnings=[],
                            source={"kind": "upload", "filename": "q"}, rows=3, path="/nowhere", created_at=1))
    return id


def test_an_endpoint_answers_the_starters_questions(api: Api) -> None:
    answer = create(api, endpoint=ENDPOINT, limit=20, system="Be brief.", temperature=0.5)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["state"], made["layout"], made["name"]) == (
        "importing", "conversations", "starter questions answered by small")
    assert made["source"] == {
        "kind": "teacher", "questions_dataset_id": None, "checkpoint_id": None, "seed": None, "limit": 20,
        "starter": {"minutes": 5, "languages": None, "seed": 42}, "system": "Be brief.", "keep_system": False,
        "endpoint": {"url": "http://127.0.0.1:11434/v1", "model": "small"}, "temperature": 0.5, "max_tokens": 1024,
        "teacher_name": "small", "questions_name": None}
    job = api.get(f"/jobs/{made['job_id']}").json()
    assert (job["kind"], job["state"]) == ("teacher_answers", "queued")
    assert api.get("/jobs", kind="teacher_answers").json()["items"] == [job]
    assert payload()["dataset_id"] == made["id"] and payload()["concurrency"] == 4
    page = api.http.get(f"/datasets/{made['id']}", headers={"Accept": "text/html"})
    assert page.status_code == 200 and "small" in page.text


def test_the_longest_system_prompt_fits(api: Api) -> None:
    made = create(api, endpoint=ENDPOINT, system="灯" * 20_000, limit=1)
    assert made.status_code == 201 and payload()["system"] == "灯" * 20_000
    assert "source.system" in problems(create(api, endpoint=ENDPOINT, system="x" * 20_001))


def test_a_checkpoint_answers_the_questions_of_a_dataset(api: Api) -> None:
    asked = questions()
    with transaction() as session:
        session.add(Run(id="r1", name="my run", user_id="local", stage="sft", config={}, devices="auto",
                        state="completed", ended_at=1, created_at=0, updated_at=0))
        session.flush()
        session.add(Checkpoint(id="c1", run_id="r1", attempt=1, stage="sft", step=60, tokens=1, bytes=1, path="/x",
                               created_at=0))
    made = create(api, questions_dataset_id=asked, checkpoint_id="c1", name="mine").json()
    assert (made["name"], made["source"]["teacher_name"], made["source"]["questions_name"]) == (
        "mine", "my run, step 60", "My questions")
    refused = api.http.delete(f"/api/v1/datasets/{asked}")
    assert refused.status_code == 409 and "A job reads this dataset" in refused.text
    assert api.post(f"/jobs/{made['job_id']}/cancel").json()["state"] == "cancelled"
    assert api.get(f"/datasets/{made['id']}").json()["state"] == "failed"
    page = api.http.get("/datasets", headers={"Accept": "text/html"}).text
    assert "my run" in page and "My questions" in page


def test_a_dataset_of_questions_leads_to_the_form(api: Api) -> None:
    page = api.http.get(f"/datasets/{questions()}", headers={"Accept": "text/html"}).text
    assert "/datasets?add=1&amp;questions=asked#teacher-title" in page and "No stage" not in page


@pytest.mark.parametrize(("source", "field", "words"), [
    ({}, "source.checkpoint_id", "exactly one"),
    ({"endpoint": ENDPOINT, "checkpoint_id": "c1"}, "source.checkpoint_id", "exactly one"),
    ({"checkpoint_id": "nope"}, "source.checkpoint_id", "no checkpoint"),
    ({"endpoint": ENDPOINT, "questions_dataset_id": "nope"}, "source.questions_dataset_id", "no dataset"),
    ({"endpoint": ENDPOINT, "questions_dataset_id": "asked", "starter": {}}, "source.questions_dataset_id", "both"),
    ({"endpoint": ENDPOINT, "questions_dataset_id": "texts"}, "source.questions_dataset_id", "holds no questions"),
    ({"endpoint": ENDPOINT, "questions_dataset_id": "young"}, "source.questions_dataset_id", "is importing"),
    ({"endpoint": {"url": "file:///etc/passwd", "model": "x"}}, "source.endpoint.url", "does not begin with http"),
    ({"endpoint": {"url": "http://169.254.169.254/", "model": "x"}}, "source.endpoint.url", "no teacher may be"),
    ({"endpoint": {"url": "http://[fe80::1]/", "model": "x"}}, "source.endpoint.url", "no teacher may be"),
    ({"endpoint": {"url": f"http://user:{KEY}@a.example/v1", "model": "x"}}, "source.endpoint.url", "password"),
    ({"endpoint": {"url": "http://a.example"}}, "source.endpoint.model", "missing"),
    ({"endpoint": {**ENDPOINT, "secret": KEY}}, "source.endpoint.secret", "no field"),
    ({"endpoint": ENDPOINT, "temperature": 3}, "source.temperature", "wrong"),
    ({"endpoint": ENDPOINT, "limit": 0}, "source.limit", "wrong"),
    ({"endpoint": ENDPOINT, "starter": {"languages": ["fr"]}}, "source.starter.languages.0", "wrong"),
])
def test_what_cannot_be_asked_is_named(api: Api, source, field, words) -> None:
    questions()
    questions("texts", layout="text")
    questions("young", state="importing")
    answer = create(api, **source)
    assert answer.status_code == 422
    assert list(problems(answer)) == [field] and words in answer.json()["error"]["message"]
    assert KEY not in answer.text
    with reading() as session:
        assert session.query(Job).count() == 0


def test_all_problems_come_at_once(api: Api) -> None:
    answer = create(api, questions_dataset_id="nope", checkpoint_id="nope")
    assert list(problems(answer)) == ["source.questions_dataset_id", "source.checkpoint_id"]


def test_a_key_is_taken_and_never_given_back(api: Api, caplog) -> None:
    seen = [api.http.put("/api/v1/secrets/teacher", json={"url": "https://api.example.com/v1", "key": f" {KEY}\n"})]
    assert seen[0].status_code == 204 and seen[0].content == b""
    seen += [api.get("/secrets/teacher"), create(api, endpoint={"url": "https://api.example.com", "model": "m"})]
    made = seen[-1].json()
    seen += [api.get(f"/datasets/{made['id']}"), api.get(f"/jobs/{made['job_id']}"), api.get("/system"),
             api.http.get("/datasets", headers={"Accept": "text/html"})]
    assert [item["url"] for item in seen[1].json()["items"]] == ["https://api.example.com"]
    assert not [answer.url for answer in seen if KEY in answer.text] and KEY not in caplog.text
    assert KEY not in json.dumps(payload())
    if get_settings().sqlalchemy_url.startswith("sqlite"):
        with sqlite3.connect(get_settings().data_dir / "studio.db") as database:
            assert KEY not in "\n".join(database.iterdump())

    def forget() -> int:
        return api.http.delete("/api/v1/secrets/teacher", params={"url": "https://api.example.com/x"}).status_code

    assert forget() == 204 and api.get("/secrets/teacher").json()["items"] == [] and forget() == 404


@pytest.mark.parametrize(("body", "field"), [
    ({"url": "https://a.example", "key": ""}, "key"), ({"url": "https://a.example", "key": "ключ" + KEY}, "key"),
    ({"url": "https://a.example", "key": [KEY]}, "key"), ({"url": "https://a.example"}, "key"),
    ({"url": "ftp://a.example", "key": KEY}, "url"), ({"url": "http://169.254.169.254", "key": KEY}, "url"),
    ({"url": "https://a.example", "key": KEY, "sekret": KEY}, "sekret"),
])
def test_a_key_that_is_refused_is_not_repeated(api: Api, body, field) -> None:
    answer = api.http.put("/api/v1/secrets/teacher", json=body)
    assert answer.status_code == 422 and answer.json()["error"]["field"] == field and KEY not in answer.text
    assert not (get_settings().data_dir / "secrets" / "keys").exists()


def test_keys_belong_to_whoever_gave_them_and_viewers_give_none(api: Api) -> None:
    member, viewer = api.as_role("mia", "member"), api.as_role("vera", "viewer")
    body = {"url": "https://api.example.com", "key": KEY}
    assert member.put("/api/v1/secrets/teacher", json=body).status_code == 204
    assert api.get("/secrets/teacher").json()["items"] == []
    assert len(member.get("/api/v1/secrets/teacher").json()["items"]) == 1
    assert viewer.put("/api/v1/secrets/teacher", json=body).status_code == 403
    assert create(api, http=viewer, endpoint=ENDPOINT).status_code == 403
    assert create(api, http=member, endpoint=ENDPOINT).status_code == 201
    assert "dataset-teacher" not in viewer.get("/datasets", headers={"Accept": "text/html"}).text


def test_the_same_request_twice_makes_one_dataset(api: Api) -> None:
    body = {"source": {"kind": "teacher", "endpoint": ENDPOINT}}
    first, second = (api.post("/datasets", body, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json() == second.json() and second.headers["Idempotency-Replayed"] == "true"
