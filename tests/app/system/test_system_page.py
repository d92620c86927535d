"""The system page: who is alive, who holds which device, what waits for what, jobs, disk."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from app.core.db import now, reading, transaction
from app.core.models import Host, Job, Run, new_id
from app.core.queue import claim_job, claim_run
from app.core.states import move
from app.system import service
from app.system.view import Bar, view, wants
from tests import database_rig
from tests.app.conftest import Api
from tests.app.test_pages import assert_clean
from tests.app.test_runs import new_run

GPU = {"id": "cuda:0", "name": "A card", "memory_bytes": 80 << 30}
LOAD = {"cpu_percent": 73.4, "memory_used_bytes": 8e9, "memory_total_bytes": 16e9,
        "gpus": [{"device": "cuda:0", "percent": 91.0, "memory_used_bytes": 20e9, "memory_total_bytes": 80e9}]}


def change_host(id: str = database_rig.HOST, **values: Any) -> None:
    with transaction() as session:
        for name, value in values.items():
            setattr(session.get_one(Host, id), name, value)


def add_job(kind: str = "dataset_import", **values: Any) -> str:
    with transaction() as session:
        job = Job(**{"id": new_id(), "kind": kind, "state": "queued", "payload": {}, "user_id": "local",
                     "created_at": now(session), "attempt": 0, "cancel_wanted": False, "progress": {}} | values)
        session.add(job)
    return job.id


def text_of(api: Api, path: str = "/system") -> str:
    return " ".join("".join(assert_clean(api.browser().get(path).text).text).split())


def text_of_viewer(api: Api) -> str:
    html = api.as_role("watcher", "viewer").get("/system").text
    return " ".join("".join(assert_clean(html).text).split())


def test_without_a_worker_it_says_what_to_do(api: Api) -> None:
    text = text_of(api)
    assert "No worker is alive" in text and "./studio doctor" in text and "./studio worker" in text
    assert "No machine has ever been here" in text and "The broker does not answer" in text
    database_rig.add_host("far-away")
    with transaction() as session:
        session.get_one(Host, "far-away").last_seen_at = now(session) - 100
    text = text_of(api)
    assert "No worker is alive" in text and "far-away" in text and "Last heard of" in text


def test_a_machine_shows_who_has_which_device(api: Api) -> None:
    database_rig.add_host(cpu_slots=3, devices=[GPU])
    run = new_run(api, name="Holder", devices={"kind": "cpu", "count": 2})
    with transaction() as session:
        assert claim_run(session, database_rig.HOST) is not None
    with reading() as session:
        machine = view(session).machines[0]
    assert [s.run_name for s in machine.cpus] == ["Holder", "Holder", ""] and machine.gpus[0].run_id is None
    assert machine.holders == {run["id"]: "Holder"}
    page = assert_clean(api.browser().get("/system").text)
    used = [a for t, a in page.tags if t == "a" and a.get("href") == f"/runs/{run['id']}"]
    assert {"CPU slot 0: used by Holder", "CPU slot 1: used by Holder"} <= {a.get("aria-label") for a in used}
    text = "".join(page.text)
    assert "No worker is alive" not in text and "A card" in text
    change_host(draining=True)
    assert "takes no new work" in text_of(api)


def test_load_is_shown_where_it_is_known(api: Api) -> None:
    database_rig.add_host(devices=[GPU])
    assert "Load of" not in api.browser().get("/system").text
    change_host(load=LOAD)
    with reading() as session:
        bars = view(session).machines[0].bars
    assert bars == [Bar("CPU", 0.734, "73 %"), Bar("Memory", 0.5, "8.0 / 16.0 GB"), Bar("cuda:0", 0.91, "91 %"),
                    Bar("cuda:0 memory", 0.25, "20.0 / 80.0 GB")]
    change_host(load={"cpu_percent": None, "gpus": [{"device": "cuda:0"}]})
    with reading() as session:
        assert view(session).machines[0].bars == []


def test_the_queue_says_what_each_run_waits_for(api: Api) -> None:
    def reasons() -> dict[str, str]:
        with reading() as session:
            return {run.name: run.reason for run in view(session).queue}

    new_run(api, name="whole")
    assert reasons() == {"whole": "Waits for a worker."}
    database_rig.add_host()
    assert reasons() == {"whole": "Starts in a moment."}
    with transaction() as session:
        claim_run(session, database_rig.HOST)
    new_run(api, name="second", priority=1)
    gpu = database_rig.add_run(name="gpu", devices={"kind": "cuda", "count": 1})
    retry = database_rig.add_run(name="retry")
    with transaction() as session:
        session.get_one(Run, retry).not_before = now(session) + 60
    found = reasons()
    assert list(found) == ["second", "gpu", "retry"], "in the order of the queue"
    assert found["second"] == "Waits for free devices, now used by whole."
    assert found["gpu"] == "No machine that is here now has such devices."
    assert found["retry"].startswith("Starts again in ")
    text = text_of(api)
    assert "priority 1" in text_of_viewer(api) and "It asks for 1 GPU." in text
    assert "/runs?state=queued" in api.browser().get("/system").text
    with transaction() as session:
        move(session, session.get_one(Run, gpu), "cancelled")
    assert "gpu" not in reasons()


def test_what_a_run_asks_for_in_words() -> None:
    assert wants("auto", True) == "one GPU" and wants("auto", False) == "the whole CPU of a machine"
    assert wants({"kind": "cpu", "count": 1}, False) == "1 CPU slot"
    assert wants({"kind": "cuda", "count": 2}, True) == "2 GPUs" and wants(["cuda:0", "cuda:1"], True) == (
        "cuda:0, cuda:1")


def test_jobs_show_their_progress_and_can_be_cancelled(api: Api) -> None:
    database_rig.add_host()
    dataset = api.post("/datasets", {"name": "Harbour", "source": {"kind": "starter"}}).json()
    add_job("tokenizer_train", state="failed", error={}, ended_at=1.0)
    add_job("tokenizer_train", state="failed", error={"message": "<b>It did not work</b>"}, ended_at=1.0)
    with transaction() as session:
        id, _ = claim_job(session, database_rig.HOST)
    assert "<progress aria-label" in api.browser().get("/system").text, "nothing is known of it yet"
    with transaction() as session:
        session.get_one(Job, id).progress = {"done": 1500, "total": 4000, "unit": "rows", "message": "reading"}
    browser = api.browser()
    html = browser.get("/system").text
    page = assert_clean(html)
    text = " ".join("".join(page.text).split())
    assert "Import a dataset: Harbour" in text and "1.5k / 4k rows reading" in text and "<b>It did not work</b>" in text
    assert f"/datasets/{dataset['id']}" in html
    assert [a["data-cancel-job"] for t, a in page.tags if "data-cancel-job" in a] == [id]
    assert browser.post(f"/api/v1/jobs/{id}/cancel").status_code == 202
    button = next(a for t, a in assert_clean(browser.get("/system").text).tags if "data-cancel-job" in a)
    assert "disabled" in button


def test_a_viewer_gets_no_buttons(api: Api) -> None:
    add_job()
    html = api.as_role("watcher", "viewer").get("/system").text
    assert "Import a dataset" in html and "data-cancel-job" not in html


def test_running_jobs_are_never_pushed_out(api: Api) -> None:
    old = add_job(created_at=1.0)
    for n in range(12):
        add_job(state="completed", created_at=10.0 + n, ended_at=20.0)
    with reading() as session:
        rows = view(session).jobs
    assert len(rows) == 10 and rows[0].job.id == old


@pytest.mark.parametrize(("free", "warns"), [(4, True), (6, False)])
def test_a_full_disk_is_said(api: Api, monkeypatch: pytest.MonkeyPatch, free: int, warns: bool) -> None:
    usage = namedtuple("usage", "total used free")(100 * 10**9, (100 - free) * 10**9, free * 10**9)
    monkeypatch.setattr(service.shutil, "disk_usage", lambda path: usage)
    text = text_of(api)
    assert f"{free} GB free of 100 GB" in text and ("The disk is almost full" in text) is warns


def test_the_live_part_is_the_page_without_its_frame(api: Api) -> None:
    database_rig.add_host()
    browser = api.browser()
    part = browser.get("/system", params={"part": "live"}).text
    assert part.lstrip().startswith("<system-live") and part.strip() in browser.get("/system").text


def test_versions_and_names(api: Api, tmp_path: Path) -> None:
    database_rig.add_host()
    change_host(versions={"python": "3.11.7", "torch": "2.13.0"})
    text = text_of(api)
    assert "2.13.0" in text and service.VERSION in text and "installation-1" in text
