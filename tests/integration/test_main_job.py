"""The main job by REST, with real processes: upload, tokenizer, pretrain on two ranks, pause, resume, SFT, chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.integration.material import (
    ONE_RANK,
    SMALL,
    TWO_RANKS,
    dialogues_jsonl,
    ready_dataset,
    ready_tokenizer,
    text_jsonl,
)
from tests.integration.studio import RunningStudio

pytestmark = pytest.mark.integration
PRETRAIN = {**SMALL, "max_steps": 240, "save_interval": 100}


@pytest.fixture(scope="module")
def text(studio: RunningStudio) -> dict:
    return ready_dataset(studio.client, text_jsonl(), "harbour.jsonl")


@pytest.fixture(scope="module")
def tokenizer(studio: RunningStudio, text: dict) -> dict:
    return ready_tokenizer(studio.client, text["id"])


@pytest.fixture(scope="module")
def uninterrupted(studio: RunningStudio, text: dict, tokenizer: dict) -> dict:
    """A completed run on two gloo ranks."""
    run = studio.client.post("/runs", {"stage": "pretrain", "dataset_id": text["id"], "devices": TWO_RANKS,
                                       "config": {**PRETRAIN, "tokenizer": tokenizer["id"]}})
    return studio.client.wait_run(run["id"], ("completed",), timeout_s=120)


def test_what_was_uploaded_is_described(text: dict, tokenizer: dict) -> None:
    assert (text["layout"], text["rows"]) == ("text", 400)
    assert text["bytes"] > 50_000
    assert text["warnings"] == [] and text["error"] is None
    assert 300 < tokenizer["vocab_size"] <= 600


def test_two_ranks_train_and_learn(studio: RunningStudio, uninterrupted: dict) -> None:
    run = uninterrupted
    assert run["progress"]["step"] == run["progress"]["total_steps"] == 240
    assert run["attempt"] == 1
    loss = studio.client.get(f"/runs/{run['id']}/metrics", keys="loss", points=2000)["series"]["loss"]
    assert loss["total_points"] == 240 and loss["x"][0] == 1 and loss["x"][-1] == 240
    assert sum(loss["y"][-10:]) / 10 < 0.6 * loss["y"][0]
    run_dir = studio.data_dir / "runs" / run["id"]
    assert json.loads((run_dir / "resolved.json").read_text())["world_size"] == 2
    for rank in (0, 1):
        assert (run_dir / "attempts" / "1" / "logs" / f"rank{rank}.log").exists()
    studio.wait_gone("rank", "runner")


def test_pause_and_resume_change_nothing(studio: RunningStudio, text: dict, tokenizer: dict,
                                         uninterrupted: dict) -> None:
    client = studio.client
    run = client.post("/runs", {"stage": "pretrain", "dataset_id": text["id"], "devices": TWO_RANKS,
                                "config": {**PRETRAIN, "tokenizer": tokenizer["id"]}})
    studio.wait_step(run["id"], 40)
    assert client.post(f"/runs/{run['id']}/pause")["desired"] == "pause"
    paused = client.wait_run(run["id"], ("paused",), timeout_s=60)
    step = paused["progress"]["step"]
    assert 40 <= step < 240
    checkpoints = client.get(f"/runs/{run['id']}/checkpoints")["items"]
    assert max(c["step"] for c in checkpoints) == step, "a pause saves the step it stopped at"
    assert not studio.role("rank"), "a paused run holds no process"
    assert client.post(f"/runs/{run['id']}/pause")["state"] == "paused", "the wish already stands: unchanged"
    client.post(f"/runs/{run['id']}/resume")
    done = client.wait_run(run["id"], ("completed",), timeout_s=120)
    assert done["attempt"] == 2
    assert studio.final_weights(run["id"]) == studio.final_weights(uninterrupted["id"])
    before = client.get(f"/runs/{uninterrupted['id']}/metrics", keys="loss", points=2000)["series"]["loss"]
    after = client.get(f"/runs/{run['id']}/metrics", keys="loss", points=2000)["series"]["loss"]
    assert after["x"] == before["x"] and after["y"] == before["y"]


@pytest.fixture(scope="module")
def chatty(studio: RunningStudio, uninterrupted: dict) -> dict:
    """A dialogue model on top of the pretrained one."""
    dialogues = ready_dataset(studio.client, dialogues_jsonl(), "dialogues.jsonl")
    base = max(studio.client.get(f"/runs/{uninterrupted['id']}/checkpoints")["items"], key=lambda c: c["step"])
    run = studio.client.post("/runs", {"stage": "sft", "dataset_id": dialogues["id"], "devices": ONE_RANK,
                                       "base_checkpoint_id": base["id"],
                                       "config": {"batch_size": 4, "max_seq_len": 64, "max_steps": 150,
                                                  "sample_interval": 0, "eval_interval": 0}})
    return studio.client.wait_run(run["id"], ("completed",), timeout_s=120)


def test_the_dialogue_model_answers(studio: RunningStudio, chatty: dict) -> None:
    client = studio.client
    question = "What did Marta bring to the bakery?"
    reply = client.chat(chatty["id"], question, temperature=0, max_tokens=40)
    message = reply["choices"][0]["message"]
    assert message["role"] == "assistant" and "brought" in message["content"], message
    assert reply["usage"]["completion_tokens"] > 0
    models = [m["id"] for m in client.request("GET", "/v1/models")["data"]]
    checkpoints = client.get(f"/runs/{chatty['id']}/checkpoints")["items"]
    assert {c["id"] for c in checkpoints} <= set(models)


def test_streamed_and_unstreamed_answers_are_the_same(studio: RunningStudio, chatty: dict) -> None:
    client = studio.client
    question = "What did Kofi bring to the school?"
    whole = client.chat(chatty["id"], question, temperature=0, max_tokens=40)["choices"][0]
    body = {"model": chatty["id"], "messages": [{"role": "user", "content": question}], "temperature": 0,
            "max_tokens": 40, "stream": True}
    deltas, last = [], None
    with client.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    deltas.append(json.loads(last)["choices"][0])
    assert last == "[DONE]"
    assert "".join(d["delta"].get("content") or "" for d in deltas) == whole["message"]["content"]
    assert deltas[-1]["finish_reason"] == whole["finish_reason"]


def test_events_are_replayed_without_a_gap(studio: RunningStudio, uninterrupted: dict) -> None:
    """REST and websocket tell the same dense story."""
    topic = f"run:{uninterrupted['id']}"
    told = []
    while True:
        page = studio.client.get(f"/runs/{uninterrupted['id']}/events", after=told[-1]["seq"] if told else 0)["items"]
        if not page:
            break
        told += page
    assert [e["seq"] for e in told] == list(range(1, len(told) + 1))
    assert {"phase", "metrics", "checkpoint", "state"} <= {e["type"] for e in told}
    middle = len(told) // 2
    with connect(studio.url.replace("http", "ws") + "/api/v1/live", proxy=None,
                 additional_headers={"Authorization": f"Bearer {studio.token}"}) as socket:
        socket.send(json.dumps({"op": "sub", "topic": topic, "after": middle}))
        snapshot = json.loads(socket.recv(timeout=10))
        assert (snapshot["topic"], snapshot["type"], snapshot["seq"]) == (topic, "snapshot", len(told))
        assert snapshot["data"]["id"] == uninterrupted["id"]
        live = [json.loads(socket.recv(timeout=10)) for _ in range(len(told) - middle)]
    assert [(e["seq"], e["type"], e["data"]) for e in live] == [(e["seq"], e["type"], e["data"]) for e in told[middle:]]


def test_a_pipeline_hands_the_checkpoint_on(studio: RunningStudio, text: dict) -> None:
    client = studio.client
    dialogues = ready_dataset(client, dialogues_jsonl(seed=5), "more.jsonl")
    short = {"max_steps": 20, "sample_interval": 0, "eval_interval": 0, "batch_size": 4, "max_seq_len": 64}
    pipeline = client.post("/pipelines", {"name": "line", "stages": [
        {"stage": "tokenizer", "config": {"vocab_size": 500}, "dataset_id": text["id"]},
        {"stage": "pretrain", "config": {**SMALL, **short}, "dataset_id": text["id"]},
        {"stage": "sft", "config": short, "dataset_id": dialogues["id"]},
    ]})
    pipeline = client.wait(f"/pipelines/{pipeline['id']}", lambda p: p["state"] != "running", timeout_s=120)
    assert pipeline["state"] == "completed", [r["error"] for r in pipeline["runs"]]
    assert [r["stage"] for r in pipeline["runs"]] == ["tokenizer", "pretrain", "sft"]
    checkpoints = {r["stage"]: client.get(f"/runs/{r['id']}/checkpoints")["items"] for r in pipeline["runs"]}
    assert checkpoints["tokenizer"] == []
    assert pipeline["runs"][2]["base_checkpoint_id"] in {c["id"] for c in checkpoints["pretrain"]}
    manifest = json.loads((Path(checkpoints["sft"][-1]["path"]) / "manifest.json").read_text())
    assert manifest["tokenizer_fingerprint"] == json.loads(
        (Path(checkpoints["pretrain"][-1]["path"]) / "manifest.json").read_text())["tokenizer_fingerprint"]
