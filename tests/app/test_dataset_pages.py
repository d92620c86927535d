"""Pages of datasets: what they say before a script runs, whom they offer what, and hostile names that stay text."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from app.core.db import transaction
from app.core.models import Checkpoint, Dataset, Job, TokenizerRow
from minimind.config import STAGES
from minimind.data import foreign, starter
from minimind.data.layouts import LAYOUTS
from tests.app.conftest import Api
from tests.app.test_datasets import DIALOGUE, imported, send
from tests.app.test_pages import HOSTILE, Reader, assert_clean
from tests.app.test_runs import add_checkpoint, add_dataset, add_tokenizer, new_run

HTML = {"Accept": "text/html"}


def show(browser: TestClient, path: str, status: int = 200) -> Reader:
    answer = browser.get(path, headers=HTML)
    assert answer.status_code == status, answer.text
    page = assert_clean(answer.text)
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    return page


def words_of(page: Reader) -> str:
    return " ".join(" ".join(page.text).split())


def links(page: Reader) -> list[str]:
    return [a["href"] for tag, a in page.tags if tag == "a" and "href" in a]


def options(page: Reader, id: str = "tokenizer-choice") -> list[str]:
    """Values of the options behind the select ``id``."""
    start = next(i for i, (tag, a) in enumerate(page.tags) if tag == "select" and a.get("id") == id)
    found = []
    for tag, attributes in page.tags[start + 1:]:
        if tag != "option":
            break
        found.append(attributes["value"])
    return found


def test_the_empty_list_says_the_next_act(api: Api) -> None:
    page = show(api.browser(), "/datasets")
    assert "No data here yet" in words_of(page)
    assert ("details", {"class": "add-data", "id": "add-data", "open": None}) in page.tags
    assert [a["value"] for tag, a in page.tags if tag == "input" and a.get("name") == "part"] == list(starter.PARTS)
    for said in ("Stories and facts for pretraining", "Dialogues for fine-tuning", "Dialogues with tool calls for "
                 "fine-tuning", "Preference pairs for preferences (DPO)", "Dialogues with another name for LoRA",
                 "Questions for a teacher to answer"):
        assert said in words_of(page)
    languages = [a["value"] for tag, a in page.tags if a.get("name") == "languages"]
    assert languages == ["en", "zh", "pt"] * 2, "of the starter corpus, and of what a teacher is asked"
    ours, foreign_ones = set(LAYOUTS), set(foreign.LAYOUTS)
    assert [tag for tag, a in page.tags if a.get("id") == "upload-layout"] == ["select"]
    assert ours | foreign_ones <= {a.get("value") for tag, a in page.tags if tag == "option"}
    assert ("link", {"rel": "alternate", "type": "application/json", "href": "/api/v1/datasets"}) in page.tags


def test_the_list_shows_the_facts_of_each(api: Api) -> None:
    browser = api.browser()
    ready = imported(api)
    failed = imported(api, b'{"text": "a"}\n{"text": "b"}\n{"text": 7}\n')
    assert failed["state"] == "failed"
    waiting = send(api, name="still coming").json()
    with transaction() as session:
        job = session.get_one(Job, waiting["job_id"])
        job.progress = {"done": 3, "total": 12, "unit": "bytes", "message": "Checking"}
    page = show(browser, "/datasets")
    assert [link for link in links(page) if link.startswith("/datasets/")] == [
        f"/datasets/{d['id']}" for d in (waiting, failed, ready)]
    assert all(word in words_of(page) for word in ("importing", "failed", "line 3", "ready", "Texts", "Uploaded", "30"))
    assert [a for tag, a in page.tags if tag == "progress"] == [
        {"max": "12", "value": "3", "aria-label": "Import of still coming"}]
    assert "open" not in next(a for _, a in page.tags if a.get("id") == "add-data")
    assert "open" in next(a for _, a in show(browser, "/datasets?add=1").tags if a.get("id") == "add-data")
    rows = browser.get("/datasets?part=rows", headers=HTML).text
    assert "<html" not in rows and "still coming" in rows and "data-fragment" in rows


def test_more_than_one_page_of_them(api: Api) -> None:
    ids = [add_dataset() for _ in range(52)]
    browser = api.browser()
    first = show(browser, "/datasets")
    shown = [link for link in links(first) if link.startswith("/datasets/")]
    following = next(link for link in links(first) if link.startswith("/datasets?cursor="))
    second = show(browser, following)
    shown += [link for link in links(second) if link.startswith("/datasets/")]
    assert sorted(shown) == sorted(f"/datasets/{id}" for id in ids)
    assert browser.get("/datasets?cursor=nonsense", headers=HTML).status_code == 422


def test_a_dataset_offers_what_fits_it(api: Api) -> None:
    browser = api.browser()
    texts = imported(api)
    page = show(browser, f"/datasets/{texts['id']}")
    assert [link for link in links(page) if link.startswith("/runs/new")] == [
        f"/runs/new?stage={stage}&dataset_id={texts['id']}" for stage in ("pretrain", "distill")]
    assert all(word in words_of(page) for word in ("30", "not counted yet", texts["sha256"][:12], "no tokenizer yet"))
    assert ("link", {"rel": "alternate", "type": "application/json", "href": f"/api/v1/datasets/{texts['id']}"}
            ) in page.tags
    talk = imported(api, json.dumps(DIALOGUE).encode())
    assert f"/runs/new?stage=sft&dataset_id={talk['id']}" in links(show(browser, f"/datasets/{talk['id']}"))
    messages = DIALOGUE["conversations"]
    pairs = imported(api, json.dumps({"chosen": messages, "rejected": messages}).encode())
    page = show(browser, f"/datasets/{pairs['id']}")
    for stage in [link for link in links(page) if link.startswith("/runs/new")]:
        assert "dpo" in STAGES[stage.split("stage=")[1].split("&")[0]].layouts
    if not any("dpo" in stage.layouts for stage in STAGES.values()):
        assert "No stage of this version learns from preference pairs yet" in words_of(page)


def test_what_a_converted_file_was_stands_on_the_page(api: Api) -> None:
    plain = imported(api)
    assert "Converted from" not in words_of(show(api.browser(), f"/datasets/{plain['id']}"))
    rows = [{"instruction": "Who?", "input": "", "output": "Me."}] * 30
    rows[4] = {**rows[4], "output": ""}
    made = imported(api, json.dumps(rows).encode(), filename="a.json")
    words = words_of(show(api.browser(), f"/datasets/{made['id']}"))
    assert "Converted from alpaca · json · utf-8" in words and "Left out 1 of 30 rows" in words


def test_what_is_wrong_stands_on_the_page(api: Api) -> None:
    browser = api.browser()
    failed = imported(api, b'{"text": "a"}\n{"text": "b"}\n{"text": 7}\n')
    page = show(browser, f"/datasets/{failed['id']}")
    assert all(word in words_of(page) for word in (failed["error"]["message"], "Line 3", "field text"))
    assert not [tag for tag, _ in page.tags if tag == "dataset-preview"] and "/datasets?add=1#add-data" in links(page)
    unanswered = {"conversations": [*DIALOGUE["conversations"], {"role": "user", "content": "And?"}]}
    warned = imported(api, json.dumps(unanswered).encode())
    assert warned["warnings"][0] in words_of(show(browser, f"/datasets/{warned['id']}"))
    with transaction() as session:  # as a version before this one may have left it
        session.get_one(Dataset, failed["id"]).error = None
    assert "did not work" in words_of(show(browser, f"/datasets/{failed['id']}"))
    assert show(browser, "/datasets/nowhere", 404)


def test_an_import_shows_its_progress(api: Api) -> None:
    waiting = send(api).json()
    page = show(api.browser(), f"/datasets/{waiting['id']}")
    assert ("dataset-progress", {"class": "card", "dataset": waiting["id"], "job": waiting["job_id"], "reloads": None,
                                 "cancels": None}) in page.tags
    assert not [a for _, a in page.tags if a.get("data-opens")]


def test_each_tokenizer_is_offered_once(api: Api) -> None:
    dataset = imported(api)
    run = new_run(api, name="a run")
    foreign, own, _ = add_tokenizer("a" * 64), add_tokenizer("b" * 64), add_tokenizer("c" * 64, state="training")
    with transaction() as session:
        session.get_one(TokenizerRow, own).source = {"kind": "dataset", "dataset_id": dataset["id"]}
        session.get_one(TokenizerRow, own).created_at = 1.0
    add_checkpoint(api.data_dir, run["id"], step=10, fingerprint="d" * 64)
    newest = add_checkpoint(api.data_dir, run["id"], step=20, fingerprint="d" * 64)
    add_checkpoint(api.data_dir, run["id"], step=30, fingerprint="a" * 64)
    gone = add_checkpoint(api.data_dir, run["id"], step=40, fingerprint="e" * 64)
    with transaction() as session:
        session.get_one(Checkpoint, gone).state = "deleting"
    page = show(api.browser(), f"/datasets/{dataset['id']}")
    assert options(page) == [f"tokenizer:{own}", f"tokenizer:{foreign}", f"checkpoint:{newest}"]
    assert "a run · Pretraining, step 20" in words_of(page) and "words · 600 tokens" in words_of(page)


def test_a_viewer_is_offered_nothing_that_would_be_refused(api: Api) -> None:
    dataset = imported(api)
    viewer = api.as_role("vera", "viewer")
    page = show(viewer, "/datasets")
    assert not [a for _, a in page.tags if a.get("id") == "add-data"] and f"/datasets/{dataset['id']}" in links(page)
    page = show(viewer, f"/datasets/{dataset['id']}")
    assert not [a for _, a in page.tags if a.get("data-opens")] and not [t for t, _ in page.tags if t == "dialog"]
    assert not [link for link in links(page) if link.startswith("/runs/new")]
    assert [tag for tag, _ in page.tags if tag == "dataset-preview"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(api: Api, name: str) -> None:
    browser = api.browser()
    add_tokenizer()
    dataset = imported(api, name=name)
    with transaction() as session:
        row = session.get_one(Dataset, dataset["id"])
        row.source, row.warnings = {"kind": "upload", "filename": f"file {name}"}, [name]
        session.query(TokenizerRow).one().name = name
    for path in ("/datasets", f"/datasets/{dataset['id']}"):
        page = show(browser, path)
        assert name in "".join(page.text), path
        assert "49" not in page.text and not [t for t, _ in page.tags if t == "img" and "onerror" in str(t)]
    with transaction() as session:
        row = session.get_one(Dataset, dataset["id"])
        row.state, row.error = "failed", {"message": name, "field": name, "line": 3, "hint": name}
    for path in ("/datasets", f"/datasets/{dataset['id']}"):
        assert name in "".join(show(browser, path).text), path
