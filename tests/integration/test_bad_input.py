"""Wrong input: one clear sentence each, the right status, nothing half-made left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.material import ONE_RANK, SMALL, dialogues_jsonl, ready_dataset, text_jsonl, upload
from tests.integration.studio import RunningStudio
from worker.client import ApiError

pytestmark = pytest.mark.integration


def files_of(studio: RunningStudio) -> set[Path]:
    """Everything under the places where uploads and datasets land."""
    return {p for name in ("datasets", "uploads", "tokenizers") for p in (studio.data_dir / name).rglob("*")
            if p.is_file()}


def is_a_sentence(text: str) -> bool:
    """One line that ends like a sentence (it may begin with the name of a file or a field), not a traceback."""
    return bool(text) and text[-1] in ".!?" and "\n" not in text and "Traceback" not in text and "Error(" not in text


GOOD_ROW = json.dumps({"text": "The ferry left the harbour at nine."})


@pytest.mark.parametrize("content, layout, line, says", [
    (f'{GOOD_ROW}\n{{"text": "broken\n{GOOD_ROW}\n'.encode(), "auto", 2, "JSON"),
    (dialogues_jsonl(rows=5), "text", 1, "text"),
    (text_jsonl(rows=5), "conversations", 1, "conversations"),
    (b'{"text": 7}\n', "text", 1, "text"),
    (b"", "auto", None, "empty"),
    (f"{GOOD_ROW}\n".encode() + '{"text": "café"}\n'.encode("latin-1"), "auto", 2, "UTF-8"),
    (json.dumps({"conversations": [{"role": "wizard", "content": "hello"}]}).encode(), "conversations", 1, "role"),
], ids=["broken line", "dialogues as text", "text as dialogues", "wrong type", "empty", "latin-1", "unknown role"])
def test_a_bad_file_is_refused_with_its_line(studio: RunningStudio, content: bytes, layout: str, line: int | None,
                                             says: str) -> None:
    before = files_of(studio)
    answer = upload(studio.client, content, "bad.jsonl", layout)
    if answer.status_code == 201:  # read by the import job
        dataset = studio.client.wait_ready("datasets", answer.json()["id"])
        assert dataset["state"] == "failed", dataset
        error = dataset["error"]
    else:
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
    assert is_a_sentence(error["message"]) and says.lower() in error["message"].lower(), error
    if line is not None:
        assert error.get("line", line) == line and str(line) in error["message"] + str(error.get("line")), error
    assert files_of(studio) == before, "a refused file leaves nothing"


@pytest.fixture(scope="module")
def dataset(studio: RunningStudio) -> dict:
    return ready_dataset(studio.client, text_jsonl(rows=50))


def refused(studio: RunningStudio, body: dict, status: int = 422) -> dict:
    before = studio.client.get("/runs")["items"]
    with pytest.raises(ApiError) as caught:
        studio.client.post("/runs", body)
    assert caught.value.status == status, caught.value.body
    assert studio.client.get("/runs")["items"] == before, "a refused request leaves no run"
    error = caught.value.body["error"]
    for problem in error.get("problems") or [error]:
        assert is_a_sentence(problem["message"]), error
    return error


@pytest.mark.parametrize("config, field, says", [
    ({"hidden_size": 100, "num_attention_heads": 8}, "config.hidden_size", "not divisible"),
    ({"learnig_rate": 1e-3}, "config.learnig_rate", "learning_rate"),
    ({"preset": "tiny-cqu"}, "config.preset", "tiny-cpu"),
    ({"max_steps": 0}, "config.max_steps", "max_steps"),
    ({"batch_size": "many"}, "config.batch_size", "batch_size"),
    ({"data_path": "/etc/passwd"}, "config.data_path", "dataset_id"),
    ({"tokenizer": "nothing-like-it"}, "config.tokenizer", "tokenizer"),
])
def test_an_impossible_config_names_the_field(studio: RunningStudio, config: dict, field: str, says: str) -> None:
    error = refused(studio, {"stage": "pretrain", "config": config, "devices": ONE_RANK})
    assert says in json.dumps(error), error
    assert error.get("field") == field, error


def test_all_problems_are_said_at_once(studio: RunningStudio) -> None:
    error = refused(studio, {"stage": "pretrain", "devices": ONE_RANK,
                             "config": {"learnig_rate": 1, "max_steps": 0, "dtype": "float8"}})
    assert {p["field"] for p in error["problems"]} == {"config.learnig_rate", "config.max_steps", "config.dtype"}


@pytest.mark.parametrize("devices", [["cuda:7"], {"kind": "cuda", "count": 64}, {"kind": "tpu", "count": 1}, "gpu"])
def test_a_missing_device_is_refused(studio: RunningStudio, devices: Any) -> None:
    error = refused(studio, {"stage": "pretrain", "config": SMALL, "devices": devices})
    assert "device" in json.dumps(error).lower(), error


def test_things_that_are_not_there(studio: RunningStudio, dataset: dict) -> None:
    refused(studio, {"stage": "pretrian", "config": {}})
    refused(studio, {"stage": "pretrain", "config": {}, "dataset_id": "nosuchdataset"})
    refused(studio, {"stage": "sft", "config": {}, "base_checkpoint_id": "nosuchthing1"})
    error = refused(studio, {"stage": "sft", "config": {}, "dataset_id": dataset["id"]})
    assert "layout" in json.dumps(error), "plain text is no dialogue, and that is known before the run"
    for path in ("/runs/nope", "/datasets/nope", "/checkpoints/nope", "/pipelines/nope", "/jobs/nope"):
        with pytest.raises(ApiError) as caught:
            studio.client.get(path)
        assert caught.value.status == 404


def test_wishes_that_make_no_sense_answer_409(studio: RunningStudio, dataset: dict) -> None:
    client = studio.client
    run = client.post("/runs", {"stage": "pretrain", "dataset_id": dataset["id"], "devices": ONE_RANK,
                                "config": {**SMALL, "max_steps": 3, "vocab_size": 400}})
    client.wait_run(run["id"], ("completed",), timeout_s=90)
    for wish in ("pause", "resume", "cancel"):
        with pytest.raises(ApiError) as caught:
            client.post(f"/runs/{run['id']}/{wish}")
        assert caught.value.status == 409 and "completed" in str(caught.value), caught.value.body


def test_the_same_idempotency_key_makes_one_run(studio: RunningStudio, dataset: dict) -> None:
    client = studio.client
    body = {"stage": "pretrain", "dataset_id": dataset["id"], "devices": ONE_RANK,
            "config": {**SMALL, "max_steps": 2, "vocab_size": 400}}
    headers = {"Idempotency-Key": "only-once"}
    first = client.post("/runs", body, headers=headers)
    second = client.post("/runs", body, headers=headers)
    assert first["id"] == second["id"]
    with pytest.raises(ApiError) as caught:
        client.post("/runs", {**body, "config": {**body["config"], "max_steps": 3}}, headers=headers)
    assert caught.value.status == 422
    client.wait_run(first["id"], ("completed",), timeout_s=90)
