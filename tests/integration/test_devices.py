"""Several runs share a machine of two CPU slots: side by side, one after the other, and by name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.material import ONE_RANK, SMALL, TWO_RANKS, ready_dataset, ready_tokenizer, text_jsonl
from tests.integration.studio import RunningStudio
from worker.client import ApiError

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="this needs two cores")]
#: more steps than anybody waits for: a test ends these runs itself
ENDLESS = 100_000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    """A studio that may use two cores, however many the machine has."""
    before = os.sched_getaffinity(0)
    running = RunningStudio(tmp_path_factory.mktemp("pair"))
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        running.start()
        os.sched_setaffinity(0, before)
        yield running
    finally:
        os.sched_setaffinity(0, before)
        running.close()


@pytest.fixture(scope="module")
def body(pair: RunningStudio) -> dict:
    dataset = ready_dataset(pair.client, text_jsonl(rows=60, seed=3))
    tokenizer = ready_tokenizer(pair.client, dataset["id"], vocab_size=400)
    return {"stage": "pretrain", "dataset_id": dataset["id"],
            "config": {**SMALL, "max_steps": ENDLESS, "tokenizer": tokenizer["id"]}}


def start(studio: RunningStudio, body: dict, devices: object, *, name: str, steps: int = ENDLESS) -> str:
    config = {**body["config"], "max_steps": steps}
    return studio.client.post("/runs", {**body, "config": config, "devices": devices, "name": name})["id"]


def slots(studio: RunningStudio) -> dict[str, str]:
    """device -> the run that has it."""
    [host] = studio.client.get("/system")["hosts"]
    assert host["cpu_slots"] == 2
    return {lease["device"]: lease["run_id"] for lease in host["in_use"]}


def end(studio: RunningStudio, run_id: str) -> None:
    studio.client.post(f"/runs/{run_id}/cancel")
    studio.client.wait_run(run_id, ("cancelled",))


def why(studio: RunningStudio, run_id: str) -> str:
    run = studio.client.get(f"/runs/{run_id}")
    assert run["state"] == "queued", run
    return run["waiting_for"]


def test_runs_share_the_slots_and_others_wait_for_them(pair: RunningStudio, body: dict) -> None:
    left, right = (start(pair, body, ONE_RANK, name=name) for name in ("left", "right"))
    pair.wait_step(left, 1)
    pair.wait_step(right, 1)
    assert slots(pair) == {"cpu:0": left, "cpu:1": right}
    before = pair.client.get(f"/runs/{left}")["progress"]["step"]
    named = start(pair, body, ["cpu:0"], name="named", steps=1)
    both = start(pair, body, TWO_RANKS, name="both")
    assert why(pair, named) == "Waits for cpu:0, now used by left."
    assert "now used by left, right." in why(pair, both)
    pair.wait_step(left, before + 1)  # both train, not one after the other
    assert pair.client.get(f"/runs/{right}")["state"] == "running"

    end(pair, left)
    pair.client.wait_run(named, ("starting", "running", "completed"))
    assert slots(pair) in ({"cpu:0": named, "cpu:1": right}, {"cpu:1": right}), "the one that it has asked for"
    assert pair.client.wait_run(named, ("completed",))["attempt"] == 1
    assert why(pair, both) and slots(pair) == {"cpu:1": right}, "one slot is not two"
    end(pair, both)

    crowd = start(pair, body, {"kind": "cpu", "count": 3}, name="crowd", steps=2)  # more ranks than cores
    end(pair, right)
    pair.client.wait_run(crowd, ("starting", "running"))
    assert slots(pair) == {"cpu:0": crowd, "cpu:1": crowd}
    done = pair.client.wait_run(crowd, ("completed",))
    assert done["progress"]["step"] == 2 and slots(pair) == {}


@pytest.mark.parametrize("devices", [["cpu:2"], ["cuda:7"], {"kind": "cuda", "count": 1}, {"kind": "cpu", "count": 17}])
def test_devices_that_no_machine_has_are_refused(pair: RunningStudio, body: dict, devices: object) -> None:
    with pytest.raises(ApiError, match="No machine of this studio has these devices") as raised:
        start(pair, body, devices, name="never")
    assert raised.value.status == 422 and "2 CPU cores" in raised.value.hint
