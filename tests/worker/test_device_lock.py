"""Locks of GPUs: real processes hold them, end by SIGKILL, hand them on, and meet other users."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker import device_lock, gpus
from worker.device_lock import DeviceBusy, DeviceLocks, LockPlaceError, in_use
from worker.processes import ATTEMPT_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
#: takes the locks, starts what FORK says, prints a line, and waits to be ended
HOLD = """
import subprocess, sys
sys.modules["pynvml"] = None
from worker.device_lock import DeviceLocks
locks = DeviceLocks(sys.argv[2:])
locks.take()
child = None
if sys.argv[1] == "fork":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=locks.fds)
elif sys.argv[1] == "alone":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid if child else "held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A lock directory of this test, and no NVML: GPUs go by number."""
    monkeypatch.setenv("STUDIO_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr("worker.nvml._ask_nvidia_smi", lambda: None)
    gpus.forget()
    yield tmp_path / "locks"
    gpus.forget()


@pytest.fixture
def hold() -> Iterator[Callable[..., tuple[subprocess.Popen, str]]]:
    """Start a process that holds the locks of some devices; the process and the line it says."""
    started: list[subprocess.Popen] = []
    pids: list[int] = []

    def start(*devices: str, children: str = "none", mark: str = "f00d/3") -> tuple[subprocess.Popen, str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), ATTEMPT_VARIABLE: mark, "PATH": ""}
        process = subprocess.Popen([sys.executable, "-c", HOLD, children, *devices], env=env, cwd=ROOT, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        line = process.stdout.readline().strip()
        if line.isdecimal():
            pids.append(int(line))
        return process, line

    yield start
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        process.kill()
        process.communicate()


def wait_free(device: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while in_use([device]):
        assert time.monotonic() < deadline, f"{device} is still held"
        time.sleep(0.05)


def test_a_gpu_that_another_process_holds_is_busy_until_it_ends_however_it_ends(hold) -> None:
    process, line = hold("cuda:1")
    assert line == "held"
    locks = DeviceLocks(["cuda:0", "cuda:1"])
    with pytest.raises(DeviceBusy) as raised:
        locks.take()
    busy = raised.value
    assert busy.code == "GPU" and busy.device == "cuda:1"
    assert (busy.holder.pid, busy.holder.run_id, busy.holder.attempt) == (process.pid, "f00d", 3)
    assert f"cuda:1 of this machine is in use by run f00d, attempt 3 (process {process.pid} of user" in busy.message
    assert not locks.fds and not in_use(["cuda:0"]), "all or none"
    assert list(in_use(["cuda:0", "cuda:1", "cpu:0"])) == ["cuda:1"]
    process.kill()
    process.wait()
    locks.take(patience_s=20)
    assert len(locks.fds) == 2 and in_use(["cuda:0"])["cuda:0"].pid == os.getpid()
    locks.release()
    assert not in_use(["cuda:0", "cuda:1"])


def test_patience_outlasts_a_holder_that_ends(hold) -> None:
    process, _ = hold("cuda:0")
    ender = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    DeviceLocks(["cuda:0"]).take(patience_s=30)
    ender.wait()


def test_a_rank_that_was_handed_the_lock_keeps_it_when_its_runner_is_killed(hold) -> None:
    process, rank = hold("cuda:0", children="fork")
    process.kill()
    process.wait()
    with pytest.raises(DeviceBusy, match="it has ended, what it started has not") as raised:
        DeviceLocks(["cuda:0"]).take()
    assert raised.value.holder.run_id == "f00d"
    os.kill(int(rank), signal.SIGKILL)
    wait_free("cuda:0")


def test_release_leaves_the_lock_to_the_ranks_that_have_it(hold) -> None:
    locks = DeviceLocks(["cuda:0"])
    locks.take()
    rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=locks.fds)
    locks.release()
    assert in_use(["cuda:0"])["cuda:0"].pid == os.getpid()
    rank.kill()
    rank.wait()
    wait_free("cuda:0")


def test_a_child_that_is_not_handed_the_lock_does_not_keep_it(hold) -> None:
    process, _ = hold("cuda:0", children="alone")
    process.kill()
    process.wait()
    wait_free("cuda:0")


def test_a_process_in_between_learns_what_to_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    locks = DeviceLocks(["cuda:0", "cuda:1"])
    assert locks.environment() == {} and device_lock.inherited_fds() == ()
    locks.take()
    for name, value in locks.environment().items():
        monkeypatch.setenv(name, value)
    assert device_lock.inherited_fds() == locks.fds and len(locks.fds) == 2
    locks.release()
    assert device_lock.inherited_fds() == (), "files that are not open are not handed on"


def test_cpu_slots_take_no_lock(place: Path) -> None:
    locks = DeviceLocks(["cpu:0", "cpu:1"])
    locks.take()
    assert locks.fds == () and not place.exists() and in_use(["cpu:0"]) == {}


def test_names_are_uuids_where_nvml_tells_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "uuids", lambda: {"cuda:0": "GPU-8932f937-d72c"})
    first = DeviceLocks(["cuda:0", "cuda:3"])
    first.take()
    assert {p.name for p in place.iterdir()} == {"GPU-8932f937-d72c.lock", "cuda-3.lock"}
    monkeypatch.setattr(gpus, "uuids", lambda: {"cuda:5": "GPU-8932f937-d72c"})  # a container counts otherwise
    with pytest.raises(DeviceBusy, match="cuda:5"):
        DeviceLocks(["cuda:5"]).take()
    first.release()


