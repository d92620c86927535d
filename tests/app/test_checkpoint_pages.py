"""The page of checkpoints: newest first, filtered and paged by the server, nothing but text in it."""

from __future__ import annotations

from pathlib import Path

from app.checkpoints import pages
from app.core.db import transaction
from app.core.models import Checkpoint
from tests.app.conftest import Api
from tests.app.test_checkpoints import add
from tests.app.test_pages import HOSTILE, assert_clean
from tests.app.test_runs import new_run


def ids(html: str) -> list[str]:
    """Ids of the rows in their order."""
    return [a["data-key"] for t, a in assert_clean(html).tags if t == "tr" and "data-key" in a]


def test_nothing_saved_yet_leads_to_the_first_model(api: Api) -> None:
    page = assert_clean(api.browser().get("/checkpoints").text)
    assert "No model has been saved yet" in "".join(page.text)
    assert "/start" in [a.get("href") for _, a in page.tags if "primary" in a.get("class", "")]


def test_a_row_says_what_it_is_and_what_can_be_done(api: Api, tmp_path: Path) -> None:
    run = new_run(api, name="Harbour")["id"]
    older, newer = add(api, tmp_path / "a", run, step=1000), add(api, tmp_path / "b", run, step=2000)
    browser = api.browser()
    html = browser.get("/checkpoints").text
    assert ids(html) == [newer, older]
    page = assert_clean(html)
    text = "".join(page.text)
    assert "Harbour" in text and "2,000" in text and "100k" in text and older in text
    links = {a.get("href"): a.get("aria-label") for t, a in page.tags if t == "a"}
    assert f"/runs/{run}" in links
    assert links[f"/chat?checkpoint={older}"] == "Chat with step 1,000 of Harbour"
    assert f"/api/v1/checkpoints/{older}/download" in links
    assert f"/runs/new?stage=sft&base_checkpoint_id={older}" in links
    copied = [a["data-text"] for t, a in page.tags if t == "copy-button"]
    assert older in copied and str(tmp_path / "a") in copied
    viewer = api.as_role("watcher", "viewer").get("/checkpoints").text
    assert f"/chat?checkpoint={older}" in viewer and "/runs/new" not in viewer


def test_a_damaged_one_says_so_and_offers_nothing(api: Api, tmp_path: Path) -> None:
    run = new_run(api, name="Harbour")["id"]
    whole, damaged = add(api, tmp_path / "a", run, step=1), add(api, tmp_path / "b", run, "corrupt", step=2)
    with transaction() as session:
        row = session.get_one(Checkpoint, damaged)
        row.problem, row.save_s = "model.safetensors is missing.", 1.25
        session.get_one(Checkpoint, whole).save_s = 0.75
    browser = api.browser()
    page = assert_clean(browser.get("/checkpoints").text)
    links = [a.get("href", "") for t, a in page.tags if t == "a"]
    assert "model.safetensors is missing." in "".join(page.text)
    assert any(whole in link for link in links) and not any(damaged in link for link in links)
    assert damaged not in browser.get("/chat").text
    of_run = assert_clean(browser.get(f"/runs/{run}").text)
    text = " ".join("".join(of_run.text).split())
    assert "model.safetensors is missing." in text and "(2 saves, 22 B)" in text and "Saving costs" in text
    links = [a.get("href", "") for t, a in of_run.tags if t == "a"]
    assert any(whole in link for link in links) and not any(damaged in link for link in links)


def test_filters_are_of_the_server(api: Api, tmp_path: Path) -> None:
    run, other = new_run(api, name="Harbour")["id"], new_run(api)["id"]
    first, second = add(api, tmp_path / "a", run), add(api, tmp_path / "b", other)
    browser = api.browser()
    assert "<select id=\"stage\"" not in browser.get("/checkpoints").text, "one stage is no choice"
    with transaction() as session:
        session.get_one(Checkpoint, second).stage = "sft"
    assert "<select id=\"stage\"" in browser.get("/checkpoints").text
    assert ids(browser.get("/checkpoints", params={"stage": "sft"}).text) == [second]
    assert ids(browser.get("/checkpoints", params={"run_id": run}).text) == [first]
    assert "Harbour" in browser.get("/checkpoints", params={"run_id": run}).text
    nothing = browser.get("/checkpoints", params={"stage": "lora"}).text
    assert not ids(nothing) and "No checkpoint fits this filter" in nothing
    assert len(ids(browser.get("/checkpoints", params={"stage": "../x", "run_id": "<b>"}).text)) == 2


def test_show_more_goes_on_where_it_stopped(api: Api, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pages, "CHECKPOINTS_SHOWN", 2)
    run = new_run(api)["id"]
    all_ids = [add(api, tmp_path / str(n), run, step=n) for n in range(1, 6)][::-1]
    browser = api.browser()
    seen, address = [], "/checkpoints?"
    for _ in range(3):
        html = browser.get(address + "&part=rows").text
        assert html.lstrip().startswith("<div") and "<html" not in html
        seen += ids(html)
        more = [a["href"] for t, a in assert_clean(html).tags if t == "a" and "cursor=" in a.get("href", "")]
        address = f"/checkpoints{more[0]}" if more else ""
    assert seen == all_ids and not address
    assert browser.get("/checkpoints", params={"cursor": "made-up"}).status_code == 422


def test_hostile_names_are_text(api: Api, tmp_path: Path) -> None:
    for n, name in enumerate(HOSTILE):
        add(api, tmp_path / str(n) / name.replace("/", ""), new_run(api, name=name)["id"])
    page = assert_clean(api.browser().get("/checkpoints").text)
    text = "".join(page.text)
    assert all(name in text for name in HOSTILE)
    assert sum(t == "h1" for t, _ in page.tags) == 1
