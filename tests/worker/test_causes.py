"""Why an attempt ended, in a class and a sentence; and what follows: tried again, once, or not at all."""

from __future__ import annotations

import os
import signal

import pytest
from sqlalchemy import update

from app.core import db, states
from app.core.models import Host, Run
from app.core.queue import claim_run
from app.core.settings import get_settings
from minimind.errors import class_of_words
from minimind.run_dir import RunDir, write_json
from tests.database_rig import HOST, add_host, add_run, get_run
from tests.integration.material import TWO_RANKS
from tests.worker.runner_rig import (
    GPU_VARIABLE,
    attempt_of,
    checkpoints_of,
    events_of,
    is_dense,
    tell,
    wait_for_state,
    wait_until,
    wish,
)
from worker import causes, processes
from worker.causes import Memory
from worker.device_lock import DeviceLocks
from worker.reconciler import Reconciler
from worker.verdict import TRIED_AGAIN, settle

QUIET = Memory(0, 0)


@pytest.fixture
def found(tmp_path, monkeypatch):
    """``found(returncode, ...)``: the cause of an attempt with these logs."""
    attempt = RunDir(tmp_path).make_attempt(1)
    monkeypatch.setattr(Memory, "read", classmethod(lambda cls: QUIET))

    def find(returncode: int | None = None, *, world_size: int = 1, result: dict | None = None,
             ranks: list | None = None, before: Memory = QUIET, **logs: str) -> causes.Cause | None:
        for name, text in logs.items():
            (attempt.path / "logs" / f"{name}.log").write_text(text)
        if ranks is not None:
            write_json(attempt.path / "logs" / causes.RANKS_FILE, ranks)
        return causes.find(returncode=returncode, world_size=world_size, attempt_dir=attempt.path, result=result,
                           memory_before=before)

    return find


def failed(class_: str, message: str = "It is wrong.") -> dict:
    return {"status": "failed", "step": 3, "checkpoint": None,
            "error": {"class": class_, "message": message, "hint": None}}


def test_what_ended_well_has_no_cause(found):
    for status in ("completed", "paused", "stopped"):
        assert found(-9, result={"status": status, "step": 1, "checkpoint": None}) is None
    assert found() is None, "nothing was started"


def test_the_trainers_own_word_is_believed(found):
    cause = found(2, result=failed("DATA"))
    assert cause.as_dict() == {"class": "DATA", "message": "It is wrong.", "hint": None}


@pytest.mark.parametrize(("words", "class_"), [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "OOM_CUDA"),
    ("RuntimeError: CUDA error: out of memory", "OOM_CUDA"),
    ("torch.AcceleratorError: CUDA error: device-side assert triggered", "GPU"),
    ("RuntimeError: CUDA error: unspecified launch failure", "GPU"),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "GPU"),
    ("RuntimeError: CUDA error: the launch timed out and was terminated", "GPU"),
    ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "GPU"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory", "OOM_HOST"),
    ("terminate called after throwing an instance of 'std::bad_alloc'", "OOM_HOST"),
    ("OSError: [Errno 28] No space left on device: '/data/runs'", "DISK_FULL"),
    ("RuntimeError: [../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234", "NCCL"),
    ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp, unhandled system error", "NCCL"),
    ("[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)", "NCCL"),
    ("torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: refused", "NCCL"),
    ("ValueError: shapes do not match", None),
])
def test_words_tell_their_class(words, class_, found):
    assert class_of_words(words) == class_
    cause = found(1, rank0=f"step 3/20 loss 2.5\nTraceback:\n{words}\n")
    assert cause.class_ == (class_ or "UNKNOWN") and words[:60] in cause.message and "exit status 1" in cause.message


def test_an_ordinary_line_of_the_log_is_no_error(found):
    cause = found(1, rank0="Using the backend gloo with 2 ranks.\n")
    assert cause.class_ == "UNKNOWN" and "Using the backend gloo" in cause.message
    assert found(0, rank0="").class_ == "NO_RESULT"