def test_a_gpu_that_is_gone_is_said_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = gpus.Inventory((), ({"id": "cuda:0", "uuid": "GPU-1", "name": "H", "reason": "It has fallen off."},), True)
    monkeypatch.setattr(gpus, "inventory", lambda max_age_s=0: lost)
    for device, why in (("cuda:0", "It has fallen off."), ("cuda:1", "It is not there any more.")):
        with pytest.raises(gpus.DeviceGone, match=why) as raised:
            DeviceLocks([device]).take()
        assert raised.value.code == "GPU" and raised.value.device == device and raised.value.hint


# -- the place ----------------------------------------------------------------------------------------------------


def test_everybody_may_write_to_the_place_whatever_the_umask(place: Path) -> None:
    before = os.umask(0o077)
    try:
        DeviceLocks(["cuda:0"]).take()
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o1777
    assert stat.S_IMODE((place / "cuda-0.lock").stat().st_mode) == 0o666


def test_the_place_is_the_first_that_every_user_can_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, everybodys = tmp_path / "ours", tmp_path / "everybodys"
    ours.mkdir(mode=0o755)
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    monkeypatch.setattr(device_lock, "SHARED_PLACES", (tmp_path / "nothing", ours, everybodys))
    assert device_lock.lock_directory() == tmp_path / "locks", "STUDIO_LOCK_DIR comes first"
    monkeypatch.delenv("STUDIO_LOCK_DIR")
    assert device_lock.lock_directory() == everybodys / device_lock.NAME
    ours.chmod(0o1777)
    assert device_lock.lock_directory() == ours / device_lock.NAME


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_two_users_of_one_machine_meet() -> None:
    ask = ("import os, pathlib, sys\n"
           "sys.modules['pynvml'] = None\n"
           "from worker.device_lock import DeviceLocks, DeviceBusy\n"
           "os.setgid(65534); os.setuid(65534)\n"
           "for device in ('cuda:0', 'cuda:1'):\n"
           "    try: DeviceLocks([device], pathlib.Path(sys.argv[1])).take()\n"
           "    except DeviceBusy as error: print(error.message)\n"
           "    else: print('held')\n")
    place = Path("/tmp") / f"lock-test-{os.getpid()}"  # pytest's own directories are closed to others
    try:
        DeviceLocks(["cuda:0"], place).take()
        answer = subprocess.run([sys.executable, "-c", ask, str(place)], cwd=ROOT, capture_output=True, text=True,
                                env={**os.environ, "PATH": ""}, timeout=120)
        assert answer.stdout.splitlines()[-1:] == ["held"], answer.stderr
        assert f"in use by another program (process {os.getpid()} of user root)" in answer.stdout
        assert (place / "cuda-1.lock").stat().st_uid == 65534
        DeviceLocks(["cuda:1"], place).take()
    finally:
        for file in place.iterdir():
            file.unlink()
        place.rmdir()


@pytest.mark.parametrize("trap", ["symlink", "hard link", "pipe", "directory"])
def test_a_trap_at_the_lock_s_place_is_refused_and_harms_nothing(place: Path, tmp_path: Path, trap: str) -> None:
    place.mkdir()
    precious, lock = tmp_path / "precious", place / "cuda-0.lock"
    precious.write_text("all my work")
    {"symlink": lambda: lock.symlink_to(precious), "hard link": lambda: lock.hardlink_to(precious),
     "pipe": lambda: os.mkfifo(lock), "directory": lock.mkdir}[trap]()
    with pytest.raises(LockPlaceError, match="which is no plain file") as raised:
        DeviceLocks(["cuda:0"]).take()
    assert "STUDIO_LOCK_DIR" in raised.value.hint
    assert precious.read_text() == "all my work"


def test_a_place_that_is_a_link_or_a_file_is_refused(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place.symlink_to(elsewhere)
    with pytest.raises(LockPlaceError, match="cannot be used"):
        DeviceLocks(["cuda:0"]).take()
    assert not list(elsewhere.iterdir())
    place.unlink()
    place.write_text("")
    with pytest.raises(LockPlaceError, match="cannot be used"):
        DeviceLocks(["cuda:0"]).take()


@pytest.mark.parametrize("content", [b"\xff\xfe not json", b"[]", b'{"studio_lock": 1, "pid": -1, "mark": "a b/c"}',
                                     b'{"studio_lock": 1, "pid": "x", "uid": 1e400, "mark": {"a": 1}}', b"{" * 5000])
def test_nonsense_in_a_lock_file_is_not_believed(place: Path, hold, content: bytes) -> None:
    hold("cuda:0")
    (place / "cuda-0.lock").write_bytes(content)
    with pytest.raises(DeviceBusy, match="in use by another program\\."):
        DeviceLocks(["cuda:0"]).take()


def test_a_foreign_file_is_locked_but_not_written(place: Path) -> None:
    place.mkdir()
    (place / "cuda-0.lock").write_text("a note of somebody")
    DeviceLocks(["cuda:0"]).take()
    assert (place / "cuda-0.lock").read_text() == "a note of somebody"


def test_a_lock_file_that_was_cleaned_away_is_no_lock(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DeviceLocks(["cuda:0"]).take()
    lock, made = place / "cuda-0.lock", []
    real = device_lock._Directory._open_file

    def open_and_lose(self, name):
        file = real(self, name)
        if not made:  # between the opening and the lock
            lock.unlink()
            made.append(file)
        return file

    gpus.forget()
    monkeypatch.setattr(device_lock._Directory, "_open_file", open_and_lose)
    place_locks = DeviceLocks(["cuda:1"])
    lock = place / "cuda-1.lock"
    place_locks.take()
    assert os.fstat(place_locks.fds[0]).st_ino == lock.stat().st_ino
