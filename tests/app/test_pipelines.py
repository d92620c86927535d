"""Lines of stages by REST: checked as a whole, shown with their runs, steered."""

from __future__ import annotations

import re
import threading
import time

import pytest

from app.core import states
from app.core.db import transaction
from app.core.models import Checkpoint, Run, TokenizerRow
from app.datasets import service as datasets
from tests.app.conftest import Api, statements
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


def test_a_list_costs_the_same_however_many_lines_have_gates(api: Api) -> None:
    def ended_line() -> dict:
        line = new_line(api, [{**STAGES[0], "gate": {"eval_loss": 2.0}}, STAGES[1]])
        for _ in STAGES:
            end(line["runs"][-1]["id"], "starting", "running", "completed", eval_loss=1.5)
            line = api.get(f"/pipelines/{line['id']}").json()
        return line

    lines = [ended_line()]
    assert statements(api, "/pipelines")  # connections and what is kept in memory
    few = statements(api, "/pipelines")
    lines += [ended_line() for _ in range(4)]
    assert statements(api, "/pipelines") == few
    assert api.get("/pipelines").json()["items"] == lines[::-1]
    assert [line["measured"][0]["eval_loss"] for line in lines] == [1.5] * 5


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


def end(run_id: str, *path: str, eval_loss: float | None = None, accuracy: float | None = None) -> None:
    """A run that completes leaves a checkpoint, or a tokenizer."""
    with transaction() as session:
        run = session.get(Run, run_id)
        for to in path:
            if to == "completed" and run.stage == "tokenizer":
                session.add(TokenizerRow(id=run_id, name="t", user_id="local", state="ready", path="/t", source={},
                                         created_at=0))
            elif to == "completed":
                session.add(Checkpoint(id=f"c{run_id[1:]}", run_id=run_id, attempt=1, stage=run.stage, step=2, tokens=1,
                                       bytes=1, eval_loss=eval_loss, path="/c", state="ready", created_at=0))
                states.append_event(session, f"run:{run_id}", "eval", data={"eval_reward_accuracy": accuracy})
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


STUDENT = [{"stage": "tokenizer"}, {"stage": "pretrain", "title": "Teacher", "config": {"max_steps": 2}},
           {"stage": "pretrain", "from_stage": -1, "config": {"max_steps": 2, "num_hidden_layers": 1}},
           {"stage": "distill", "teacher_stage": 1, "config": {"max_steps": 2}}]


def changed(position: int, **changes: object) -> list[dict]:
    """``STUDENT`` with one stage changed."""
    return [{**stage, **changes} if at == position else stage for at, stage in enumerate(STUDENT)]


def test_a_student_is_taught_by_a_stage_of_its_line(api: Api) -> None:
    line = new_line(api, STUDENT)
    assert line["stages"][2]["from_stage"] == -1 and line["stages"][3]["teacher_stage"] == 1
    assert line["stages"][1]["title"] == "Teacher" and "title" not in line["stages"][0]
    for _ in STUDENT[1:]:
        end(line["runs"][-1]["id"], "starting", "running", "completed")
        line = api.get(f"/pipelines/{line['id']}").json()
    vocabulary, teacher, student, distilled = line["runs"]
    assert teacher["name"] == "line: Teacher"
    assert student["base_checkpoint_id"] is None and student["tokenizer_id"] == vocabulary["id"]
    assert distilled["base_checkpoint_id"] == f"c{student['id'][1:]}"
    assert distilled["teacher_checkpoint_id"] == f"c{teacher['id'][1:]}"


