"""The queue for people: order, reasons, forecasts, maintenance, attempts; and clicks that come twice."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.core import channels
from app.core.db import now, reading, transaction
from app.core.models import Attempt, Dataset, Host, Run
from app.core.queue import QUEUE_ORDER, claim_run
from tests import database_rig
from tests.app.conftest import Api, statements
from tests.app.test_run_pages import set_run, text_of
from tests.app.test_runs import TINY, add_checkpoint, add_dataset, end, new_run

GPUS = [{"id": f"cuda:{n}", "name": "A card", "memory_bytes": 80 << 30} for n in range(2)]
GPU = {"kind": "cuda", "count": 1}


def order(api: Api) -> list[str]:
    with reading() as session:
        return [run.name for run in session.query(Run).filter(Run.state == "queued").order_by(*QUEUE_ORDER)]


def change_host(id: str, **values: Any) -> None:
    with transaction() as session:
        for name, value in values.items():
            setattr(session.get_one(Host, id), name, value)


def claim(host: str = database_rig.HOST) -> str:
    with transaction() as session:
        claimed = claim_run(session, host)
    assert claimed is not None
    return claimed.run_id


def waits(api: Api, run: dict) -> str | None:
    return api.get(f"/runs/{run['id']}").json()["waiting_for"]


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# -- order ---------------------------------------------------------------------------------------------------------


def test_a_run_moves_up_down_first_and_last(api: Api) -> None:
    runs = {name: new_run(api, name=name) for name in "abcd"}

    def move(name: str, to: str) -> str:
        answer = api.post(f"/runs/{runs[name]['id']}/move", {"to": to})
        assert answer.status_code == 202 and answer.json()["id"] == runs[name]["id"]
        return "".join(order(api))

    assert [move("c", "up"), move("c", "up"), move("c", "up")] == ["acbd", "cabd", "cabd"]
    assert [move("c", "down"), move("a", "last"), move("a", "down")] == ["acbd", "cbda", "cbda"]
    assert [move("d", "first"), move("d", "first"), move("b", "last")] == ["dcba", "dcba", "dcab"]
    with reading() as session:
        assert [e["type"] for e in api.get(f"/runs/{runs['a']['id']}/events").json()["items"]] == ["state"]
        assert {r.state for r in session.query(Run)} == {"queued"}
    for body in ({"to": "sideways"}, {}, {"to": "up", "by": 2}):
        assert api.post(f"/runs/{runs['a']['id']}/move", body).status_code == 422
    assert api.post("/runs/nobody/move", {"to": "up"}).status_code == 404


def test_past_a_neighbour_of_another_priority_it_takes_that_one(api: Api) -> None:
    runs = {name: new_run(api, name=name, priority=p) for name, p in (("a", 5), ("b", 5), ("c", 1), ("d", 0))}

    def move(name: str, to: str) -> tuple[str, int]:
        priority = api.post(f"/runs/{runs[name]['id']}/move", {"to": to}).json()["priority"]
        return "".join(order(api)), priority

    assert move("c", "up") == ("acbd", 5)
    assert move("d", "first") == ("dacb", 5)
    assert move("a", "last") == ("dcba", 5)
    api.http.patch(f"/api/v1/runs/{runs['d']['id']}", json={"priority": -3})
    assert "".join(order(api)) == "cbad"
    assert move("c", "last") == ("badc", -3)
    assert move("b", "down") == ("abdc", 5)


def test_so_many_moves_between_two_that_their_keys_are_used_up(api: Api) -> None:
    runs = {name: new_run(api, name=name) for name in "abcd"}
    with transaction() as session:  # as close as two floats of this size are
        for name, run in runs.items():
            session.get(Run, run["id"]).queue_key = 1.7e9 if name in "ab" else 1.7e9 + 2.5e-7
    for _ in range(60):
        before = order(api)
        api.post(f"/runs/{runs[before[3]]['id']}/move", {"to": "up"})
        assert order(api) == [before[0], before[1], before[3], before[2]]
        before = order(api)
        api.post(f"/runs/{runs[before[0]]['id']}/move", {"to": "down"})
        assert order(api) == [before[1], before[0], before[2], before[3]]


def test_two_who_move_at_once_lose_nothing(api: Api) -> None:
    runs = [new_run(api, name=str(n)) for n in range(14)]
    together = threading.Barrier(8)

    def up(_: int) -> int:
        together.wait()
        return api.post(f"/runs/{runs[12]['id']}/move", {"to": "up"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(up, range(8))) == {202}
    assert order(api) == [str(n) for n in (0, 1, 2, 3, 12, 4, 5, 6, 7, 8, 9, 10, 11, 13)]

    def first(n: int) -> int:
        together.wait()
        return api.post(f"/runs/{runs[n]['id']}/move", {"to": "first" if n % 2 else "last"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(first, range(8))) == {202}
    now_ = order(api)
    assert set(now_[:4]) == {"1", "3", "5", "7"} and set(now_[-4:]) == {"0", "2", "4", "6"}
    assert sorted(now_, key=int) == [str(n) for n in range(14)]


def test_a_claim_follows_the_new_order_and_workers_are_rung(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    database_rig.add_host()
    first, second = new_run(api), new_run(api)
    rung: list[str] = []
    monkeypatch.setattr(channels, "ring", lambda kind="run": rung.append(kind))
    api.post(f"/runs/{second['id']}/move", {"to": "up"})
    assert rung == ["run"] and claim() == second["id"]
    answer = api.post(f"/runs/{second['id']}/move", {"to": "down"})
    assert answer.status_code == 409 and "starting" in answer.json()["error"]["message"]
    assert first["id"] == api.get("/system").json()["queue"]["next"][0] and rung == ["run"]


@pytest.mark.parametrize(("path", "refused"), [
    (("starting", "running"), {"move", "delete"}),
    (("starting", "running", "cancelling"), {"move", "delete", "pause", "resume"}),
    (("starting", "running", "completed"), {"move", "pause", "resume", "cancel"}),
    (("starting", "failed"), {"move", "pause", "resume", "cancel"}),
    (("cancelled",), {"move", "pause", "resume"}),
    (("paused",), {"move", "delete"}),
])
def test_what_cannot_be_is_409_with_the_present_state(api: Api, path: tuple[str, ...], refused: set[str]) -> None:
    run = new_run(api)
    end(run["id"], *path)
    if path[-1] in ("cancelling", "paused"):
        with transaction() as session:
            session.get(Run, run["id"]).desired = "cancel" if path[-1] == "cancelling" else "pause"
    before = api.get(f"/runs/{run['id']}").json()
    for wish in sorted(refused):
        answer = (api.http.delete(f"/api/v1/runs/{run['id']}") if wish == "delete"
                  else api.post(f"/runs/{run['id']}/{wish}", {"to": "up"} if wish == "move" else None))
        error = answer.json()["error"]
        assert answer.status_code == 409 and error["field"] == "state" and path[-1] in error["message"], (wish, error)
    assert api.get(f"/runs/{run['id']}").json() == before


# -- clicks that come twice ------------------------------------------------------------------------------------------


def clicks(send: Callable[[int], Any], count: int = 20) -> list[Any]:
    together = threading.Barrier(count)

    def click(n: int) -> Any:
        together.wait()
        return send(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(click, range(count)))


def test_twenty_clicks_with_one_key_have_one_effect(api: Api) -> None:
    answers = clicks(lambda n: api.post("/runs", {"stage": "pretrain", "config": TINY}, **{"Idempotency-Key": "one"}))
    assert {a.status_code for a in answers} == {201} and len({a.json()["id"] for a in answers}) == 1
    names = [new_run(api, name=name)["name"] for name in ("a", "b", "c")]
    last = api.get("/runs", text="c").json()["items"][0]
    start = order(api)
    answers = clicks(lambda n: api.post(f"/runs/{last['id']}/move", {"to": "up"}, **{"Idempotency-Key": "m"}))
    assert {a.status_code for a in answers} == {202}
    assert order(api) == [start[0], "a", "c", "b"] and names == ["a", "b", "c"]


def test_twenty_clicks_with_keys_of_their_own_have_one_effect_each(api: Api) -> None:
    answers = clicks(lambda n: api.post("/runs", {"stage": "pretrain", "config": TINY}, **{"Idempotency-Key": str(n)}))
    assert {a.status_code for a in answers} == {201} and len({a.json()["id"] for a in answers}) == 20
    run = answers[0].json()
    # a wish that stands is not a second one: one move, one event, whoever clicks how often
    answers = clicks(lambda n: api.post(f"/runs/{run['id']}/pause", **{"Idempotency-Key": f"p{n}"}))
    assert {(a.status_code, a.json()["state"]) for a in answers} == {(202, "paused")}
    answers = clicks(lambda n: api.post(f"/runs/{run['id']}/cancel", **{"Idempotency-Key": f"c{n}"}))
    assert {(a.status_code, a.json()["state"]) for a in answers} == {(202, "cancelled")}
    states = [e["data"]["state"] for e in api.get(f"/runs/{run['id']}/events").json()["items"]]
    assert states == ["queued", "paused", "cancelled"]
    answers = clicks(lambda n: api.post(f"/runs/{run['id']}/resume", **{"Idempotency-Key": f"r{n}"}))
    assert {a.status_code for a in answers} == {409}


# -- why it waits ----------------------------------------------------------------------------------------------------


def test_each_reason_has_its_sentence(api: Api) -> None:
    run = new_run(api, name="mine", devices=GPU)
    assert waits(api, run) == "Waits for a worker."
    database_rig.add_host("box", devices=GPUS)
    assert waits(api, run) == "Starts in a moment."
    change_host("box", problem="It runs code 2, the studio runs 1.")
    assert waits(api, run) == "Waits for a worker: box takes no runs. It runs code 2, the studio runs 1."
    change_host("box", problem=None, draining=True)
    assert waits(api, run) == "Waits for a worker: box takes no new work and will stop."
    database_rig.add_host("small")
    assert waits(api, run) == ("Only box has such devices, and it takes no runs. "
                               "It takes no new work and will stop.")
    change_host("box", draining=False, last_seen_at=1.0)
    assert waits(api, run) == "Only box has such devices, and its worker is away."
    with transaction() as session:
        session.get_one(Host, "box").last_seen_at = now(session)
        until = now(session) + 60
    bad = [{"id": d["id"], "reason": "Its driver failed.", "until": until + n} for n, d in enumerate(GPUS)]
    change_host("box", bad_devices=bad)
    assert waits(api, run).startswith("Waits for cuda:0 of box, which is left alone for ")
    assert waits(api, run).endswith(": Its driver failed.")
    change_host("box", bad_devices=bad[:1])
    assert waits(api, run) == "Starts in a moment."
    change_host("box", bad_devices=[], devices=[{**GPUS[0], "problem": "It fell off the bus."}])
    assert waits(api, run) == "Waits for cuda:0 of box, which cannot be used: It fell off the bus."
    with transaction() as session:
        session.get(Run, run["id"]).not_before = now(session) + 30
    assert waits(api, run).startswith("Starts again in ") and "after an attempt that failed" in waits(api, run)
    with transaction() as session:
        session.get(Run, run["id"]).base_checkpoint_id = "gone"
    assert waits(api, run).startswith("It cannot start: The base checkpoint ")


def test_one_that_has_saved_is_not_refused_for_the_base_that_another_lacks(api: Api, tmp_path: Path) -> None:
    database_rig.add_host()
    runs = [new_run(api, name="fresh"), new_run(api, name="begun")]
    with transaction() as session:
        for run in runs:
            session.get(Run, run["id"]).base_checkpoint_id = "gone"
        session.get(Run, runs[1]["id"]).attempt = 1
    add_checkpoint(tmp_path, runs[1]["id"])
    said = {run["name"]: run["waiting_for"] for run in api.get("/runs", state="queued").json()["items"]}
    assert said["fresh"].startswith("It cannot start: The base checkpoint ") and said["begun"] == "Starts in a moment."


def test_it_is_said_who_has_the_devices_and_who_comes_first(api: Api) -> None:
    database_rig.add_host(devices=GPUS)
    for name in ("one", "two"):
        new_run(api, name=name, devices=GPU)
        claim()
    named, any_ = new_run(api, name="named", devices=["cuda:1"]), new_run(api, name="any", devices=GPU)
    cpu = new_run(api, name="cpu", devices={"kind": "cpu", "count": 1})
    assert waits(api, named) == "Waits for cuda:1, now used by two."
    assert waits(api, any_) == ("It waits for its turn: 1 ahead of it in the queue. "
                                "Waits for free devices, now used by one, two.")
    assert waits(api, cpu) == "Starts in a moment.", "nobody ahead of it wants a core"
    assert waits(api, {"id": any_["id"]}) == api.get("/runs", state="queued").json()["items"][1]["waiting_for"]
    held = api.get("/runs", state="starting").json()["items"]
    assert [r["waiting_for"] for r in held] == [None, None]
    third = database_rig.add_run(devices={"kind": "cuda", "count": 3})  # asked for when there were more
    assert waits(api, {"id": third}) == "No machine that is here now has such devices."


def test_reasons_cost_the_same_however_many_wait(api: Api) -> None:
    database_rig.add_host(devices=GPUS)

    for _ in range(3):
        database_rig.add_run(devices=GPU)
    assert statements(api, "/runs") and statements(api, "/system")  # connections and what is kept in memory
    few = {path: statements(api, path) for path in ("/runs", "/system")}
    for _ in range(30):
        database_rig.add_run(devices=GPU)
    assert {path: statements(api, path) for path in few} == few


def test_pages_say_it_in_the_readers_language(api: Api) -> None:
    run = new_run(api)
    browser = api.browser()
    browser.headers["Accept-Language"] = "pt"
    for path in (f"/runs/{run['id']}", "/runs", "/system"):
        text = text_of(browser.get(path).text)
        assert "Waits for a worker" not in text, path
    assert browser.get(f"/api/v1/runs/{run['id']}").json()["waiting_for"] == "Waits for a worker."


# -- forecast --------------------------------------------------------------------------------------------------------


def finished(name: str, seconds: float, steps: int, **values: Any) -> str:
    """A completed run that took so long for so many steps on the host ``here``."""
    run_id = database_rig.add_run(name=name, **values)
    with transaction() as session:
        session.add(Attempt(run_id=run_id, number=1, state="closed", host_id=database_rig.HOST, boot_id="boot",
                            started_at=100.0, ended_at=100.0 + seconds, events_offset=0))
    set_run(run_id, state="completed", attempt=1, progress={"step": steps, "total_steps": steps, "eta_s": 0.0})
    return run_id


def test_start_and_end_follow_from_measured_speed(api: Api) -> None:
    database_rig.add_host()
    config = {"preset": "tiny-cpu", "max_steps": 100}
    finished("other model", 999.0, 10, config={"preset": "minimind-3"})
    finished("earlier", 100.0, 50, config={"preset": "tiny-cpu", "max_steps": 50})
    running = new_run(api, config=config)
    claim()
    set_run(running["id"], state="running", attempt=1, progress={"step": 40, "total_steps": 100, "eta_s": 120.0},
            updated_at=now_of())
    shown = api.get(f"/runs/{running['id']}").json()
    assert shown["predicted_start_at"] is None
    assert at(shown["predicted_end_at"]) == pytest.approx(now_of() + 120, abs=10)
    second, third = new_run(api, config=config), new_run(api, config={"max_minutes": 5})
    fourth, behind = new_run(api, config={"preset": "minimind-3", "max_steps": 7, "batch_size": 3}), new_run(api)
    shown = [api.get(f"/runs/{run['id']}").json() for run in (second, third, fourth, behind)]
    starts, ends = [s["predicted_start_at"] for s in shown], [s["predicted_end_at"] for s in shown]
    assert at(starts[0]) == pytest.approx(now_of() + 120, abs=10), "after the one that runs"
    assert at(ends[0]) - at(starts[0]) == pytest.approx(200, abs=2), "100 steps, 2 s each as before"
    assert abs(at(starts[1]) - at(ends[0])) <= 1 and at(ends[1]) - at(starts[1]) == pytest.approx(300, abs=2)
    assert abs(at(starts[2]) - at(ends[1])) <= 1 and ends[2] is None, "nobody has measured such a run"
    assert (starts[3], ends[3]) == (None, None), "it waits for what nobody knows"
    page = api.browser().get("/system").text
    assert re.search(r"Begins about <time [^>]*>[^<]+</time>, done about <time [^>]*>[^<]+</time>\.", page)
    assert "; how long it will take is not known yet." in page
    zh = api.browser().get("/system", headers={"Accept-Language": "zh"}).text
    assert re.search(r"预计 <time [^>]*>[^<]+</time> 开始，<time [^>]*>[^<]+</time> 完成。", zh)
    api.post("/system/queue", {"paused": True})
    assert api.get(f"/runs/{second['id']}").json()["predicted_start_at"] is None


def test_the_length_of_the_data_counts_where_no_steps_are_asked_for(api: Api) -> None:
    database_rig.add_host()
    finished("earlier", 100.0, 50, config={"preset": "tiny-cpu", "batch_size": 4, "max_seq_len": 256,
                                           "accumulation_steps": 1, "max_steps": 50})
    dataset = add_dataset()
    config = {"preset": "tiny-cpu", "batch_size": 4, "max_seq_len": 256, "accumulation_steps": 1}
    with transaction() as session:
        row = session.get(Dataset, dataset)
        row.tokens, row.path = 1024 * 30, __file__
    run = database_rig.add_run(dataset_id=dataset, config=config | {"epochs": 2})
    shown = api.get(f"/runs/{run}").json()
    assert at(shown["predicted_end_at"]) - at(shown["predicted_start_at"]) == pytest.approx(120, abs=2)


def now_of() -> float:
    with reading() as session:
        return now(session)


# -- maintenance -----------------------------------------------------------------------------------------------------


def test_the_queue_is_paused_and_goes_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    database_rig.add_host()
    running, waiting = new_run(api, name="runs"), new_run(api, name="waits")
    claim()
    goes_on = {"paused": False, "since": None, "by": None, "note": None}
    assert api.get("/system").json()["queue"] == goes_on | {"next": [waiting["id"]]}
    assert api.post("/system/queue", {"paused": False}).json() == goes_on
    paused = api.post("/system/queue", {"paused": True, "note": "a new disk"})
    assert paused.status_code == 200 and paused.json() == {
        "paused": True, "since": paused.json()["since"], "by": "local admin", "note": "a new disk"}
    assert at(paused.json()["since"]) == pytest.approx(now_of(), abs=60)
    assert api.post("/system/queue", {"paused": True}).json() == paused.json(), "it stands already"
    assert waits(api, waiting) == "The queue is paused by local admin: a new disk"
    assert api.get(f"/runs/{running['id']}").json()["state"] == "starting", "what runs goes on"
    with transaction() as session:
        assert claim_run(session, database_rig.HOST) is None
    assert "studio_queue_paused 1" in api.http.get("/metrics").text
    browser = api.browser()
    for path in ("/system", "/runs", f"/runs/{waiting['id']}"):
        assert "The queue is paused by local admin: a new disk" in text_of(browser.get(path).text), path
    assert 'data-queue="resume"' in browser.get("/runs").text
    rung: list[str] = []
    monkeypatch.setattr(channels, "ring", lambda kind="run": rung.append(kind))
    assert api.post("/system/queue", {"paused": False}).json() == goes_on
    assert sorted(rung) == ["job", "run"] and "studio_queue_paused 0" in api.http.get("/metrics").text
    assert "The queue is paused" not in text_of(browser.get("/runs").text)


def test_the_note_of_a_paused_queue_is_changed_and_cleared(api: Api) -> None:
    first = api.post("/system/queue", {"paused": True, "note": "a new disk"}).json()
    anna = api.as_role("anna", "admin")
    for note, stands in (("  two disks ", "two disks"), (None, "two disks"), ("", None), (None, None), (" ", None)):
        said = anna.post("/api/v1/system/queue", json={"paused": True, "note": note}).json()
        assert said == first | {"note": stands}, (note, "who paused it, and when, stands")
    run = new_run(api)
    assert waits(api, run) == "The queue is paused by local admin."
    answer = api.post("/system/queue", {"paused": True, "note": "x" * 600}).json()["error"]
    assert answer["field"] == "note" and "500 characters" in answer["message"]
    for note in ("two\nlines", "two\u2028lines", "a\ttab"):
        answer = api.post("/system/queue", {"paused": True, "note": note})
        assert answer.status_code == 422 and "one line" in answer.text, note


def test_only_an_admin_pauses_the_queue(api: Api) -> None:
    for name, role in (("mia", "member"), ("vera", "viewer")):
        client = api.as_role(name, role)
        answer = client.post("/api/v1/system/queue", json={"paused": True})
        assert answer.status_code == 403 and "admin" in answer.text
        assert "queue-dialog" not in client.get("/system").text
    assert api.as_role("anna", "admin").post("/api/v1/system/queue", json={"paused": True}).json()["by"] == "anna"
    for body in ({}, {"paused": "yes"}, {"paused": True, "note": "x" * 501}, {"paused": True, "note": "a\x00b"}):
        assert api.post("/system/queue", body).status_code == 422, body
    member = api.as_role("max", "member").get("/runs").text
    assert "The queue is paused by anna." in text_of(member) and 'data-queue="resume"' not in member


# -- pages -----------------------------------------------------------------------------------------------------------


def test_the_queue_can_be_steered_from_its_page(api: Api) -> None:
    runs = [new_run(api, name=name, priority=p) for name, p in (("a", 2), ("b", 0))]
    html = api.browser().get("/system").text
    for name, to in (("a", "down"), ("b", "up")):
        assert f'aria-label="Move {name} {to}"' in html
    assert f'data-priority="{runs[0]["id"]}"' in html and "queue-dialog" in html
    watched = api.as_role("watcher", "viewer").get("/system").text
    assert "data-move" not in watched and "data-priority" not in watched and "priority 2" in text_of(watched)
    page = api.browser().get(f"/runs/{runs[1]['id']}").text
    assert f'data-run="{runs[1]["id"]}"' in page and 'data-move="first"' in page


def test_machines_say_what_is_wrong_with_them(api: Api) -> None:
    database_rig.add_host("box", devices=GPUS)
    with transaction() as session:
        until = now(session) + 60
    change_host("box", problem="Its run directory is not the studio's.",
                bad_devices=[{"id": "cuda:1", "reason": "An attempt ended with a GPU error.", "until": until}])
    text = text_of(api.browser().get("/system").text)
    assert "Its run directory is not the studio's." in text and "takes no runs" in text
    assert "cuda:1 is left alone: An attempt ended with a GPU error." in text and "All free." not in text
    host = api.get("/system").json()["hosts"][0]
    assert host["problem"] and [b["id"] for b in host["bad_devices"]] == ["cuda:1"]


def test_attempts_say_where_they_ran_and_how_they_ended(api: Api) -> None:
    database_rig.add_host("box", cpu_slots=2)
    run = new_run(api)
    claim("box")
    assert api.get(f"/runs/{run['id']}/attempts").json()["items"][0]["outcome"] == "running"
    error = {"class": "SIGNAL", "message": "A rank was killed.", "hint": "It goes on."}
    with transaction() as session:
        first = session.get(Attempt, (run["id"], 1))
        first.state, first.ended_at, first.error = "closed", now(session), error
        first.result = {"status": None, "step": None, "checkpoint": None, "state": "recovering"}
        common = {"run_id": run["id"], "host_id": "gone", "boot_id": "b", "events_offset": 0}
        for number, became in ((2, "queued"), (3, "paused"), (4, "completed"), (5, "cancelled"), (6, None)):
            session.add(Attempt(**common, number=number, state="closed", started_at=100.0, ended_at=160.0,
                                resumed_from_step=40, result=became and {"state": became}))
        session.add(Attempt(**common, number=7, state="closed", started_at=100.0, ended_at=101.0, result={
            "state": "failed"}, error={"class": "DATA", "message": "<b>bad</b>", "hint": None}))
    items = api.get(f"/runs/{run['id']}/attempts").json()["items"]
    assert [(i["number"], i["outcome"]) for i in items] == [
        (7, "failed"), (6, "ended"), (5, "stopped"), (4, "completed"), (3, "paused"), (2, "handed back"),
        (1, "interrupted")]
    assert items[-1].items() >= {"host": "box", "devices": ["cpu:0", "cpu:1"], "error": error}.items()
    assert items[0]["devices"] is None and items[0]["host"] == "gone"
    text = text_of(api.browser().get(f"/runs/{run['id']}").text)
    for fact in ("Attempt 7", "on cpu:0, cpu:1 of box", "A rank was killed.", "<b>bad</b>", "from step 40",
                 "saved and handed back"):
        assert fact in text, fact
    assert api.get("/runs/nobody/attempts").status_code == 404