def test_a_killed_rank_is_named_with_its_signal_and_last_words(found):
    cause = found(-signal.SIGKILL, rank0="step 7/20\n")
    assert (cause.class_, cause.rank) == ("SIGNAL", 0)
    assert cause.message == ("Rank 0 was killed by SIGKILL, not for want of memory, as the kernel counts. The last "
                             "words of its log: step 7/20")
    cause = found(-signal.SIGSEGV, rank0="step 7/20\nFatal Python error: Segmentation fault\n\n"
                                         'Current thread 0x7f (most recent call first):\n  File "a.py", line 3 in f\n')
    assert cause.class_ == "SIGNAL" and "SIGSEGV" in cause.message and "Segmentation fault" in cause.message
    cause = found(-signal.SIGABRT, rank0="terminate called after throwing an instance of 'c10::AcceleratorError'\n"
                                         "  what():  CUDA error: an illegal memory access was encountered\n")
    assert cause.class_ == "GPU" and "illegal memory access" in cause.message


def test_who_kills_for_want_of_memory_is_known_or_said_not_to_be(found):
    killed = -signal.SIGKILL
    assert found(killed, before=Memory(-1, 0)).class_ == "OOM_HOST"
    probable = found(killed, before=Memory(0, -1))
    assert probable.class_ == "OOM_HOST" and "probably by the kernel" in probable.message
    assert found(-signal.SIGTERM, before=Memory(-1, -1)).class_ == "SIGNAL", "the kernel sends SIGKILL"


def test_a_system_that_does_not_count_is_not_believed_to(found, monkeypatch):
    monkeypatch.setattr(Memory, "read", classmethod(lambda cls: Memory(None, None)))
    cause = found(-signal.SIGKILL, before=Memory(None, None))
    assert cause.class_ == "SIGNAL" and "which this system does not tell" in cause.message


def test_the_kernels_counters_are_found():
    counted = Memory.read()
    if os.path.exists("/proc/vmstat"):
        assert counted.machine is not None and counted.machine >= 0


def test_of_several_ranks_the_first_to_die_is_blamed(found):
    ranks = [{"rank": 0, "status": 1, "t": 100}, {"rank": 1, "status": -9, "t": 100},
             {"rank": 2, "status": -9, "t": 105}]  # that one ignored SIGTERM, and torchrun killed it
    cause = found(1, world_size=3, ranks=ranks, result=failed("NCCL", "The ranks lost each other."),
                  rank0="RuntimeError: gloo\n", rank1="step 7/20\n")
    assert (cause.class_, cause.rank) == ("SIGNAL", 1) and "Rank 1 was killed by SIGKILL" in cause.message
    ranks = [{"rank": 0, "status": 1, "t": 100}, {"rank": 1, "status": -15, "t": 100}]
    cause = found(1, world_size=2, ranks=ranks, result=failed("NCCL", "The ranks lost each other."))
    assert cause.class_ == "NCCL", "SIGTERM came from torchrun"
    assert found(1, world_size=2, ranks=ranks, result=failed("DATA")).class_ == "DATA"


def test_a_dead_torchrun_is_named(found):
    cause = found(-9, world_size=2, rank0="step 3\n")
    assert cause.class_ == "SIGNAL" and "torchrun" in cause.message and "SIGKILL" in cause.message


def test_a_full_disk_keeps_even_the_verdict_from_being_written(found, monkeypatch):
    monkeypatch.setattr(causes.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 4096})())
    assert found(1, rank0="step 3\n").class_ == "DISK_FULL"


# -- what follows -------------------------------------------------------------------------------------------------


def end(run_id: str, class_: str, **options) -> Run:
    """Claim the run and let its attempt end with an error of ``class_``."""
    with db.transaction() as session:
        session.execute(update(Run).where(Run.state == "recovering").values(not_before=None))
        run = session.get(Run, run_id)
        if run.state == "recovering":
            states.move(session, run, "queued", values={"not_before": None})
        claim = claim_run(session, HOST)
        session.refresh(run)
        states.move(session, run, "running")
        settle(session, run, claim.attempt, failed(class_, f"{class_} {claim.attempt}."), **options)
        return run


@pytest.mark.parametrize("class_", ["CONFIG", "DATA", "CHECKPOINT", "RESUME", "DISK_FULL", "NAN", "OOM_CUDA", "NEW"])
def test_the_hopeless_fails_at_once(database, class_):
    add_host()
    run_id = add_run()
    run = end(run_id, class_)
    assert run.state == "failed" and run.error["class"] == class_
    attempt = attempt_of(run_id, 1)
    assert attempt.error["class"] == class_ and attempt.state == "closed"
    assert attempt.result == {"status": "failed", "step": 3, "checkpoint": None, "state": "failed"}