@pytest.mark.parametrize("stages, field, word", [
    (changed(3, teacher_stage=None), "stages.3.teacher_stage", "needs a teacher"),
    (changed(3, teacher_stage=3), "stages.3.teacher_stage", "comes before"),
    (changed(3, teacher_stage=9), "stages.3.teacher_stage", "comes before"),
    (changed(3, teacher_stage=0), "stages.3.teacher_stage", "trains no weights"),
    (changed(3, teacher_stage=True), "stages.3.teacher_stage", "integer"),
    (changed(2, teacher_stage=1), "stages.2.teacher_stage", "has no teacher"),
    (changed(3, from_stage=3), "stages.3.from_stage", "comes before"),
    (changed(3, from_stage=-2), "stages.3.from_stage", "-1"),
    (changed(0, from_stage=-1), "stages.0.from_stage", "starts from nothing"),
    (STUDENT[1:2] + changed(3, teacher_stage=0)[2:], "stages.2.teacher_stage", "another vocabulary"),
    ([{"stage": "dpo"}], "stages.0.from_stage", "needs weights to start from"),
    (changed(3, stage="lora", teacher_stage=None, from_stage=-1), "stages.3.from_stage", "needs weights"),
    (changed(0, gate={"loss": 3}), "stages.0.gate", "does not measure loss"),
    (changed(1, gate={"reward_accuracy": 0.9}), "stages.1.gate.reward_accuracy", "does not measure"),
    (STUDENT[:2] + [{"stage": "dpo", "gate": {"reward_accuracy": 90}}], "stages.2.gate.reward_accuracy", "90 % is 0.9"),
    (changed(1, gate={"eval_loss": 3}, config={"eval_interval": 0}), "stages.1.gate.eval_loss", "evaluates nothing"),
    (changed(1, gate={"eval_loss": 0}), "stages.1.gate.eval_loss", "never as small as 0"),
    (changed(3, config={"num_hidden_layers": 2}), "stages.3.config.num_hidden_layers", "model of stage 2 is 1"),
    (STUDENT[:2] + [{"stage": "sft"}, {"stage": "sft", "config": {"preset": "minimind-3", "hidden_size": 768}}],
     "stages.3.config.hidden_size", "model of stage 1"),
    ([{"stage": "pretrain", "config": {"use_moe": True}}, {"stage": "lora", "config": {"lora_targets": ["up_proj"]}}],
     "stages.1.config.lora_targets", "model of stage 0 has experts"),
    (changed(1, title="two\nlines"), "stages.1.title", "one line"),
    (changed(1, title="x" * 61), "stages.1.title", "60"),
    (changed(1, config={"starter": "dialogues"}), "stages.1.config.starter", "learns from: text"),
])
def test_what_cannot_be_in_a_line_is_said_at_its_place(api: Api, stages: list, field: str, word: str) -> None:
    said = problems(api.post("/pipelines", {"name": "x", "stages": stages}))
    assert list(said) == [field] and word in said[field], said


def test_a_student_with_new_weights_takes_the_vocabulary_of_its_teacher(api: Api) -> None:
    line = new_line(api, [STUDENT[1], {**STUDENT[3], "from_stage": -1, "teacher_stage": 0}])
    end(line["runs"][0]["id"], "starting", "running", "completed")
    student = api.get(f"/pipelines/{line['id']}").json()["runs"][1]
    assert student["base_checkpoint_id"] is None and student["tokenizer_id"] is None
    assert student["teacher_checkpoint_id"]


def test_a_dataset_and_a_part_of_the_starter_corpus_are_one_too_many(api: Api) -> None:
    said = problems(api.post("/pipelines", {"name": "x", "stages": [
        {"stage": "pretrain", "dataset_id": add_dataset(), "config": {"starter": "text"}}]}))
    assert list(said) == ["stages.0.config.starter"]


def test_a_dataset_that_goes_while_a_line_is_made_is_missed_at_once(api: Api) -> None:
    """Its later stages have no run yet, so no foreign key keeps it."""
    dataset, held = add_dataset(), threading.Event()

    def delete() -> None:
        with transaction() as session:
            datasets.remove(session, datasets.get_dataset(session, dataset))
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=delete)
    thread.start()
    assert held.wait(10)
    said = problems(api.post("/pipelines", {"name": "x", "stages": [
        STAGES[0], {"stage": "pretrain", "dataset_id": dataset, "config": {}}]}))
    thread.join(10)
    assert list(said) == ["stages.1.dataset_id"]


def test_the_page_shows_what_the_gates_saw(api: Api) -> None:
    line = new_line(api, [{**STAGES[0], "gate": {"eval_loss": 3.5}}, {"stage": "dpo", "config": {"max_steps": 3},
                                                                     "gate": {"reward_accuracy": 0.9}}])
    browser = api.browser()

    def said() -> str:
        return " ".join(re.sub(r"<[^>]+>", " ", browser.get(f"/pipelines/{line['id']}").text).split())

    assert "goes on only if held-out loss ≤ 3.5" in said() and "it is" not in said()
    end(line["runs"][0]["id"], "starting", "running", "completed", eval_loss=3.25)
    assert "held-out loss ≤ 3.5 it is 3.25" in said() and "held-out pairs won ≥ 0.9" in said()
    seen = api.get(f"/pipelines/{line['id']}").json()
    assert seen["measured"] == [{"eval_loss": 3.25}, {}] == api.get("/pipelines").json()["items"][0]["measured"]
    second = seen["runs"][1]["id"]
    end(second, "starting", "running", "completed")
    assert "held-out pairs won ≥ 0.9 not measured" in said()
    api.post(f"/pipelines/{line['id']}/resume")
    assert "1 earlier try" in said() and said().count("earlier try") == 1


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


def test_a_line_that_failed_can_be_given_up_and_its_runs_deleted(api: Api) -> None:
    line = new_line(api, [{"stage": "pretrain", "config": {"max_steps": 5}}])
    run_id = line["runs"][0]["id"]
    end(run_id, "starting", "running", "failed")
    assert api.http.delete(f"/api/v1/runs/{run_id}").status_code == 409
    answer = api.post(f"/pipelines/{line['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert api.post(f"/pipelines/{line['id']}/resume").status_code == 409
    assert api.http.delete(f"/api/v1/runs/{run_id}").status_code == 204
