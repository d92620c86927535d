"""A recipe runs unattended, in a real studio: one request, then nothing but waiting, and a model that answers."""

from __future__ import annotations

import pytest

from minimind.data import starter
from tests.integration.studio import RunningStudio

pytestmark = [pytest.mark.integration, pytest.mark.slow]
MINUTES = 2


def completed(studio: RunningStudio, recipe: str) -> dict:
    """The line of ``recipe`` when it has ended; nobody touches it on the way."""
    line = studio.client.post("/pipelines", {"recipe": recipe, "minutes": MINUTES, "languages": ["en"]})
    line = studio.client.wait(f"/pipelines/{line['id']}", lambda it: it["state"] != "running", timeout_s=900)
    assert line["state"] == "completed", (line["error"], [run["error"] for run in line["runs"]])
    assert len(line["runs"]) == len(line["stages"]), "no stage was tried twice"
    return line


def test_chat_and_preference(studio: RunningStudio) -> None:
    line = completed(studio, "chat_preference")
    for stage, run in zip(line["stages"], line["runs"], strict=True):
        last = [e["data"] for e in studio.client.get(f"/runs/{run['id']}/events", limit=5000)["items"]
                if e["type"] == "eval"][-1]
        for key, limit in stage["gate"].items():
            seen = last["eval_loss"] if key == "eval_loss" else last[f"eval_{key}"]
            assert seen >= limit if key == "reward_accuracy" else seen <= limit, (run["stage"], key, seen)
    world = {(stage["config"]["starter_minutes"], stage["config"]["seed"]) for stage in line["stages"]}
    (minutes, seed), = world
    asked = starter.questions(minutes=minutes, languages=["en"], seed=seed, count=8)
    said = [studio.client.chat(line["runs"][-1]["id"], question.text, temperature=0, max_tokens=64)
            ["choices"][0]["message"]["content"] for question in asked]
    right = sum(map(starter.is_right, asked, said))
    assert right >= 2, list(zip([question.expected for question in asked], said, strict=True))


def test_teacher_and_student(studio: RunningStudio) -> None:
    vocabulary, _, teacher, student, distilled = completed(studio, "teacher_student")["runs"]

    def checkpoint(id: str) -> dict:
        return studio.client.get(f"/checkpoints/{id}")

    assert student["base_checkpoint_id"] is None and student["tokenizer_id"] == vocabulary["id"]
    assert checkpoint(distilled["base_checkpoint_id"])["run_id"] == student["id"]
    assert checkpoint(distilled["teacher_checkpoint_id"])["run_id"] == teacher["id"]
    sizes = {run["id"]: studio.client.get(f"/runs/{run['id']}/checkpoints")["items"][0]["bytes"]
             for run in (teacher, distilled)}
    assert sizes[distilled["id"]] < 0.6 * sizes[teacher["id"]]
