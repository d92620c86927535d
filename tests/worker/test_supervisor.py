"""Parts of ``./studio up`` that need no whole studio: children with back-off, the port, the lock, addresses."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from worker.children import FIRST_BACKOFF_S, Child, describe
from worker.supervisor import UpError, in_url, is_loopback, is_ready, listen, lock_data_dir, prepare_data_dir


def child(tmp_path: Path, code: str, said: list[str]) -> Child:
    return Child("web", [sys.executable, "-c", code], env=dict(os.environ), log=tmp_path / "web.log", say=said.append)


def test_a_dead_child_is_started_again_after_a_while(tmp_path: Path) -> None:
    said: list[str] = []
    kept = child(tmp_path, "import time; print('hello', flush=True); time.sleep(60)", said)
    kept.start()
    first = kept.process.pid
    os.kill(first, signal.SIGKILL)
    kept.process.wait()
    kept.keep_alive()
    assert not kept.alive and kept.deaths == 1
    assert said == [f"web ended (SIGKILL); starting it again in {FIRST_BACKOFF_S:g} s. Its log: {kept.log}"]
    deadline = time.monotonic() + 10
    while not kept.alive:
        kept.keep_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert kept.process.pid != first
    kept.kill()
    assert not kept.alive


def test_the_back_off_grows_and_the_log_says_why(tmp_path: Path) -> None:
    said: list[str] = []
    kept = child(tmp_path, "raise SystemExit('no such thing')", said)
    deadline = time.monotonic() + 20
    while kept.deaths < 3:
        kept.keep_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [float(text.split("again in ")[1].split(" s.")[0]) for text in said] == [0.5, 1, 2]
    assert kept.last_words() == "no such thing\nno such thing\nno such thing"


def test_a_child_ends_with_what_it_left_in_its_session(tmp_path: Path) -> None:
    code = ("import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
            "print(p.pid, flush=True); time.sleep(60)")
    kept = child(tmp_path, code, [])
    kept.start()
    deadline = time.monotonic() + 10
    while not kept.last_words():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    grandchild = int(kept.last_words())
    kept.kill()
    while True:
        try:
            if Path(f"/proc/{grandchild}/stat").read_text().split()[2] == "Z":
                break
            os.kill(grandchild, 0)
        except (ProcessLookupError, FileNotFoundError):
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_long_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.children.ROTATE_LOG_BYTES", 10)
    (tmp_path / "web.log").write_text("more than ten bytes\n")
    kept = child(tmp_path, "print('new')", [])
    kept.start()
    kept.process.wait()
    assert (tmp_path / "web.log").read_text() == "new\n"
    assert (tmp_path / "web.log.1").read_text() == "more than ten bytes\n"


def test_exits_are_described() -> None:
    assert describe(-9) == "SIGKILL" and describe(3) == "exit status 3"


def test_one_studio_per_data_directory(tmp_path: Path) -> None:
    prepare_data_dir(tmp_path / "d")
    with lock_data_dir(tmp_path / "d"):
        with pytest.raises(UpError, match=rf"Another studio \(pid {os.getpid()}\)"):
            lock_data_dir(tmp_path / "d")
    lock_data_dir(tmp_path / "d").close()


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UpError, match="--data_dir"):
        prepare_data_dir(tmp_path / "file" / "d")


def test_ports() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UpError, match=f"Port {port} on 127.0.0.1 is taken"):
            listen("127.0.0.1", port)
    with pytest.raises(UpError, match="not an address"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(UpError, match="cannot be used"):
        listen("192.0.2.1", 0)  # TEST-NET-1: nobody has it


@pytest.mark.parametrize("host, loopback", [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True),
                                            ("localhost", True), ("0.0.0.0", False), ("::", False),
                                            ("192.168.1.2", False), ("localhost.example", False)])
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    assert in_url(host) == (f"[{host}]" if ":" in host else host)


def test_nobody_there_is_not_ready() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert not is_ready(f"http://127.0.0.1:{port}/readyz")