@pytest.mark.parametrize("class_", sorted(set(TRIED_AGAIN) - {"OOM_HOST"}))
def test_the_hopeful_is_tried_three_times_and_all_three_are_told(database, class_):
    add_host()
    run_id = add_run()
    assert end(run_id, class_).state == "recovering"
    assert end(run_id, class_).state == "recovering"
    run = end(run_id, class_)
    assert run.state == "failed" and run.error["class"] == class_
    assert run.error["message"] == (f"{class_} 3. These were 3 attempts in a row without a new checkpoint. "
                                    f"Attempt 2: {class_} 2. Attempt 1: {class_} 1.")
    assert [a["attempt"] for a in events_of(run_id, "state")[-1].data["attempts"]] == [3, 2, 1]


def test_out_of_memory_is_tried_again_once(database):
    add_host()
    run_id = add_run()
    assert end(run_id, "OOM_HOST").state == "recovering"
    assert end(run_id, "STALL").state == "recovering", "it is counted in a row"
    run_id = add_run()
    assert end(run_id, "OOM_HOST").state == "recovering"
    run = end(run_id, "OOM_HOST")
    assert run.state == "failed" and "two attempts in a row" in run.error["message"]


def test_a_gpu_that_fails_is_left_alone_for_a_while(database):
    add_host(devices=[{"id": f"cuda:{n}", "name": "GPU", "memory_bytes": 1} for n in range(3)])
    run_id = add_run(devices=["cuda:0", "cuda:1"])
    with db.transaction() as session:
        session.get(Host, HOST).bad_devices = [{"id": "cuda:2", "reason": "old", "until": 1.0}]
    end(run_id, "GPU", suspects=["cuda:1"])
    with db.reading() as session:
        (bad,) = session.get(Host, HOST).bad_devices
        assert bad["id"] == "cuda:1" and bad["reason"] == "GPU 1." and 590 < bad["until"] - db.now(session) <= 600
        (run,) = session.query(Run).all()
        assert run.state == "recovering"


def test_where_nobody_knows_which_gpu_failed_all_of_the_attempt_are_suspects(database):
    add_host(devices=[{"id": f"cuda:{n}", "name": "GPU", "memory_bytes": 1} for n in range(3)])
    end(add_run(devices=["cuda:0", "cuda:1"]), "GPU")
    with db.reading() as session:
        assert [d["id"] for d in session.get(Host, HOST).bad_devices] == ["cuda:0", "cuda:1"]


def test_a_failing_cpu_is_nobodys_fault(database):
    add_host()
    end(add_run(), "GPU")
    with db.reading() as session:
        assert not session.get(Host, HOST).bad_devices


# -- real processes -----------------------------------------------------------------------------------------------


def go_on(run_id: str) -> None:
    reconciler = Reconciler(HOST)
    wait_until(lambda: reconciler.reconcile() or get_run(run_id).state == "queued")


@pytest.mark.integration
def test_a_crash_with_an_exit_status_quotes_the_log(runners, monkeypatch):
    tell(monkeypatch, crash_at=7, exit=3, last_words="RuntimeError: CUDA error: device-side assert triggered")
    run_id = add_run()
    runners.claim_and_start()
    wait_for_state(run_id, "recovering")
    error = attempt_of(run_id, 1).error
    assert error["class"] == "GPU" and "exit status 3" in error["message"] and "device-side assert" in error["message"]


@pytest.mark.integration
def test_a_killed_rank_of_two_is_blamed_and_the_run_goes_on(runners, monkeypatch):
    tell(monkeypatch, steps=60, crash_at=12, bad_rank=1, last_words="I am rank one.", only=[1])
    run_id = add_run(devices=TWO_RANKS)
    runners.claim_and_start()
    wait_for_state(run_id, "recovering", timeout_s=120)
    error = attempt_of(run_id, 1).error
    assert error["class"] == "SIGNAL", error
    assert "Rank 1 was killed by SIGKILL" in error["message"] and "I am rank one." in error["message"]
    go_on(run_id)
    runners.claim_and_start()
    wait_for_state(run_id, "completed", timeout_s=120)
    assert attempt_of(run_id, 2).resumed_from_step == 10 and is_dense(run_id)


