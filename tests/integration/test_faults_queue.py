"""The queue when what rings, publishes or claims dies: every run starts, and starts once. The broker is one of the
test's own, which can be killed and stay away."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.integration.faults_rig import QUICK, OwnBroker, assert_sound, moves_of, own_broker, two_cores
from tests.integration.material import ONE_RANK, SMALL, TWO_RANKS, ready_dataset, ready_tokenizer, text_jsonl
from tests.integration.studio import RunningStudio

pytestmark = pytest.mark.integration
STARTED_ONCE = ["queued", "starting", "running", "completed"]
#: a run that ends within seconds: learning a vocabulary needs no model
SHORT = {"stage": "tokenizer", "config": {"vocab_size": 400}}
#: what POST /runs does, in a process that is killed at a chosen point of it
POST_AND_DIE = """
import os, signal, sys
from app.core import channels, states
from app.core.db import transaction
from app.runs.schemas import RunCreate
from app.runs.service import create

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "before":
    channels.ring = die  # called when the run is committed
with transaction() as session:
    run = create(session, "local", RunCreate(stage="tokenizer", config={"vocab_size": 400}, dataset_id=sys.argv[2],
                                             devices={"kind": "cpu", "count": 1}))
    print(run.id, flush=True)
assert channels.background.flush(20), "the bell is not rung"
die()
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[OwnBroker]:
    with own_broker() as started:
        yield started


@pytest.fixture(scope="module")
def studio(broker: OwnBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    running = RunningStudio(tmp_path_factory.mktemp("studio"), STUDIO_REDIS_URL=broker.url, **QUICK)
    try:
        with two_cores():  # who runs on both keeps the others waiting
            running.start()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def dataset_id(studio: RunningStudio) -> str:
    return ready_dataset(studio.client, text_jsonl(rows=100, seed=5))["id"]


def post_short(studio: RunningStudio, dataset_id: str) -> str:
    return studio.client.post("/runs", {**SHORT, "dataset_id": dataset_id, "devices": ONE_RANK})["id"]


def assert_started_once(studio: RunningStudio, run_ids: list[str], timeout_s: float = 90.0) -> None:
    for run_id in run_ids:
        assert studio.client.wait_run(run_id, ("completed",), timeout_s=timeout_s)["attempt"] == 1
        assert moves_of(studio, run_id) == STARTED_ONCE
    assert_sound(studio, run_ids)


def test_a_killed_broker_costs_neither_what_runs_nor_what_waits(studio: RunningStudio, broker: OwnBroker,
                                                                dataset_id: str) -> None:
    tokenizer = ready_tokenizer(studio.client, dataset_id, vocab_size=400)
    config = {**SMALL, "max_steps": 20_000, "save_interval": 10_000, "tokenizer": tokenizer["id"]}
    running = studio.client.post("/runs", {"stage": "pretrain", "dataset_id": dataset_id, "config": config,
                                           "devices": TWO_RANKS})["id"]
    step = studio.wait_step(running, 1)["progress"]["step"]
    waiting = [post_short(studio, dataset_id) for _ in range(3)]
    broker.kill()
    studio.wait_step(running, step + 50)
    assert {studio.client.get(f"/runs/{run_id}")["state"] for run_id in waiting} == {"queued"}
    broker.start()
    studio.wait_web()
    studio.wait_step(running, step + 100)
    assert moves_of(studio, running) == STARTED_ONCE[:3] and studio.client.get(f"/runs/{running}")["attempt"] == 1
    studio.client.post(f"/runs/{running}/cancel")
    studio.client.wait_run(running, ("cancelled",), timeout_s=45)
    assert_started_once(studio, waiting)
    assert_sound(studio, [running])


def test_a_run_is_taken_while_the_broker_is_away(studio: RunningStudio, broker: OwnBroker, dataset_id: str,
                                                 record_property) -> None:
    """Its answer waits for no broker, and a worker finds it by looking; the next one too, when the broker is back."""
    broker.kill()
    time.sleep(1)  # everybody has noticed
    took, posted = [], []
    for _ in range(2):
        began = time.monotonic()
        posted.append(post_short(studio, dataset_id))
        took.append(time.monotonic() - began)
    for run_id in posted:
        studio.client.wait(f"/runs/{run_id}", lambda run: run["state"] != "queued", timeout_s=15)
    assert_started_once(studio, posted)
    record_property("answered_in_s", [round(s, 3) for s in took])
    assert min(took) < 2, f"the answer waited for the broker: {took}"
    left_over = post_short(studio, dataset_id)
    broker.start()
    studio.client.wait(f"/runs/{left_over}", lambda run: run["state"] != "queued", timeout_s=15)
    studio.wait_web()
    assert_started_once(studio, [left_over])


@pytest.mark.parametrize("point", ["before", "after"])
def test_who_posts_dies_at_the_bell(studio: RunningStudio, dataset_id: str, point: str) -> None:
    """Killed between the commit and the ring, or right behind it: the run starts once all the same."""
    poster = studio.python(POST_AND_DIE, point, dataset_id)
    said, _ = poster.communicate(timeout=60)
    assert poster.returncode == -signal.SIGKILL, said
    run_id = said.split()[-1]
    studio.client.wait(f"/runs/{run_id}", lambda run: run["state"] != "queued", timeout_s=15)
    assert_started_once(studio, [run_id])
