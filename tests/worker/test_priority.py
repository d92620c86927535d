"""How much of a core answering takes from a training: the niceness for a share, and what the kernel makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from worker.engines import EngineOptions
from worker.priority import DEFAULT_SHARE, NICEST, WEIGHT_STEP, niceness_for, usable_cores

ROOT = Path(__file__).resolve().parents[2]
GIVES_WAY = ("import sys; from worker.priority import give_way; give_way(float(sys.argv[1])); "
             "print('there', flush=True); sys.stdin.read()")


@pytest.mark.parametrize("share", [0.5, 0.4, 0.25, 0.1, 0.02])
def test_no_more_than_the_share_and_little_less(share: float) -> None:
    weight = WEIGHT_STEP ** -niceness_for(share)
    assert 0.78 * share < weight / (1 + weight) <= share + 1e-6


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_beside_a_group_on_many_cores_too(cores: int) -> None:
    """Each of them has a part of that group's weight."""
    weight = WEIGHT_STEP ** -niceness_for(0.25, cores)
    assert 0.78 * 0.25 < weight / (weight + 1 / cores) <= 0.25 + 1e-6


def test_the_smallest_share_is_the_nicest() -> None:
    assert niceness_for(0.0001) == NICEST and niceness_for(0.5) == 0


@pytest.mark.parametrize("share", ["0", "-0.1", "0.6", "1", "nan"])
def test_a_share_that_is_none_is_a_sentence(share: str) -> None:
    with pytest.raises(ValueError, match=r"STUDIO_INFERENCE_SHARE is .*; it must be above 0 and at most 0.5"):
        niceness_for(float(share))


def test_the_setting_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert EngineOptions.from_environment(tmp_path).share == DEFAULT_SHARE
    monkeypatch.setenv("STUDIO_INFERENCE_SHARE", "0.1")
    assert EngineOptions.from_environment(tmp_path).share == 0.1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("own_session", [True, False])
def test_a_session_of_its_own_is_made_nice_and_no_other(own_session: bool) -> None:
    """As the supervisor starts it, and from a shell."""
    process = subprocess.Popen([sys.executable, "-P", "-c", GIVES_WAY, "0.25"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
                               start_new_session=own_session)
    try:
        assert process.stdout.readline() == b"there\n"
        assert psutil.Process(process.pid).nice() == min(psutil.Process().nice() + 5, NICEST)
        group = Path(f"/proc/{process.pid}/autogroup")
        if group.exists() and group.read_text().strip():
            wanted = str(niceness_for(0.25, usable_cores()))
            assert group.read_text().split()[-1] == (wanted if own_session else
                                                     Path("/proc/self/autogroup").read_text().split()[-1])
    finally:
        process.communicate()


@pytest.mark.slow  # measures for some seconds, on a core that nobody else may disturb for long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="binds processes to a core")
def test_beside_one_that_wants_the_same_core_it_gets_its_share() -> None:
    """Two that compute for ever in sessions of their own, as a training and the inference process are."""
    spin = ("import os, sys; from worker.priority import give_way\nos.sched_setaffinity(0, {int(sys.argv[1])})\n"
            "if sys.argv[2] != '-': give_way(float(sys.argv[2]))\nprint('there', flush=True)\nwhile True: pass")
    core = str(max(os.sched_getaffinity(0)))
    processes = [subprocess.Popen([sys.executable, "-P", "-c", spin, core, share], stdout=subprocess.PIPE,
                                  env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
                 for share in ("-", "0.25")]
    try:
        for process in processes:
            assert process.stdout.readline() == b"there\n"
        seen = [psutil.Process(process.pid) for process in processes]
        before = [sum(one.cpu_times()[:2]) for one in seen]
        time.sleep(6)
        training, answering = (sum(one.cpu_times()[:2]) - start for one, start in zip(seen, before))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    print(f"{answering / (training + answering):.3f} of the core")
    assert 0.1 < answering / (training + answering) < 0.32
