"""Whatever dies, a run ends with the weights that it would have had: real processes, real signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from app.core.models import Host, Run
from tests.integration.faults_rig import (
    QUICK,
    Viewer,
    all_events,
    assert_gone,
    assert_sound,
    lost_steps,
    moves_of,
)
from tests.integration.material import ONE_RANK, SMALL, TWO_RANKS, ready_dataset, ready_tokenizer, text_jsonl
from tests.integration.studio import RunningStudio, running_studio

pytestmark = pytest.mark.integration
STEPS, SAVE_INTERVAL = 300, 25
CONFIG = {**SMALL, "max_steps": STEPS, "save_interval": SAVE_INTERVAL}


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
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    """One whose leases last two seconds."""
    with running_studio(tmp_path_factory.mktemp("studio"), **QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def case(studio: RunningStudio) -> Case:
    dataset = ready_dataset(studio.client, text_jsonl(rows=300, seed=3))
    tokenizer = ready_tokenizer(studio.client, dataset["id"], vocab_size=500)
    return Case(studio, dataset["id"], tokenizer["id"])


def adopted_by(studio: RunningStudio, worker_pid: int) -> bool:
    """Whether the host's bookkeeper is this process."""
    with studio.reading() as session:
        return [host.worker_pid for host in session.query(Host)] == [worker_pid]


def holder(studio: RunningStudio, run_id: str) -> tuple:
    with studio.reading() as session:
        run = session.get(Run, run_id)
        return run.attempt, run.lease_owner


def test_web_worker_and_broker_may_die_under_a_run(studio: RunningStudio, case: Case) -> None:
    """The run goes on, the next worker adopts it, and who watches it misses nothing."""
    reference = case.reference_of(ONE_RANK)
    run_id = case.post(ONE_RANK)
    viewer = Viewer(studio, run_id)
    studio.wait_step(run_id, 1)
    held, ranks = holder(studio, run_id), studio.role("rank")
    victims = [name for name in ("celery", "web", "worker", "broker", "inference") if studio.role(name)]
    assert {"celery", "web", "worker", "inference"} <= set(victims)
    began = time.monotonic()
    killed = {name: studio.kill(name) for name in victims}
    studio.wait_replaced("worker", killed["worker"])
    while not adopted_by(studio, studio.role("worker")[-1].pid):
        assert time.monotonic() - began < 15, "no worker has taken the host over"
        time.sleep(0.1)
    assert ranks and all(p.is_running() for p in ranks) and holder(studio, run_id) == held
    for name, pid in killed.items():
        studio.wait_replaced(name, pid)
    studio.wait_web()
    run = case.completed(run_id)
    assert run["attempt"] == 1, "nothing that died had the run in its hands"
    assert moves_of(studio, run_id) == ["queued", "starting", "running", "completed"]
    assert studio.final_weights(run_id) == reference
    viewer.assert_saw(all_events(studio, run_id))
    assert viewer.connections >= 2
    assert_sound(studio, [run_id])


def test_a_killed_runner_takes_its_ranks_along_and_the_run_continues(studio: RunningStudio, case: Case) -> None:
    reference = case.reference_of(ONE_RANK)
    run_id = case.post(ONE_RANK)
    studio.wait_step(run_id, 30)
    ranks = studio.role("rank")
    studio.kill("runner")
    assert_gone(ranks, within_s=5)
    run = case.completed(run_id)
    assert run["attempt"] == 2
    assert studio.final_weights(run_id) == reference
    assert_sound(studio, [run_id])
    assert all(steps <= SAVE_INTERVAL for steps in lost_steps(studio, run_id))


@pytest.mark.parametrize("name", ["rank", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_what_trains_is_killed_and_the_run_continues(studio: RunningStudio, case: Case, name: str) -> None:
    """The last rank in the middle of a step, or the torchrun above both: no rank is left, the loss is noticed, and at
    most what came after the last save is done again."""
    reference = case.reference_of(TWO_RANKS)
    run_id = case.post(TWO_RANKS)
    studio.wait_step(run_id, 30)
    ranks, victim = studio.role("rank"), studio.role(name)[-1]
    killed_at = time.time()
    victim.kill()
    if name == "torchrun":
        assert len(ranks) == 2
        assert_gone(ranks, within_s=5)
    run = case.completed(run_id)
    assert run["attempt"] == 2
    assert moves_of(studio, run_id) == ["queued", "starting", "running", "recovering", "queued", "starting", "running",
                                        "completed"]
    [noticed] = [e for e in all_events(studio, run_id, "state") if e["data"].get("state") == "recovering"]
    assert noticed["t"] - killed_at < 10
    assert studio.final_weights(run_id) == reference
    assert_sound(studio, [run_id])
    assert [steps <= SAVE_INTERVAL for steps in lost_steps(studio, run_id)] == [True]


@pytest.mark.slow  # tests/worker/test_fencing.py does it with one process
def test_a_run_that_always_crashes_is_given_up_and_the_next_one_starts(studio: RunningStudio, case: Case) -> None:
    """Whatever trains the first run is killed on sight: three attempts without a checkpoint are enough."""
    first, given_up = case.post(TWO_RANKS), threading.Event()

    def kill_on_sight() -> None:
        while not given_up.wait(0.05):
            for process in studio.role("rank"):
                try:
                    if process.environ().get("STUDIO_ATTEMPT", "").startswith(first):
                        process.kill()
                except psutil.Error:
                    continue  # it has just ended by itself

    killer = threading.Thread(target=kill_on_sight)
    killer.start()
    try:
        studio.client.wait(f"/runs/{first}", lambda run: run["attempt"] == 3, timeout_s=120)
        second = case.post(ONE_RANK)  # waits for the devices of the first
        failed = studio.client.wait_run(first, ("failed",), timeout_s=120)
    finally:
        given_up.set()
        killer.join()
    assert failed["attempt"] == 3 and "3 attempts" in failed["error"]["message"]
    studio.client.wait_run(second, ("running", "completed"), timeout_s=60)
    studio.client.post(f"/runs/{second}/cancel")
    studio.client.wait_run(second, ("cancelled", "completed"), timeout_s=45)
    assert_sound(studio, [first, second])


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
