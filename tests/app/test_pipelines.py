"""Lines of stages by REST: checked as a whole, shown with their runs, steered."""

from __future__ import annotations

from app.core import states
from app.core.db import transaction
from app.core.models import Run
from tests.app.conftest import Api
from tests.app.test_runs import add_dataset, add_tokenizer, problems

HELD = {"lease_owner": "x", "lease_host": "h", "lease_expires_at": 9e9}
STAGES = [{"stage": "pretrain", "config": {"max_steps": 2}}, {"stage": "sft", "config": {"max_steps": 3}}]


def new_line(api: Api, stages: list | None = None, name: str = "line") -> dict:
    answer = api.post("/pipelines", {"name": name, "stages": stages or STAGES})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_line_starts_its_first_stage(api: Api) -> None:
    line = new_line(api)
    assert (line["name"], line["state"], line["error"]) == ("line", "running", None)
    (run,) = line["runs"]
    assert (run["stage"], run["state"], run["pipeline_id"], run["pipeline_position"]) == (
        "pretrain", "queued", line["id"], 0)
    assert run == api.get(f"/runs/{run['id']}").json()
    assert api.get(f"/pipelines/{line['id']}").json() == line
    assert api.get("/pipelines").json() == {"items": [line], "next_cursor": None}
    assert api.get("/pipelines", state="failed").json()["items"] == []
    assert [r["id"] for r in api.get("/runs", pipeline_id=line["id"]).json()["items"]] == [run["id"]]


def test_the_next_stage_stands_in_the_answer_once_it_is_made(api: Api) -> None:
    line = new_line(api)
    end(line["runs"][0]["id"], "starting", "running", "completed")
    line = api.get(f"/pipelines/{line['id']}").json()
    assert [(r["stage"], r["state"]) for r in line["runs"]] == [("pretrain", "completed"), ("sft", "queued")]
    assert api.http.delete(f"/api/v1/runs/{line['runs'][0]['id']}").status_code == 409, "the line needs it"


def test_every_problem_of_every_stage_is_said(api: Api) -> None:
    tokenizer, dialogues = add_tokenizer(), add_dataset("conversations")
    said = problems(api.post("/pipelines", {"name": "x", "stages": [
        {"stage": "pretrain", "config": {"max_steps": 0}, "dataset_id": dialogues},
        {"stage": "sft", "config": {"tokenizer": tokenizer}, "devices": "gpu"},
        {"stage": "poetry"}]}))
    assert said.keys() == {"stages.0.config.max_steps", "stages.0.dataset_id", "stages.1.config.tokenizer",
                           "stages.1.devices", "stages.2.stage"}
    for body, field in (({"stages": STAGES}, "name"), ({"name": "x"}, "stages"),
                        ({"name": "x", "stages": []}, "stages"),
                        ({"name": "x", "stages": [{"stage": "sft", "base_checkpoint_id": "y"}]},
                         "stages.0.base_checkpoint_id"),
                        ({"name": "x", "stages": [{**STAGES[0], "gate": {"beauty": 1}}]}, "stages.0.gate.beauty"),
                        ({"name": "x", "stages": [{**STAGES[0], "gate": {"loss": "low"}}]}, "stages.0.gate.loss")):
        assert field in problems(api.post("/pipelines", body)), body
    both = problems(api.post("/pipelines", {"stages": [
        {"stage": "pretrian", "config": {}}, {**STAGES[0], "gate": {"beauty": 1}}, {"config": {}, "devices": "gpu"}]}))
    assert both.keys() == {"name", "stages.0.stage", "stages.1.gate.beauty", "stages.2.stage", "stages.2.devices"}
    assert api.get("/pipelines").json()["items"] == [] and api.get("/runs").json()["items"] == []


def end(run_id: str, *path: str) -> None:
    with transaction() as session:
        run = session.get(Run, run_id)
        for to in path:
            states.move(session, run, to, values=HELD if to == "starting" else None)


def test_a_line_keeps_what_its_stages_stand_on(api: Api) -> None:
    """A failed line can be resumed, so nothing of it may be deleted: a stage would start from random weights."""
    line = new_line(api)
    first = line["runs"][0]["id"]
    end(first, "starting", "running", "completed")
    second = api.get(f"/pipelines/{line['id']}").json()["runs"][1]["id"]
    end(second, "starting", "failed")
    assert api.get(f"/pipelines/{line['id']}").json()["state"] == "failed"
    for id in (first, second):
        assert api.http.delete(f"/api/v1/runs/{id}").status_code == 409
    with transaction() as session:  # as an older version let it happen
        session.delete(session.get(Run, first))
    answer = api.post(f"/pipelines/{line['id']}/resume")
    assert answer.status_code == 409 and "deleted" in answer.json()["error"]["message"]
    with transaction() as session:
        session.delete(session.get(Run, second))
    assert api.post(f"/pipelines/{line['id']}/resume").status_code == 409


def test_a_pause_does_not_hide_why_a_line_stopped(api: Api) -> None:
    line = new_line(api, [{**STAGES[0], "gate": {"eval_loss": 0.1}}, STAGES[1]])
    end(line["runs"][0]["id"], "starting", "running", "completed")
    before = api.get(f"/pipelines/{line['id']}").json()
    assert (before["state"], before["error"]["class"]) == ("paused", "GATE")
    assert api.post(f"/pipelines/{line['id']}/pause").json() == before


def test_a_first_tokenizer_and_a_gate_are_kept(api: Api) -> None:
    tokenizer = add_tokenizer()
    line = new_line(api, [{"stage": "pretrain", "config": {"tokenizer": tokenizer}, "gate": {"eval_loss": 2.5},
                           "devices": {"kind": "cpu", "count": 2}}, STAGES[1]])
    assert line["stages"][0]["gate"] == {"eval_loss": 2.5}
    assert line["runs"][0]["tokenizer_id"] == tokenizer
    assert line["runs"][0]["devices"] == {"kind": "cpu", "count": 2}


def test_wishes(api: Api) -> None:
    id = new_line(api)["id"]

    def wish(what: str) -> tuple[int, str, str]:
        answer = api.post(f"/pipelines/{id}/{what}")
        body = answer.json()
        return (answer.status_code, body.get("state"), body["runs"][0]["state"]) if "runs" in body else (
            answer.status_code, "", "")

    assert wish("pause") == (202, "paused", "paused")
    assert wish("pause") == (202, "paused", "paused")
    assert wish("resume") == (202, "running", "queued")
    assert wish("resume") == (202, "running", "queued")
    assert wish("cancel") == (202, "cancelled", "cancelled")
    assert wish("cancel") == (202, "cancelled", "cancelled")
    assert wish("pause")[0] == wish("resume")[0] == 409
    told = api.get(f"/pipelines/{id}/events").json()["items"]
    assert [e["seq"] for e in told] == list(range(1, len(told) + 1))
    assert [e["data"]["state"] for e in told if e["type"] == "state"] == ["running", "paused", "running", "cancelled"]
