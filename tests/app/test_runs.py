"""Runs by REST: created after every check, listed, changed, steered, deleted."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from app.core import states
from app.core.db import now, reading, transaction
from app.core.models import Checkpoint, Dataset, Event, Run, TokenizerRow, new_id
from minimind.manifest import Manifest
from tests import database_rig
from tests.app.conftest import Api

TINY = {"preset": "tiny-cpu", "max_steps": 60}
FIELDS = {"id", "name", "stage", "state", "desired", "attempt", "progress", "config", "dataset_id",
          "base_checkpoint_id", "teacher_checkpoint_id", "pipeline_id", "created_at", "started_at", "ended_at", "error"}
PROGRESS = {"step", "total_steps", "tokens", "loss", "eval_loss", "tokens_per_s", "eta_s", "phase", "phase_done",
            "phase_total", "phase_unit"}


def new_run(api: Api, **body: object) -> dict:
    answer = api.post("/runs", {"stage": "pretrain", "config": TINY, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


def add_dataset(layout: str = "text", state: str = "ready") -> str:
    with transaction() as session:
        row = Dataset(id=new_id(), name="harbour", user_id="local", layout=layout, state=state, warnings=[],
                      source={"kind": "upload", "filename": "x.jsonl"}, path="/nowhere", created_at=now(session))
        session.add(row)
    return row.id


def add_tokenizer(fingerprint: str = "f" * 64, state: str = "ready") -> str:
    with transaction() as session:
        row = TokenizerRow(id=new_id(), name="words", user_id="local", state=state, fingerprint=fingerprint,
                           vocab_size=600, path="/nowhere", source={"kind": "upload"}, created_at=now(session))
        session.add(row)
    return row.id


def add_checkpoint(directory: Path, run_id: str, step: int = 10, fingerprint: str = "f" * 64, **model: int) -> str:
    directory = directory / f"checkpoint-{new_id()}"
    directory.mkdir()
    Manifest(stage="pretrain", step=step, tokens=step * 100, attempt=1, world_size=1, loss=2.5, eval_loss=None,
             model={"hidden_size": 128, **model}, config_fingerprint="", data_fingerprint="",
             tokenizer_fingerprint=fingerprint, lineage={}, versions={}, created_at=1.0).seal(directory)
    with transaction() as session:
        row = Checkpoint(id=new_id(), run_id=run_id, attempt=1, stage="pretrain", step=step, tokens=step * 100,
                         bytes=1000, loss=2.5, eval_loss=None, path=str(directory), state="ready",
                         tokenizer_fingerprint=fingerprint, created_at=now(session))
        session.add(row)
    return row.id


def problems(answer) -> dict[str, str]:
    """Field -> message of a refusal."""
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    return {p["field"]: f"{p['message']} {p['hint'] or ''}" for p in error.get("problems") or [error]}


def test_a_run_is_created_as_the_contract_says(api: Api) -> None:
    run = new_run(api, name="first", priority=3, tags=["a"], notes="why")
    assert run.keys() >= FIELDS and run["progress"].keys() == PROGRESS
    assert (run["state"], run["desired"], run["attempt"], run["error"]) == ("queued", "run", 0, None)
    assert run["config"].items() >= TINY.items() and not run["config"].keys() & {"data_path", "device", "out"}
    assert run["created_at"].endswith("Z") and run["started_at"] is None
    assert api.get(f"/runs/{run['id']}").json() == run
    assert api.get("/runs").json() == {"items": [run], "next_cursor": None}
    assert [e["type"] for e in api.get(f"/runs/{run['id']}/events").json()["items"]] == ["state"]


def test_a_run_shows_its_phase_and_a_small_curve(api: Api) -> None:
    run = new_run(api)
    assert run["sparkline"] == []
    points = [[s, 2.0] for s in range(1, 31)]
    with transaction() as session:
        session.get(Run, run["id"]).progress = {
            "step": 40, "loss": None, "phase": "tokenize", "phase_done": 3, "phase_total": 9.5,
            "phase_unit": "MB", "sparkline": points, "sparkline_stride": 4, "sparkline_newest": [33, 1.5]}
    shown = api.get(f"/runs/{run['id']}").json()
    assert shown["sparkline"] == [*points[:29], [33, 1.5]]
    assert shown["progress"] == dict.fromkeys(PROGRESS) | {
        "step": 40, "phase": "tokenize", "phase_done": 3, "phase_total": 9.5, "phase_unit": "MB"}
    assert api.get("/runs").json()["items"] == [shown]


def test_every_problem_is_said_at_once(api: Api) -> None:
    database_rig.add_host(cpu_slots=2)
    said = problems(api.post("/runs", {
        "stage": "pretrain", "priority": "high", "nodes": 4, "colour": "red", "dataset_id": "nope", "name": "x" * 300,
        "base_checkpoint_id": "nope", "devices": {"kind": "cuda", "count": 64},
        "config": {"learnig_rate": 1, "data_path": "/etc/passwd", "max_steps": 0, "tokenizer": "nope"}}))
    assert said.keys() == {"priority", "nodes", "colour", "dataset_id", "name", "base_checkpoint_id", "devices",
                           "config.learnig_rate", "config.data_path", "config.max_steps", "config.tokenizer"}
    assert "learning_rate" in said["config.learnig_rate"] and "dataset_id" in said["config.data_path"]
    assert "2 CPU cores" in said["devices"]
    for message in said.values():
        assert message[0].isupper() and "\n" not in message
    assert api.get("/runs").json()["items"] == []


@pytest.mark.parametrize("key, meant", [("lr", "learning_rate"), ("bogus", ""), ("n_layer", "num_hidden_layers"),
                                        ("max_step", "max_steps"), ("", "")])
def test_an_unknown_option_names_the_nearest_known_one(api: Api, key: str, meant: str) -> None:
    (problem,) = api.post("/runs", {"stage": "pretrain", "config": {key: 1}}).json()["error"]["problems"]
    assert problem["field"] == f"config.{key}" and f"'{meant}" in problem["hint"]


def test_infinity_is_no_number_of_an_option(api: Api) -> None:
    """``1e999`` is JSON, and Python reads it as infinity."""
    for name in ("grad_clip", "rope_theta", "max_minutes"):
        answer = api.http.post("/api/v1/runs", headers={"Content-Type": "application/json"},
                               content=b'{"stage": "pretrain", "config": {"%s": 1e999}}' % name.encode())
        assert f"config.{name}" in problems(answer)


@pytest.mark.parametrize("body, field", [
    ({}, "stage"),
    ({"stage": "pretrian"}, "stage"),
    ({"stage": 7}, "stage"),
    ({"stage": "pretrain", "config": []}, "config"),
    ({"stage": "pretrain", "config": {"hidden_size": 100, "num_attention_heads": 8}}, "config.hidden_size"),
    ({"stage": "pretrain", "config": {"preset": "tiny-cqu"}}, "config.preset"),
    ({"stage": "pretrain", "devices": "gpu"}, "devices"),
    ({"stage": "pretrain", "devices": []}, "devices"),
    ({"stage": "pretrain", "devices": {"kind": "cpu", "count": True}}, "devices"),
    ({"stage": "pretrain", "priority": True}, "priority"),
    ({"stage": "pretrain", "priority": 1.5}, "priority"),
    ({"stage": "pretrain", "priority": 10**12}, "priority"),
    ({"stage": "tokenizer", "devices": {"kind": "cpu", "count": 2}}, "devices"),
    ({"stage": "pretrain", "name": "a\nb"}, "name"),
    ({"stage": "pretrain", "name": "a\x00b"}, "name"),
    ({"stage": "pretrain", "name": "   "}, "name"),
    ({"stage": "pretrain", "tags": ["\x07"]}, "tags.0"),
    ({"stage": "pretrain", "notes": "a\x00b"}, "notes"),
    ({"stage": "pretrain", "config": {"wandb_project": 3}}, "config.wandb_project"),
    ({"stage": "pretrain", "config": {"max_steps": True}}, "config.max_steps"),
    ({"stage": "pretrain", "config": {"batch_size": "2"}}, "config.batch_size"),
    ({"stage": "pretrain", "config": {"use_compile": "yes"}}, "config.use_compile"),
    ({"stage": "pretrain", "config": {"max_steps": 10**30}}, "config.max_steps"),
    ({"config": {"bogus": 1}, "devices": "x"}, "devices"),
])
def test_what_cannot_be(api: Api, body: dict, field: str) -> None:
    assert field in problems(api.post("/runs", body))
    assert api.get("/runs").json()["items"] == []


def test_what_a_run_stands_on_must_fit(api: Api) -> None:
    dialogues, importing = add_dataset("conversations"), add_dataset(state="importing")
    assert "layout conversations" in problems(api.post("/runs", {"stage": "pretrain", "dataset_id": dialogues}))[
        "dataset_id"]
    assert "importing" in problems(api.post("/runs", {"stage": "pretrain", "dataset_id": importing}))["dataset_id"]
    training = add_tokenizer(state="training")
    assert "training" in problems(api.post("/runs", {"stage": "pretrain", "config": {"tokenizer": training}}))[
        "config.tokenizer"]
    run = new_run(api, dataset_id=add_dataset("txt"))
    base = add_checkpoint(api.data_dir, run["id"])
    same, other = add_tokenizer(), add_tokenizer("e" * 64)
    said = problems(api.post("/runs", {"stage": "sft", "base_checkpoint_id": base,
                                       "config": {"tokenizer": other, "hidden_size": 64, "use_moe": True}}))
    assert "another tokenizer" in said["config.tokenizer"] and "128" in said["config.hidden_size"]
    assert "cannot be changed" in said["config.use_moe"]
    kept = new_run(api, stage="sft", base_checkpoint_id=base, dataset_id=dialogues,
                   config={"tokenizer": same, "max_steps": 1})
    assert (kept["base_checkpoint_id"], kept["tokenizer_id"], kept["dataset_id"]) == (base, same, dialogues)
    assert "no checkpoint" in problems(api.post("/runs", {"stage": "tokenizer", "base_checkpoint_id": base}))[
        "base_checkpoint_id"]
    with reading() as session:
        shutil.rmtree(session.get(Checkpoint, base).path)
    assert "no longer there" in problems(api.post("/runs", {"stage": "sft", "base_checkpoint_id": base}))[
        "base_checkpoint_id"]


def test_some_stages_change_a_model_that_is_there_already(api: Api) -> None:
    for stage in ("lora", "dpo"):
        said = problems(api.post("/runs", {"stage": stage, "config": {"max_steps": 1}}))
        assert said.keys() == {"base_checkpoint_id"} and "needs a base checkpoint" in said["base_checkpoint_id"]
    base = add_checkpoint(api.data_dir, new_run(api)["id"])
    pairs, text = add_dataset("dpo"), add_dataset("text")
    assert "It learns from: dpo." in problems(api.post("/runs", {
        "stage": "dpo", "base_checkpoint_id": base, "dataset_id": text}))["dataset_id"]
    run = new_run(api, stage="dpo", base_checkpoint_id=base, dataset_id=pairs, config={"max_steps": 1, "beta": 0.2})
    assert (run["stage"], run["base_checkpoint_id"], run["teacher_checkpoint_id"]) == ("dpo", base, None)
    adapted = new_run(api, stage="lora", base_checkpoint_id=base, config={"max_steps": 1, "lora_targets": ["v_proj"]})
    assert adapted["config"]["lora_targets"] == ["v_proj"]
    said = problems(api.post("/runs", {"stage": "lora", "base_checkpoint_id": base,
                                       "config": {"lora_targets": ["x_proj"], "lora_rank": 0}}))
    assert said.keys() == {"config.lora_targets", "config.lora_rank"}
    experts = add_checkpoint(api.data_dir, run["id"], num_experts=4)
    said = problems(api.post("/runs", {"stage": "lora", "base_checkpoint_id": experts,
                                       "config": {"lora_targets": ["q_proj", "up_proj"]}}))
    assert "has experts where up_proj would be" in said["config.lora_targets"]
    new_run(api, stage="lora", base_checkpoint_id=experts, config={"max_steps": 1})  # all: those that it has


def test_a_student_needs_a_teacher_of_its_own_words(api: Api) -> None:
    first = new_run(api)["id"]
    teacher = add_checkpoint(api.data_dir, first)
    other = add_checkpoint(api.data_dir, first, step=11, fingerprint="e" * 64)

    def refused(**body: object) -> dict[str, str]:
        for path in ("/runs", "/preflight"):
            said = problems(api.post(path, {"stage": "distill", "config": {"max_steps": 1}, **body}))
        return said

    assert "needs a teacher" in refused()["teacher_checkpoint_id"]
    assert "no checkpoint of this id" in refused(teacher_checkpoint_id="nope")["teacher_checkpoint_id"]
    assert "another tokenizer than the student's base checkpoint" in refused(
        teacher_checkpoint_id=teacher, base_checkpoint_id=other)["teacher_checkpoint_id"]
    strange = add_tokenizer("e" * 64)
    assert "another tokenizer than the student's tokenizer" in refused(
        teacher_checkpoint_id=teacher, config={"tokenizer": strange})["teacher_checkpoint_id"]
    assert "Use teacher_checkpoint_id." in refused(config={"teacher_weight": "/x"}, teacher_checkpoint_id=teacher)[
        "config.teacher_weight"]
    said = problems(api.post("/runs", {"stage": "pretrain", "teacher_checkpoint_id": teacher}))
    assert said.keys() == {"teacher_checkpoint_id"} and "pretrain has no teacher" in said["teacher_checkpoint_id"]
    for body in ({}, {"base_checkpoint_id": add_checkpoint(api.data_dir, new_run(api)["id"])},
                 {"config": {"tokenizer": add_tokenizer(), "max_steps": 1}}):
        run = new_run(api, stage="distill", **{"config": {"max_steps": 1}, "teacher_checkpoint_id": teacher, **body})
        assert run["teacher_checkpoint_id"] == teacher == api.get(f"/runs/{run['id']}").json()["teacher_checkpoint_id"]
    copy = api.post(f"/runs/{run['id']}/clone").json()
    assert copy["teacher_checkpoint_id"] == teacher
    end(first, "starting", "running", "completed")
    answer = api.http.delete(f"/api/v1/runs/{first}")
    assert answer.status_code == 409 and "is taught by a checkpoint of this one" in answer.json()["error"]["message"]
    with transaction() as session:
        session.get(Checkpoint, teacher).state = "corrupt"
        session.get(Checkpoint, teacher).problem = "A file differs."
    assert "is damaged: A file differs." in refused(teacher_checkpoint_id=teacher)["teacher_checkpoint_id"]


def test_preflight_of_each_stage_counts_what_only_it_has(api: Api) -> None:
    first = new_run(api)["id"]
    base, config = add_checkpoint(api.data_dir, first), {"max_steps": 10, "preset": "tiny-cpu"}

    def needs(stage: str, **body: object) -> dict:
        answer = api.post("/preflight", {"stage": stage, "config": config, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    plain = needs("sft", base_checkpoint_id=base)
    assert plain["trainable_parameters"] == plain["parameters"] and plain["sequences_per_example"] == 1
    lora = needs("lora", base_checkpoint_id=base)
    assert lora["parameters"] == plain["parameters"] > 5 * lora["trainable_parameters"] > 0
    assert lora["memory_bytes"] < plain["memory_bytes"] and lora["checkpoint_bytes"] < plain["checkpoint_bytes"]
    dpo = needs("dpo", base_checkpoint_id=base)
    assert dpo["sequences_per_example"] == 2 and dpo["reference_flops"] > 0
    student = needs("distill", teacher_checkpoint_id=base)
    assert student["teacher_parameters"] == plain["parameters"] and student["memory"]["teacher"] > 0
    assert 0 < student["teacher_flops"] < student["total_flops"]
    stages = {s["name"]: s for s in api.get("/stages").json()["items"]}
    assert [name for name, s in stages.items() if s["needs_base"]] == ["lora", "dpo"]
    assert "teacher_weight" not in stages["distill"]["schema"]["properties"]


def test_a_full_disk_is_said_before_the_run(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runs.preflight._free_bytes", lambda: 300 << 20)
    assert api.post("/runs", {"stage": "pretrain", "config": TINY}).status_code == 201
    answer = api.post("/runs", {"stage": "pretrain", "config": {"preset": "minimind-3", "max_steps": 1}})
    assert answer.status_code == 507 and "GB are free" in answer.json()["error"]["message"]
    assert len(api.get("/runs").json()["items"]) == 1


def test_filters(api: Api) -> None:
    first = new_run(api, name="Moon 100%", tags=["night", "a_b"])
    second = new_run(api, stage="sft", config={"max_steps": 1}, name="sun", notes="the MOON is away", tags=["day"])
    third = new_run(api, name="stars", tags=["night"])
    api.post(f"/runs/{third['id']}/cancel")

    def found(**params: object) -> list[str]:
        return [r["name"] for r in api.get("/runs", **params).json()["items"]]

    assert found() == ["stars", "sun", "Moon 100%"]
    assert found(state="queued") == ["sun", "Moon 100%"]
    assert found(state=["queued", "cancelled"]) == ["stars", "sun", "Moon 100%"]
    assert found(stage="sft") == ["sun"]
    assert found(tag="night") == ["stars", "Moon 100%"]
    assert found(tag=["night", "a_b"]) == ["Moon 100%"]
    assert found(tag="nigh") == [] and found(tag="a%b") == []
    assert found(text="moon") == ["sun", "Moon 100%"]
    assert found(text="100%") == ["Moon 100%"]
    api.http.patch(f"/api/v1/runs/{third['id']}", json={"notes": "ÉTOILES"})
    assert found(text="étoiles") == found(text="Étoiles") == ["stars"]
    assert found(text="%") == ["Moon 100%"], "a wildcard is a letter"
    assert found(text=second["id"][:10].upper()) == ["sun"]
    assert found(text="'; DROP TABLE run; --") == []
    assert api.get("/runs", state="flying").status_code == 422
    assert api.get("/runs", text="a\x00b").status_code == 422
    assert api.get(f"/runs/{first['id']}").status_code == 200


def test_labels_can_be_changed_and_nothing_else(api: Api) -> None:
    run = new_run(api)
    changed = api.http.patch(f"/api/v1/runs/{run['id']}", json={
        "name": "<script>alert(1)</script>", "notes": "ünïcode 😀\nline", "tags": ["x"], "priority": -5}).json()
    assert (changed["name"], changed["notes"], changed["tags"], changed["priority"]) == (
        "<script>alert(1)</script>", "ünïcode 😀\nline", ["x"], -5)
    assert changed["updated_at"] >= run["updated_at"]
    for body in ({"state": "completed"}, {"config": {}}, {"name": ""}, {"priority": "x"}, []):
        assert api.http.patch(f"/api/v1/runs/{run['id']}", json=body).status_code == 422
    assert api.get(f"/runs/{run['id']}").json() == changed


def test_wishes(api: Api) -> None:
    run = new_run(api)

    def wish(what: str, body: object = None) -> tuple[int, str]:
        answer = api.post(f"/runs/{run['id']}/{what}", body)
        return answer.status_code, answer.json().get("state", "")

    assert wish("pause") == (202, "paused")
    before = api.get(f"/runs/{run['id']}").json()
    assert wish("pause") == (202, "paused")
    assert api.get(f"/runs/{run['id']}").json() == before, "a wish that stands changes nothing"
    assert wish("resume", {"allow_changes": True}) == (202, "queued")
    assert api.get(f"/runs/{run['id']}").json()["allow_changes"] is True
    assert wish("resume", {}) == (202, "queued")
    assert wish("resume", {"allow_change": True})[0] == 422
    assert wish("cancel", {"save": True}) == (202, "cancelled")
    assert wish("cancel") == (202, "cancelled")
    for what in ("pause", "resume"):
        answer = api.post(f"/runs/{run['id']}/{what}")
        assert answer.status_code == 409 and "cancelled" in answer.json()["error"]["message"]


def end(run_id: str, *path: str) -> None:
    """Move a run through states as a worker would."""
    with transaction() as session:
        for to in path:
            held = {"lease_owner": "x", "lease_host": "h", "lease_expires_at": 9e9}
            assert states.move(session, session.get(Run, run_id), to, values=held if to == "starting" else None)


def test_a_model_in_training_may_be_asked_to_speak(api: Api) -> None:
    run = new_run(api)

    def ask(key: str = "") -> tuple[int, dict]:
        answer = api.http.post(f"/api/v1/runs/{run['id']}/sample", headers={"Idempotency-Key": key} if key else {})
        return answer.status_code, answer.json()

    status, body = ask()
    assert status == 409 and body["error"]["message"] == (
        "A run that is queued is not being trained, so it says nothing new.")
    assert "Chat with one of its checkpoints" in body["error"]["hint"]
    end(run["id"], "starting", "running")
    assert [ask("same")[0], ask("same")[0], ask()[0]] == [202] * 3
    with reading() as session:
        assert session.get(Run, run["id"]).samples_asked == 2, "a repeated request is one wish"
    assert api.post(f"/runs/{run['id']}/pause").status_code == 202
    assert ask()[0] == 409
    end(run["id"], "pausing", "paused")
    assert ask()[0] == 409
    assert api.post("/runs/nobody/sample").status_code == 404


def test_an_ended_run_refuses_wishes_and_can_be_deleted(api: Api) -> None:
    run = new_run(api)
    end(run["id"], "starting", "running")
    assert api.http.delete(f"/api/v1/runs/{run['id']}").status_code == 409
    end(run["id"], "completed")
    for what in ("pause", "resume", "cancel"):
        answer = api.post(f"/runs/{run['id']}/{what}")
        assert answer.status_code == 409 and "completed" in answer.json()["error"]["message"]
    base = add_checkpoint(api.data_dir, run["id"])
    user = new_run(api, stage="sft", base_checkpoint_id=base, config={"max_steps": 1})
    files = api.data_dir / "runs" / run["id"]
    files.mkdir(parents=True)
    (files / "run.json").write_text("{}")
    answer = api.http.delete(f"/api/v1/runs/{run['id']}")
    assert answer.status_code == 409 and user["name"] in answer.json()["error"]["message"]
    api.post(f"/runs/{user['id']}/cancel")
    assert api.http.delete(f"/api/v1/runs/{run['id']}").status_code == 204
    assert api.get(f"/runs/{run['id']}").status_code == 404 and not files.exists()
    with reading() as session:
        assert session.query(Event).filter_by(topic=f"run:{run['id']}").count() == 0
        assert session.get(Checkpoint, base) is None


def test_a_clone_is_a_run_of_its_own(api: Api) -> None:
    run = new_run(api, name="first", priority=2, tags=["t"])
    answer = api.post(f"/runs/{run['id']}/clone", {"config": {"max_steps": 7}})
    assert answer.status_code == 202
    copy = answer.json()
    assert copy["id"] != run["id"] and copy["parent_id"] == run["id"] and copy["name"] == "first (copy)"
    assert copy["config"] == {**run["config"], "max_steps": 7}
    assert (copy["priority"], copy["tags"], copy["state"]) == (2, ["t"], "queued")
    assert "config.nonsense" in problems(api.post(f"/runs/{run['id']}/clone", {"config": {"nonsense": 1}}))


def test_preflight_answers_for_the_same_body(api: Api) -> None:
    answer = api.post("/preflight", {"stage": "pretrain", "config": TINY, "devices": {"kind": "cpu", "count": 2}})
    assert answer.status_code == 200
    said = answer.json()
    assert said["parameters"] == 926784 and said["total_steps"] == 60 and said["world_size"] == 2
    assert said["tokens_per_step"] == 2 * 4 * 256 and said["memory_bytes"] > 4 * said["parameters"]
    assert "config.hidden_size" in problems(api.post("/preflight", {
        "stage": "pretrain", "config": {"hidden_size": 100, "num_attention_heads": 8}}))
    assert "measure" in problems(api.post("/preflight", {"stage": "pretrain", "measure": True}))
    assert api.get("/runs").json()["items"] == []


def test_stages_and_presets_describe_themselves(api: Api) -> None:
    stages = {s["name"]: s for s in api.get("/stages").json()["items"]}
    assert {"tokenizer", "pretrain", "sft"} <= stages.keys()
    option = stages["pretrain"]["schema"]["properties"]["max_steps"]
    assert option["description"] and option["group"] == "budget" and option["unit"] == "optimizer steps"
    assert "data_path" not in stages["pretrain"]["schema"]["properties"]
    presets = {p["name"]: (p["parameters"], p["active_parameters"]) for p in api.get("/presets").json()["items"]}
    assert presets["minimind2-small"] == (25_829_888, 25_829_888)
    assert presets["minimind-3-moe"] == (198_416_640, 63_936_768)


NAMES = ["..", "../../etc/passwd", "%2e%2e", "%252e%252e%252f", "..\\..\\x", "/etc/passwd", "C:\\x", "CON", "a/../b",
         "．．／", "\u202eexe.txt", "x" * 4096, "-rf", "$(id)", "`id`", ";id", "a#b", "a?b", "*"]


def test_hostile_ids_and_names_open_nothing(api: Api) -> None:
    opened: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple) -> None:
        if watching and event == "open" and isinstance(arguments[0], str):
            opened.append(arguments[0])

    sys.addaudithook(hook)  # there is no way to remove one: it only looks while `watching`
    for hostile in NAMES:
        for place, tail in (("runs", "/logs"), ("datasets", "/preview"), ("tokenizers", ""), ("pipelines", ""),
                            ("checkpoints", "/download"), ("jobs", "")):
            for path in (quote(hostile, safe=""), quote(quote(hostile, safe=""), safe="")):
                status = api.http.get(f"/api/v1/{place}/{path}{tail}").status_code
                assert status in (404, 422), (place, path, tail, status)
        answer = api.post("/runs", {"stage": "pretrain", "name": hostile, "dataset_id": hostile,
                                    "base_checkpoint_id": hostile, "config": {"tokenizer": hostile}})
        assert answer.status_code == 422
    watching = False
    data = str(api.data_dir)
    assert [p for p in opened if not p.startswith(data) and ("passwd" in p or any(n in p for n in NAMES[:4]))] == []


@pytest.mark.parametrize("path", ["/runs", "/preflight", "/pipelines"])
def test_a_stage_without_a_name_is_said(api: Api, path: str) -> None:
    asked = {"name": "x", "stages": [{"stage": ""}]} if path == "/pipelines" else {"stage": ""}
    [(field, said)] = problems(api.post(path, asked)).items()
    assert field.endswith("stage") and "has no name" in said
