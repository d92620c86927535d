"""Progress as a second clock: what counts, how long each phase may be silent, and what is kept of a run that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from app.core import states
from app.core.settings import get_settings
from app.core.timing import get_timing
from minimind.events import EventWriter
from minimind.run_dir import RunDir
from tests.database_rig import add_run, get_run
from tests.integration.material import SMALL, TWO_RANKS
from tests.worker.runner_rig import (
    REAL_VARIABLE,
    ROOT,
    attempt_of,
    checkpoints_of,
    events_of,
    is_dense,
    stop_between_transactions,
    tell,
    wait_for_state,
    wait_until,
    wish,
)
from worker import processes, stall
from worker.reconciler import Reconciler


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """``(progress, events, pass_time)`` of an attempt; ``pass_time`` looks every second, as the runner does."""
    run = RunDir(tmp_path)
    attempt = run.make_attempt(1)
    clock = Clock()
    progress = stall.Progress(run, 1, clock)
    events = EventWriter(attempt.events, 1)

    def pass_time(seconds: float) -> stall.Stall | None:
        for _ in range(int(seconds)):
            clock.now += 1
            progress.look()
        return progress.stall

    for name, value in (("step", 10), ("data", 60), ("compile", 30), ("save", 20)):
        monkeypatch.setattr(get_timing(), f"stall_{name}_s", float(value))
    yield progress, events, pass_time
    events.close()


def test_every_phase_has_its_own_limit(watched):
    progress, events, pass_time = watched
    assert progress.limit() == (30, "STUDIO_STALL_COMPILE_S"), "starting"
    events.write("state", {"resumed_from_step": 0})
    progress.look()
    assert progress.limit() == (60, "STUDIO_STALL_DATA_S")
    for phase, limit in (("import", 60), ("tokenizer", 60), ("tokenize", 60), ("compile", 30), ("train", 10),
                         ("eval", 10), ("save", 20)):
        events.write("phase", {"phase": phase, "done": 0})
        progress.look()
        assert progress.limit()[0] == limit, phase
        assert pass_time(limit) is None
        found = pass_time(2)
        assert found is not None and found.phase == phase and f"phase {phase}" in found.message
        events.write("phase", {"phase": phase, "done": 1})
        assert pass_time(1) is None, "it moves again"


def test_a_process_that_never_says_a_word_is_found(watched):
    _, _, pass_time = watched
    assert pass_time(30) is None
    assert "before its first phase" in pass_time(1).message


def test_only_what_gets_somewhere_is_progress(watched):
    progress, events, pass_time = watched
    events.write("phase", {"phase": "train", "done": 3}, step=3)
    assert pass_time(8) is None
    for kind in ("warning", "log"):
        events.write(kind, {"message": "Waiting."}, step=3)
    events.write("phase", {"phase": "train", "done": 3}, step=3)
    assert pass_time(4) is not None, "the same place again and a warning are none"
    for step, kind in enumerate(("metrics", "checkpoint", "eval", "sample"), 4):
        events.write(kind, {}, step=step)
        assert pass_time(9) is None, kind
    assert pass_time(3).step == 4 and "step 4" in progress.stall.message


def test_slow_steps_have_more_time(watched, monkeypatch):
    progress, events, pass_time = watched
    events.write("phase", {"phase": "train", "done": 0})
    at = 5000.0
    for step in (1, 2, 3, 4, 14):  # the last one is reported after nine that were not
        at += 3.0 * (1 if step < 14 else 10)
        monkeypatch.setattr("minimind.events.time.time", lambda at=at: at)
        events.write("metrics", {"loss": 1.0}, step=step)
    progress.look()
    assert progress.step_s() == pytest.approx(3.0)
    assert progress.limit()[0] == pytest.approx(150.0)
    assert pass_time(149) is None and pass_time(3) is not None


def test_a_save_that_was_not_announced_has_the_time_of_a_save(watched):
    progress, events, pass_time = watched
    events.write("phase", {"phase": "train", "done": 0})
    half_made = progress._run_dir.checkpoints / ".tmp-step-00000005-a1"
    half_made.mkdir(parents=True)
    assert pass_time(20) is None
    half_made.rename(half_made.with_name("step-00000005-a1"))
    assert pass_time(1) is not None


def test_a_machine_that_slept_blames_nobody(watched):
    progress, events, pass_time = watched
    events.write("phase", {"phase": "train", "done": 0})
    assert pass_time(9) is None
    progress._clock.now += 3600
    assert progress.look() is None, "nobody ran, we neither"
    assert pass_time(10) is None and pass_time(1) is not None


def test_a_full_disk_silences_a_run_that_does_not_hang(watched, monkeypatch):
    """Its events cannot be written; training goes on, as long as nothing has to be saved."""
    progress, events, pass_time = watched
    events.write("metrics", {"loss": 1.0}, step=1)
    monkeypatch.setattr(stall.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0})())
    assert pass_time(1000) is None
    monkeypatch.undo()
    for name in ("step", "data", "compile", "save"):
        monkeypatch.setattr(get_timing(), f"stall_{name}_s", 10.0)
    assert pass_time(30) is not None, "there is space again, and it still says nothing"


def test_events_of_another_attempt_are_not_ours(watched):
    progress, _, pass_time = watched
    stale = EventWriter(progress._run_dir.attempt(1).events, 7)
    stale.write("metrics", {"loss": 1.0}, step=9)
    stale.close()
    assert pass_time(31) is None and progress.step == 0, "what was read says that somebody has begun"


WAITS = """
import sys, threading, time
sys.path.insert(0, {root!r})
from minimind.metrics import send_output_to
from minimind.stacks import show_when_asked
from pathlib import Path
if {asks}:
    show_when_asked()