@pytest.mark.integration
def test_no_rank_outlives_a_killed_torchrun(runners, monkeypatch):
    tell(monkeypatch, steps=2000, deaf=True)
    run_id = add_run(devices=TWO_RANKS)
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id), timeout_s=120)
    torchrun = next(pid for pid in processes.marked(processes.marker(run_id, 1)) if processes.ranks_below(pid))
    ranks = processes.ranks_below(torchrun)
    assert sorted(ranks) == [0, 1]
    os.kill(torchrun, signal.SIGKILL)
    wait_until(lambda: not [pid for pid in ranks.values() if processes.is_alive(pid, _started(pid))], timeout_s=5)
    wait_for_state(run_id, "recovering", timeout_s=20)
    error = attempt_of(run_id, 1).error
    assert error["class"] == "SIGNAL" and "torchrun" in error["message"]


def _started(pid: int) -> float | None:
    try:
        return processes.start_time(pid)
    except processes.psutil.NoSuchProcess:
        return None


@pytest.mark.integration
def test_a_gpu_that_is_in_use_waits_for_another_attempt(runners, monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setenv(GPU_VARIABLE, "0.5")
    with db.transaction() as session:
        session.get(Host, HOST).devices = [{"id": "cuda:0", "name": "GPU", "memory_bytes": 1}]
    locks = DeviceLocks(["cuda:0"])
    locks.take()
    run_id = add_run(devices=["cuda:0"])
    try:
        runners.claim_and_start()
        wait_for_state(run_id, "recovering")
    finally:
        locks.release()
    error = attempt_of(run_id, 1).error
    assert error["class"] == "GPU" and "is in use by" in error["message"]
    assert get_run(run_id).fruitless_attempts == 0, "it was no attempt at all"
    with db.transaction() as session:
        host = session.get(Host, HOST)
        assert [d["id"] for d in host.bad_devices] == ["cuda:0"]
        host.bad_devices = None
    go_on(run_id)
    runners.claim_and_start()
    wait_for_state(run_id, "completed")


@pytest.mark.integration
@pytest.mark.parametrize(("request_it", "during", "after"), [
    (states.request_pause, "pausing", "paused"), (states.request_cancel, "cancelling", "cancelled")])
def test_a_wish_outlives_the_runner_that_should_grant_it(runners, monkeypatch, request_it, during, after):
    tell(monkeypatch, steps=100_000, deaf=True)
    run_id = add_run()
    runners.claim_and_start()
    wait_until(lambda: checkpoints_of(run_id))
    wish(request_it, run_id)
    wait_for_state(run_id, during)
    os.kill(attempt_of(run_id, 1).runner_pid, signal.SIGKILL)
    runners.processes[0].wait()
    Reconciler(HOST).reconcile()
    run = wait_for_state(run_id, after)
    assert attempt_of(run_id, 1).state == "closed" and is_dense(run_id)
    passed = [e.data["state"] for e in events_of(run_id, "state") if "state" in e.data]
    assert passed[-2:] == (["recovering", "paused"] if after == "paused" else ["cancelling", "cancelled"])
    assert run.lease_owner is None and not processes.marked(processes.marker(run_id, 1))


@pytest.mark.integration
def test_a_run_whose_runner_died_after_the_last_save_is_completed(runners, monkeypatch):
    tell(monkeypatch, linger_s=60)
    run_id = add_run()
    runners.claim_and_start()
    attempt = RunDir(get_settings().runs_dir / run_id).attempt(1)
    wait_until(lambda: (attempt.read_result() or {}).get("status") == "completed")
    os.kill(attempt_of(run_id, 1).runner_pid, signal.SIGKILL)
    runners.processes[0].wait()
    Reconciler(HOST).reconcile()
    run = wait_for_state(run_id, "completed")
    assert run.attempt == 1 and run.progress["step"] == 20 and is_dense(run_id)
    assert attempt_of(run_id, 1).result["status"] == "completed" and attempt_of(run_id, 1).error is None
