"""Several machines on one PostgreSQL, one Redis and one directory: one dies, is cut off, or is taken out of service,
and its runs go on elsewhere. In network namespaces where this user may make them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import db
from app.core.models import Host
from app.core.timing import get_timing
from tests.database_rig import add_run, get_run
from tests.integration.machines import Machine, machines, needs_servers
from tests.integration.material import ONE_RANK, SMALL
from tests.worker.runner_rig import attempt_of, checkpoints_of, events_of, is_dense, wait_for_state, wait_until
from worker import processes

pytestmark = [pytest.mark.integration, needs_servers]


@pytest.fixture
def pair(tmp_path, monkeypatch) -> Iterator[list[Machine]]:
    with machines(tmp_path, monkeypatch) as made:
        yield made


def told(**wants: object) -> dict[str, str]:
    return {"FAKE_TRAINER": json.dumps(wants)}


def on_each(pair: list[Machine], **values: object) -> tuple[tuple[Machine, str], tuple[Machine, str]]:
    """Two queued runs, one taken by each machine (which have a core each), once both have a checkpoint."""
    runs = [add_run(devices=ONE_RANK, **values) for _ in pair]
    for run_id in runs:
        wait_until(lambda run_id=run_id: checkpoints_of(run_id), timeout_s=90)
    where = {get_run(run_id).lease_host: run_id for run_id in runs}
    assert set(where) == {machine.name for machine in pair}, "each machine has taken one"
    return tuple((machine, where[machine.name]) for machine in pair)


def is_present(machine: Machine) -> bool:
    with db.reading() as session:
        host = session.get(Host, machine.name)
        return host is not None and db.now(session) - host.last_seen_at < get_timing().host_silent_s


def weights_of(run_id: str) -> str:
    return hashlib.sha256((Path(checkpoints_of(run_id)[-1].path) / "model.safetensors").read_bytes()).hexdigest()


def test_a_machine_dies_and_its_run_goes_on_on_the_other(pair):
    for machine in pair:
        machine.start(cores=1, **told(steps=150, step_s=0.05))
    (a, ours), (b, theirs) = on_each(pair)
    saved = checkpoints_of(theirs)[-1].step
    b.power_off()
    assert not b.processes()
    run = wait_for_state(theirs, "completed", timeout_s=90)
    assert run.attempt == 2 and attempt_of(theirs, 2).host_id == a.name
    assert attempt_of(theirs, 2).resumed_from_step >= saved
    lost = [e for e in events_of(theirs, "state") if e.data.get("state") == "recovering"]
    assert len(lost) == 1 and b.name in lost[0].data["message"]
    run = wait_for_state(ours, "completed", timeout_s=60)
    assert run.attempt == 1, "the other machine's run has noticed nothing"
    assert is_dense(ours) and is_dense(theirs)
    assert not is_present(b)


@pytest.mark.slow
def test_a_machine_that_was_cut_off_comes_back_and_changes_nothing(pair):
    """Its trainer and its runner live all the while; where there is no cable to cut, they are frozen."""
    a, b = pair
    b.start(cores=1, **told(steps=500, step_s=0.05))
    theirs = add_run(devices=ONE_RANK)
    wait_until(lambda: checkpoints_of(theirs), timeout_s=90)
    a.start(**told(steps=300, step_s=0.05))
    ours = add_run(devices=ONE_RANK)
    wait_until(lambda: checkpoints_of(ours), timeout_s=90)
    assert (get_run(theirs).lease_host, get_run(ours).lease_host) == (b.name, a.name)
    b.cut() if b.has_cable else b.freeze()
    wait_until(lambda: get_run(theirs).attempt == 2 and get_run(theirs).state == "running", timeout_s=90)
    verdict = attempt_of(theirs, 1).result
    assert attempt_of(theirs, 1).state == "closed"
    assert processes.marked(processes.marker(theirs, 1)), "what was given up is still there"
    before = [e.seq for e in events_of(theirs, "metrics") if e.attempt == 1]
    b.mend() if b.has_cable else b.thaw()
    wait_until(lambda: not processes.marked(processes.marker(theirs, 1)), timeout_s=60)
    wait_until(lambda: is_present(b), timeout_s=60)
    run = wait_for_state(theirs, "completed", timeout_s=60)
    assert run.attempt == 2 and attempt_of(theirs, 2).host_id == a.name
    assert [e.seq for e in events_of(theirs, "metrics") if e.attempt == 1] == before, "its word no longer counts"
    assert (attempt_of(theirs, 1).state, attempt_of(theirs, 1).result) == ("closed", verdict)
    assert wait_for_state(ours, "completed", timeout_s=60).attempt == 1
    assert is_dense(ours) and is_dense(theirs)
    assert b.worker.poll() is None and "fenced" in b.log()


@pytest.mark.slow
def test_a_machine_is_drained_and_the_other_continues_its_run(pair):
    a, b = pair
    for machine in pair:
        machine.start("--drain", cores=1, **told(steps=200, step_s=0.05))
    (a, ours), (b, theirs) = on_each(pair)
    b.stop()
    run = get_run(theirs)
    assert (run.desired, run.attempt) == ("run", 1) and run.state == "queued"
    assert checkpoints_of(theirs)[-1].step == run.progress["step"], "saved before it was handed back"
    assert not b.processes()
    run = wait_for_state(theirs, "completed", timeout_s=90)
    assert run.attempt == 2 and attempt_of(theirs, 2).host_id == a.name
    assert attempt_of(theirs, 2).resumed_from_step == attempt_of(theirs, 1).result["step"]
    assert wait_for_state(ours, "completed", timeout_s=60).attempt == 1
    assert is_dense(ours) and is_dense(theirs)


@pytest.mark.slow
def test_the_weights_are_those_of_a_run_that_nothing_happened_to(pair):
    """The real trainer: a run that dies with its machine ends with the weights of the one that did not."""
    for machine in pair:
        machine.start(real=True, cores=1, OMP_NUM_THREADS="1")
    (_, ours), (b, theirs) = on_each(pair, config={**SMALL, "max_steps": 300, "save_interval": 25})
    b.power_off()
    assert wait_for_state(theirs, "completed", timeout_s=240).attempt == 2
    assert wait_for_state(ours, "completed", timeout_s=120).attempt == 1
    assert weights_of(theirs) == weights_of(ours)
