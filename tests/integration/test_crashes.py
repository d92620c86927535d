"""Whatever dies, a run ends with the weights that it would have had: real processes, real signals."""

from __future__ import annotations

import signal
import time

import pytest

from tests.integration.material import ONE_RANK, SMALL, TWO_RANKS, ready_dataset, ready_tokenizer, text_jsonl
from tests.integration.studio import RunningStudio

pytestmark = pytest.mark.integration
STEPS = 300
CONFIG = {**SMALL, "max_steps": STEPS, "save_interval": 25}


class Case:
    """Posts the same run again and again; ``reference`` is what the final weights must be."""

    def __init__(self, studio: RunningStudio, dataset_id: str, tokenizer_id: str):
        self.studio = studio
        self.body = {"stage": "pretrain", "dataset_id": dataset_id,
                     "config": {**CONFIG, "tokenizer": tokenizer_id}}
        self.reference: dict[int, str] = {}

    def post(self, devices: dict) -> str:
        return self.studio.client.post("/runs", {**self.body, "devices": devices})["id"]

    def completed(self, run_id: str, timeout_s: float = 120) -> dict:
        return self.studio.client.wait_run(run_id, ("completed",), timeout_s=timeout_s)

    def reference_of(self, devices: dict) -> str:
        ranks = devices["count"]
        if ranks not in self.reference:
            run_id = self.post(devices)
            self.completed(run_id)
            self.reference[ranks] = self.studio.final_weights(run_id)
        return self.reference[ranks]


@pytest.fixture(scope="module")
def case(studio: RunningStudio) -> Case:
    dataset = ready_dataset(studio.client, text_jsonl(rows=300, seed=3))
    tokenizer = ready_tokenizer(studio.client, dataset["id"], vocab_size=500)
    return Case(studio, dataset["id"], tokenizer["id"])


def test_web_worker_and_broker_may_die_under_a_run(studio: RunningStudio, case: Case) -> None:
    reference = case.reference_of(ONE_RANK)
    run_id = case.post(ONE_RANK)
    studio.wait_step(run_id, 1)
    ranks = [p.pid for p in studio.role("rank")]
    victims = [name for name in ("celery", "web", "worker", "broker", "inference") if studio.role(name)]
    assert {"celery", "web", "worker", "inference"} <= set(victims)
    killed = {name: studio.kill(name) for name in victims}
    for name, pid in killed.items():
        studio.wait_replaced(name, pid)
    studio.wait_web()
    run = case.completed(run_id)
    assert run["attempt"] == 1, "nothing that died had the run in its hands"
    assert ranks and studio.final_weights(run_id) == reference


def test_a_killed_runner_takes_its_ranks_along_and_the_run_continues(studio: RunningStudio, case: Case) -> None:
    reference = case.reference_of(ONE_RANK)
    run_id = case.post(ONE_RANK)
    studio.wait_step(run_id, 30)
    ranks = studio.role("rank")
    studio.kill("runner")
    deadline = time.monotonic() + 5
    while any(p.is_running() and p.status() != "zombie" for p in ranks):
        assert time.monotonic() < deadline, "a rank outlived its runner"
        time.sleep(0.1)
    run = case.completed(run_id)
    assert run["attempt"] == 2
    assert studio.final_weights(run_id) == reference


def test_a_killed_rank_is_noticed_and_the_run_continues(studio: RunningStudio, case: Case) -> None:
    reference = case.reference_of(TWO_RANKS)
    run_id = case.post(TWO_RANKS)
    studio.wait_step(run_id, 30)
    studio.role("rank")[-1].kill()
    run = case.completed(run_id)
    assert run["attempt"] == 2
    assert studio.final_weights(run_id) == reference
    assert not studio.role("rank")


def test_the_whole_studio_restarts_and_the_run_goes_on_by_itself(studio: RunningStudio, case: Case) -> None:
    reference = case.reference_of(ONE_RANK)
    run_id = case.post(ONE_RANK)
    studio.wait_step(run_id, 30)
    assert studio.stop(signal.SIGINT) < 45
    assert studio.start() < 30
    assert studio.client.get(f"/runs/{run_id}")["desired"] == "run"
    run = case.completed(run_id)
    assert run["attempt"] == 2
    assert studio.final_weights(run_id) == reference


def test_a_killed_supervisor_leaves_the_run_alone_and_the_next_start_adopts_it(studio: RunningStudio,
                                                                               case: Case) -> None:
    reference = case.reference_of(ONE_RANK)
    run_id = case.post(ONE_RANK)
    studio.wait_step(run_id, 1)
    studio.process.kill()
    studio.process.wait()
    studio.process.stdout.close()
    deadline = time.monotonic() + 10
    while [name for name in ("web", "worker", "inference", "broker") if studio.role(name)]:
        assert time.monotonic() < deadline, "a child outlived the supervisor"
        time.sleep(0.1)
    assert studio.role("runner"), "only the runner lives on"
    studio.start()
    run = case.completed(run_id)
    assert run["attempt"] == 1
    assert studio.final_weights(run_id) == reference


def test_a_cancelled_run_is_gone_and_the_next_one_starts(studio: RunningStudio, case: Case) -> None:
    first, second = case.post(TWO_RANKS), case.post(ONE_RANK)
    studio.wait_step(first, 1)
    studio.client.post(f"/runs/{first}/cancel")
    cancelled = studio.client.wait_run(first, ("cancelled",), timeout_s=45)
    assert cancelled["error"] is None
    assert studio.client.get(f"/runs/{first}")["state"] == "cancelled"
    studio.client.wait_run(second, ("running", "completed"), timeout_s=30)
    studio.client.post(f"/runs/{second}/cancel")
    studio.client.wait_run(second, ("cancelled", "completed"), timeout_s=45)


@pytest.mark.parametrize("signals, within_s", [(1, 45), (2, 15)], ids=["patience", "Ctrl-C twice"])
@pytest.mark.slow
def test_a_runner_that_hangs_cannot_hold_up_the_end(studio: RunningStudio, case: Case, signals: int,
                                                    within_s: float) -> None:
    reference = case.reference_of(ONE_RANK)
    run_id = case.post(ONE_RANK)
    studio.wait_step(run_id, 30)
    for process in [*studio.role("runner"), *studio.role("rank")]:
        process.suspend()
    began = time.monotonic()
    for _ in range(signals - 1):
        studio.process.send_signal(signal.SIGINT)
        time.sleep(1)
    studio.stop(signal.SIGINT)
    assert time.monotonic() - began < within_s
    studio.start()
    case.completed(run_id)
    assert studio.final_weights(run_id) == reference
