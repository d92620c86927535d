"""Who watches when the connection or the web process dies: what a page was told is what the database says."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.integration.faults_rig import QUICK, Cable, Viewer, all_events, assert_sound
from tests.integration.material import ONE_RANK, SMALL, ready_dataset, text_jsonl
from tests.integration.studio import RunningStudio, running_studio

pytestmark = pytest.mark.integration
#: what a runner does with the words of its trainer: batches of events, each in one transaction
WRITER = """
import sys, time
from app.core.db import transaction
from app.core.states import append_events
run_id, total = sys.argv[1], int(sys.argv[2])
for first in range(0, total, 25):
    with transaction() as session:
        append_events(session, f"run:{run_id}", [
            {"attempt": 1, "t": time.time(), "type": "log", "step": i, "tokens": 0, "data": {"message": f"line {i}"}}
            for i in range(first, min(first + 25, total))])
    time.sleep(0.03)
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    with running_studio(tmp_path_factory.mktemp("studio"), **QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def dataset_id(studio: RunningStudio) -> str:
    return ready_dataset(studio.client, text_jsonl(rows=100, seed=6))["id"]


def test_a_viewer_that_is_cut_off_a_hundred_times_has_every_event_once(studio: RunningStudio, dataset_id: str) -> None:
    total, cuts = 5000, 0
    run_id = studio.client.post("/runs", {"stage": "tokenizer", "config": {"vocab_size": 400}, "devices": ONE_RANK,
                                          "dataset_id": dataset_id})["id"]
    studio.client.wait_run(run_id, ("completed",), timeout_s=60)
    cable = Cable("127.0.0.1", urlsplit(studio.url).port)
    viewer = Viewer(studio, run_id, port=cable.port)
    writer = studio.python(WRITER, run_id, str(total))
    source, deadline = random.Random(18), time.monotonic() + 120
    while cuts < 100:
        had, connections = viewer.last, viewer.connections
        while viewer.last == had and viewer.connections == connections:  # something has come, or at least a connection
            assert time.monotonic() < deadline, f"cut {cuts} times; {viewer.problems}"
            time.sleep(0.002)
        time.sleep(source.uniform(0, 0.05))
        cuts += min(1, cable.cut())
    said, _ = writer.communicate(timeout=120)
    assert writer.returncode == 0, said
    events = all_events(studio, run_id)
    assert sum(e["type"] == "log" and e["data"].get("message", "").startswith("line ") for e in events) == total
    viewer.assert_saw(events)
    cable.close()
    assert viewer.connections >= 50
    assert_sound(studio, [run_id])


@pytest.mark.slow  # test_crashes.py kills it once
def test_a_web_process_that_is_killed_again_and_again_costs_no_event(studio: RunningStudio, dataset_id: str) -> None:
    """The run does not notice, and its viewer goes on without a gap."""
    config = {**SMALL, "max_steps": 100_000, "save_interval": 100_000}
    run_id = studio.client.post("/runs", {"stage": "pretrain", "dataset_id": dataset_id, "config": config,
                                          "devices": ONE_RANK})["id"]
    viewer = Viewer(studio, run_id)
    step = studio.wait_step(run_id, 1)["progress"]["step"]
    for _ in range(3):
        pid = studio.kill("web")
        studio.wait_replaced("web", pid)
        studio.wait_web()
        step = studio.wait_step(run_id, step + 20)["progress"]["step"]
    assert studio.client.get(f"/runs/{run_id}")["attempt"] == 1
    studio.client.post(f"/runs/{run_id}/cancel")
    studio.client.wait_run(run_id, ("cancelled",), timeout_s=45)
    assert_sound(studio, [run_id])
    events = all_events(studio, run_id)
    steps = [e["step"] for e in events if e["type"] == "metrics"]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 60
    viewer.assert_saw(events)
    assert viewer.connections == 4
