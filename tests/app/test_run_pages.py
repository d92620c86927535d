"""Pages of runs and pipelines: the facts of each state, and only what can be done in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.core import guards
from app.core.db import transaction
from app.core.models import Attempt, Checkpoint, DeviceLease, Run
from app.i18n import translations
from app.runs.view import view
from tests import database_rig
from tests.app.conftest import Api
from tests.app.test_pages import HOSTILE, assert_clean, read
from tests.app.test_pipelines import new_line
from tests.app.test_runs import add_checkpoint, add_dataset, new_run


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(read(html).text))


def actions(html: str) -> set[str]:
    """What a page offers to do with a run: wishes, and dialogs."""
    found = set()
    for _, attributes in read(html).tags:
        if attributes.get("aria-disabled") == "true":
            found.add("busy")
        found |= {attributes[name] for name in ("data-action", "data-dialog") if name in attributes}
    return found


def set_run(run_id: str, **values: object) -> None:
    """Write what only workers write, with what the schema wants beside it."""
    with transaction() as session:
        guards.remove(session.connection())
        run = session.get(Run, run_id)
        state = values.get("state", run.state)
        held = state in ("starting", "running", "pausing", "cancelling")
        values.setdefault("lease_owner", "runner" if held else None)
        values.setdefault("ended_at", 2e9 if state in ("completed", "failed", "cancelled") else None)
        for name, value in values.items():
            setattr(run, name, value)
        session.flush()
        guards.install(session.connection())


def test_the_door_leads_to_the_first_model_and_later_to_the_runs(api: Api) -> None:
    browser = api.browser()
    assert browser.get("/").url.path == "/start"
    new_run(api)
    assert browser.get("/").url.path == "/runs"


def test_the_wizard_offers_what_the_machine_can(api: Api) -> None:
    text = text_of(api.browser().get("/start").text)
    assert "1 minute" in text and "30 minutes" in text and "GPU" not in text
    assert "No worker has been heard of yet" in text
    database_rig.add_host("gpu-host", devices=[{"device": "cuda:0", "name": "H100"}])
    text = text_of(api.browser().get("/start").text)
    assert "On your GPU, with 25.8M parameters" in text and "No worker" not in text


def test_the_list_filters_and_pages(api: Api) -> None:
    browser = api.browser()
    assert "Nothing has been trained here yet" in browser.get("/runs").text
    for number in range(55):
        database_rig.add_run(name=f"run {number}")
    first = browser.get("/runs")
    rows = [a["data-key"] for t, a in read(first.text).tags if t == "tr" and "data-key" in a]
    assert len(rows) == 50 and "run 54" in first.text and "run 4<" not in first.text
    older = next(a["href"] for t, a in read(first.text).tags if t == "a" and "cursor=" in a.get("href", ""))
    assert "run 4<" in browser.get("/runs" + older).text
    assert "No run fits this filter" in browser.get("/runs?text=nothing-like-it").text
    assert "run 54" in browser.get("/runs?state=active&stage=pretrain").text
    for odd in ("?state=odd", "?stage=odd", "?text=%00", "?text=%25"):
        assert browser.get(f"/runs{odd}").status_code == 200, odd
    assert browser.get("/runs?cursor=odd", headers={"Accept": "text/html"}).status_code == 422


def test_a_fragment_is_the_part_alone(api: Api) -> None:
    run = new_run(api)
    line = new_line(api)
    browser = api.browser()
    for path in ("/runs?part=rows", f"/runs/{run['id']}?part=main", "/pipelines?part=rows",
                 f"/pipelines/{line['id']}?part=main"):
        html = browser.get(path).text
        assert "<html" not in html and sum("data-fragment" in a for _, a in read(html).tags) == 1, path


@pytest.mark.parametrize("state, desired, offered", [
    ("queued", "run", {"pause", "cancel-dialog"}),
    ("running", "run", {"pause", "cancel-dialog"}),
    ("running", "pause", {"busy", "cancel-dialog"}),
    ("pausing", "pause", {"busy", "cancel-dialog"}),
    ("paused", "pause", {"resume", "cancel-dialog"}),
    ("cancelling", "cancel", {"busy"}),
    ("completed", "run", {"delete-dialog"}),
    ("failed", "run", {"delete-dialog"}),
    ("cancelled", "cancel", {"delete-dialog"}),
])
def test_a_run_offers_what_its_state_allows(api: Api, state: str, desired: str, offered: set) -> None:
    run = new_run(api)
    set_run(run["id"], state=state, desired=desired)
    html = api.browser().get(f"/runs/{run['id']}?part=main").text
    assert actions(html) == offered | {"edit-dialog"}
    assert state in text_of(html)


def test_the_page_of_a_running_run(api: Api, tmp_path: Path) -> None:
    database_rig.add_host("host-1")
    dataset = add_dataset()
    run = new_run(api, dataset_id=dataset, name="reads", config={"preset": "tiny-cpu", "max_steps": 60, "seed": 7})
    add_checkpoint(tmp_path, run["id"], step=20)
    with transaction() as session:
        session.add(Attempt(run_id=run["id"], number=1, state="open", host_id="host-1", boot_id="b", started_at=1.0,
                            ended_at=101.0))
        session.add(DeviceLease(host_id="host-1", device="cpu:0", run_id=run["id"], attempt=1))
    set_run(run["id"], state="running", attempt=1, progress={
        "step": 30, "total_steps": 60, "tokens": 30_720, "loss": 1.25, "eval_loss": 1.5, "tokens_per_s": 8000.0,
        "eta_s": 75.0, "phase": "train"})
    html = api.browser().get(f"/runs/{run['id']}").text
    assert_clean(html)
    text = text_of(html)
    for fact in ("reads", "30 / 60", "1.25", "1.5", "8k tokens/s", "30.7k", "1 min 15 s", "1 min 40 s", "cpu:0",
                 "Step 20", "random weights", "seed", "max_steps"):
        assert fact in text, fact
    hrefs = {a.get("href") for _, a in read(html).tags}
    assert f"/datasets/{dataset}" in hrefs and f"/runs/new?clone={run['id']}" in hrefs
    assert any((h or "").startswith("/chat?checkpoint=") for h in hrefs)


def test_phases_before_the_first_step(api: Api) -> None:
    run = new_run(api)
    set_run(run["id"], state="running", progress={"phase": "tokenize", "phase_done": 500, "phase_total": 1000,
                                                  "phase_unit": "rows"})
    html = api.browser().get(f"/runs/{run['id']}").text
    statuses = [a["data-status"] for t, a in read(html).tags if "data-status" in a]
    assert statuses == ["done", "done", "now", "ahead", "ahead"] and "500 / 1k rows" in text_of(html)


def test_a_failure_has_a_face(api: Api) -> None:
    run = new_run(api)
    set_run(run["id"], state="failed", error={"class": "OOM", "message": "The GPU ran out of memory <b>here</b>.",
                                              "hint": "Use batch_size 16."})
    html = api.browser().get(f"/runs/{run['id']}").text
    text = text_of(html)
    assert "The GPU ran out of memory <b>here</b>." in text and "Use batch_size 16." in text
    assert "Try again with changes" in text
    assert_clean(html)


def test_a_pause_says_whether_everything_is_saved(api: Api) -> None:
    """Saved, stopped by a kill, refused because of its inputs: only the first one goes on exactly where it stopped."""
    def said(run: dict) -> str:
        return text_of(api.browser().get(f"/runs/{run['id']}").text)

    saved, killed, refused = new_run(api), new_run(api), new_run(api)
    for run in (saved, killed):
        set_run(run["id"], state="paused", desired="pause", attempt=1)
        with transaction() as session:
            session.add(Attempt(run_id=run["id"], number=1, state="closed", host_id="h", boot_id="b", started_at=1.0,
                                ended_at=9.0, error=None if run is saved else {"message": "A rank was killed."}))
    set_run(refused["id"], state="paused", desired="pause", reason="inputs", attempt=1, error={
        "class": "DATA", "message": "The data is gone.", "hint": "Put it back."})
    assert "Paused: everything is saved" in said(saved)
    for run in (killed, refused):
        text = said(run)
        assert "everything is saved" not in text and "Resume goes on from its newest checkpoint." in text
    assert "The data is gone." in said(refused) and "Put it back." in said(refused)
    set_run(killed["id"], state="recovering", desired="run")
    assert "This attempt was interrupted. The run goes on from its newest checkpoint by itself." in said(killed)


def test_what_a_queued_run_waits_for(api: Api) -> None:
    run = new_run(api)

    def said() -> str:
        return text_of(api.browser().get(f"/runs/{run['id']}").text)

    assert "Waits for a worker." in said() and "When it begins is not known" not in said()
    database_rig.add_host("host-1")
    assert "Starts in a moment." in said()
    other = new_run(api, priority=5)
    assert "1 ahead of it" in said()
    set_run(other["id"], state="running")
    with transaction() as session:
        session.add(DeviceLease(host_id="host-1", device="cpu:0", run_id=other["id"], attempt=1))
    assert f"Waits for free devices, now used by {other['name']}." in said()


def test_a_run_that_no_machine_can_take_is_not_said_to_start(api: Api) -> None:
    run = new_run(api, devices={"kind": "cuda", "count": 1})  # asked for before any machine was known
    database_rig.add_host("host-1")
    text = text_of(api.browser().get(f"/runs/{run['id']}").text)
    assert "No machine that is here now has such devices." in text and "Starts in a moment" not in text


def test_hostile_text_of_runs_is_text(api: Api) -> None:
    browser = api.browser()
    for name in HOSTILE:
        run = new_run(api, name=name, notes=name, tags=[name[:50]])
        set_run(run["id"], state="failed", error={"class": name, "message": name, "hint": name})
        for path in (f"/runs/{run['id']}", "/runs"):
            html = browser.get(path).text
            assert_clean(html)
            assert name in " ".join(read(html).text), path


def test_chat_is_offered_with_the_newest_attempts_checkpoint(api: Api, tmp_path: Path) -> None:
    run = new_run(api)
    old = add_checkpoint(tmp_path, run["id"], step=50)
    new = add_checkpoint(tmp_path, run["id"], step=40)
    with transaction() as session:
        session.get(Checkpoint, new).attempt = 2
        session.flush()
        assert view(session, session.get(Run, run["id"])).latest_checkpoint.id == new != old


def test_a_line_of_stages(api: Api) -> None:
    line = new_line(api, stages=[{"stage": "pretrain", "config": {"max_steps": 5}, "gate": {"eval_loss": 3.5}},
                                 {"stage": "sft", "config": {"max_steps": 5}}], name="<i>line</i>")
    browser = api.browser()
    html = browser.get(f"/pipelines/{line['id']}").text
    assert_clean(html)
    text = text_of(html)
    for fact in ("<i>line</i>", "Pretraining", "Fine-tuning", "comes next", "0 of 2 stages done",
                 "held-out loss ≤ 3.5"):
        assert fact in text, fact
    assert actions(html) >= {"pause", "cancel-dialog"}
    assert "<i>line</i>" in text_of(browser.get("/pipelines").text)
    # the wish stands at once, the run has yet to obey
    run_id = line["runs"][0]["id"]
    set_run(run_id, state="running", attempt=1)
    api.post(f"/pipelines/{line['id']}/pause")
    assert api.get(f"/pipelines/{line['id']}").json()["state"] == "paused"
    html = browser.get(f"/pipelines/{line['id']}").text
    assert "busy" in actions(html) and "pausing" in text_of(html)
    assert browser.get(f"/pipelines/{line['id']}?run=odd").status_code == 200


def test_the_form_of_a_pipeline_offers_what_is_there(api: Api) -> None:
    dataset = add_dataset()
    html = api.browser().get("/pipelines/new").text
    assert_clean(html)
    offer = next(a["data-offer"] for t, a in read(html).tags if t == "pipeline-form")
    assert dataset in offer and "tiny-cpu" in offer and '"sft"' in offer


def test_what_is_not_there_is_a_page(api: Api) -> None:
    browser = api.browser()
    for path in ("/runs/nothing", "/pipelines/nothing", "/runs/..%2f..", "/pipelines/%00"):
        answer = browser.get(path, headers={"Accept": "text/html"})
        assert answer.status_code in (404, 422) and "Back to the studio" in answer.text, path
        assert_clean(answer.text)


def test_pages_speak_the_visitors_language(api: Api) -> None:
    browser = api.browser()
    german = browser.get("/runs", headers={"Accept-Language": "de-DE,de;q=0.9"})
    assert '<html lang="en"' in german.text
    for header, language in (("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("pt-BR,pt;q=0.9", "pt"), ("en-GB,zh;q=0.5", "en")):
        page = browser.get("/start", headers={"Accept-Language": header})
        assert f'<html lang="{language}"' in page.text
        assert translations(language).gettext("Start training") in page.text
    browser.cookies.set("studio_language", "pt")
    page = browser.get("/runs/new", headers={"Accept-Language": "zh"})
    assert '<html lang="pt"' in page.text
    browser.cookies.set("studio_theme", "dark")
    assert 'data-theme="dark"' in browser.get("/start").text
    browser.cookies.set("studio_theme", '"><script>')
    assert_clean(browser.get("/start").text)


def test_a_wrong_password_is_said_on_the_form(api: Api) -> None:
    answer = api.anonymous().post("/login", data={"name": '"><b>who', "password": "wrong"},
                                  headers={"Origin": "http://127.0.0.1:8000", "Accept": "text/html"})
    assert answer.status_code == 401 and 'role="alert"' in answer.text
    assert_clean(answer.text)
    assert any(a.get("value") == '"><b>who' for t, a in read(answer.text).tags if t == "input")