send_output_to(Path({log!r}))
lock = threading.Lock()
lock.acquire()
print("ready", flush=True)
def in_a_collective():
    lock.acquire()
in_a_collective()
"""


def test_ranks_show_their_stacks_wherever_they_wait(tmp_path):
    """One waits for a lock in C code, one is stopped, one cannot answer, one is gone."""
    started = {rank: subprocess.Popen([sys.executable, "-c", WAITS.format(
        root=str(ROOT), log=str(tmp_path / f"{rank}.log"), asks=rank != 2)]) for rank in range(3)}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    try:
        for rank in started:
            wait_until(lambda rank=rank: (tmp_path / f"{rank}.log").exists()
                       and "ready" in (tmp_path / f"{rank}.log").read_text())
        started[1].send_signal(signal.SIGSTOP)
        wait_until(lambda: stall._state(started[1].pid) == "stopped")
        told = stall.collect_stacks({rank: process.pid for rank, process in started.items()} | {3: gone.pid},
                                    lambda rank: tmp_path / f"{rank}.log", "It hangs.")
        for rank in (0, 1):
            log = (tmp_path / f"{rank}.log").read_text()
            assert "It hangs. What rank" in log and "in in_a_collective" in log.partition("It hangs.")[2]
        assert "SIGSTOP" in (tmp_path / "1.log").read_text() and "SIGSTOP" not in (tmp_path / "0.log").read_text()
        assert [t.split()[1] for t in told] == ["1", "2", "3"] and "was stopped by a signal" in told[0]
        assert all(process.poll() is None for process in started.values()), "none died of the question"
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def go_on(run_id: str) -> None:
    """Let the reconciler put a recovering run back into the queue."""
    reconciler = Reconciler("here")
    wait_until(lambda: reconciler.reconcile() or get_run(run_id).state == "queued")


def test_a_step_that_hangs_is_shown_ended_and_tried_again(runners, monkeypatch):
    monkeypatch.setenv("STUDIO_STALL_STEP_S", "4")
    tell(monkeypatch, hang_at=12, only=[1])
    run_id = add_run()
    runners.claim_and_start()
    run = wait_for_state(run_id, "recovering", timeout_s=60)
    assert run.fruitless_attempts == 0
    warning = next(e for e in events_of(run_id, "warning") if e.data.get("code") == "STALL")
    assert warning.data["phase"] == "train" and warning.data["limit_s"] == 4 and warning.step == 12
    assert warning.data["silent_s"] >= 4 and "no progress" in warning.data["message"]
    ended = attempt_of(run_id, 1)
    assert ended.error["class"] == "STALL" and "STUDIO_STALL_STEP_S" in ended.error["hint"]
    assert ended.result == {"status": None, "step": None, "checkpoint": None, "state": "recovering"}
    log = RunDir(get_settings().runs_dir / run_id).attempt(1).log(0).read_text()
    assert "no progress" in log and "in hang" in log
    go_on(run_id)
    runners.claim_and_start()
    wait_for_state(run_id, "completed", timeout_s=60)
    assert attempt_of(run_id, 2).resumed_from_step == 10 and attempt_of(run_id, 2).error is None
    assert is_dense(run_id)


@pytest.mark.slow
@pytest.mark.integration
def test_a_phase_that_hangs_ends_after_three_attempts(runners, monkeypatch):
    monkeypatch.setenv("STUDIO_STALL_DATA_S", "3")
    monkeypatch.setenv("STUDIO_RETRY_FIRST_S", "0")
    tell(monkeypatch, hang_in="tokenize")
    run_id = add_run()
    for attempt in (1, 2, 3):
        assert runners.claim_and_start().attempt == attempt
        run = wait_for_state(run_id, "queued", "failed", timeout_s=60)
    assert run.state == "failed" and run.error["class"] == "STALL" and "phase tokenize" in run.error["message"]
    last = events_of(run_id, "state")[-1]
    assert [a["attempt"] for a in last.data["attempts"]] == [3, 2, 1]
    assert {a["class"] for a in last.data["attempts"]} == {"STALL"}


@pytest.mark.integration
def test_a_run_that_hangs_while_it_is_paused_is_paused(runners, monkeypatch):
    monkeypatch.setenv("STUDIO_STALL_STEP_S", "5")
    tell(monkeypatch, hang_at=7)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: (get_run(run_id).progress.get("step") or 0) >= 7)
    wish(states.request_pause, run_id)
    wait_for_state(run_id, "pausing")
    wait_for_state(run_id, "paused", timeout_s=60)
    assert [c.step for c in checkpoints_of(run_id)] == [5] and attempt_of(run_id, 1).error["class"] == "STALL"


@pytest.mark.slow
@pytest.mark.integration
def test_a_machine_that_is_suspended_kills_nothing(runners, monkeypatch):
    """Runner and trainer stand still together, longer than a step may take."""
    monkeypatch.setenv("STUDIO_STALL_STEP_S", "4")
    tell(monkeypatch, steps=300, step_s=0.02)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    runner = attempt_of(run_id, 1).runner_pid
    trainer = [pid for pid in processes.marked(processes.marker(run_id, 1)) if pid != runner]
    stop_between_transactions(runner)
    processes.send(trainer, signal.SIGSTOP)
    time.sleep(stall.GAP_S + 4)
    processes.send([runner, *trainer], signal.SIGCONT)
    assert wait_for_state(run_id, "completed", "failed", "recovering", timeout_s=60).state == "completed"
    assert not [e for e in events_of(run_id, "warning") if e.data.get("code") == "STALL"]


@pytest.mark.slow
@pytest.mark.integration
def test_a_rank_that_sleeps_for_ever_is_found_in_a_real_training(runners, monkeypatch):
    """Two real ranks; one is stopped in the middle. The other one waits for it in a collective."""
    monkeypatch.setenv("STUDIO_STALL_STEP_S", "20")
    monkeypatch.setenv(REAL_VARIABLE, "1")
    run_id = add_run(devices=TWO_RANKS, config=SMALL | {"max_steps": 400, "save_interval": 5})
    runners.claim_and_start()
    wait_until(lambda: get_run(run_id).state in ("failed", "recovering") or len(checkpoints_of(run_id)) >= 2,
               timeout_s=280)
    assert get_run(run_id).state == "running", get_run(run_id).error
    torchrun = next(pid for pid in processes.marked(processes.marker(run_id, 1)) if processes.ranks_below(pid))
    os.kill(processes.ranks_below(torchrun)[1], signal.SIGSTOP)
    wait_for_state(run_id, "recovering", timeout_s=120)
    warning = next(e for e in events_of(run_id, "warning") if e.data.get("code") == "STALL")
    assert "Rank 1 was stopped by a signal" in warning.data["message"]
    attempt = RunDir(get_settings().runs_dir / run_id).attempt(1)
    for rank in (0, 1):
        shown = attempt.log(rank).read_text().partition("no progress")[2]
        assert "trainer.py" in shown and "in run" in shown, f"rank {rank}"
    saved = max(c.step for c in checkpoints_of(run_id))
    go_on(run_id)
    runners.claim_and_start()
    wait_for_state(run_id, "completed", timeout_s=280)
    assert attempt_of(run_id, 2).resumed_from_step == saved and is_dense(run_id)
