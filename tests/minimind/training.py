"""Real small trainings for tests: in this process, or as rank processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train
from minimind.control import write_control
from minimind.data.sampler import Window
from minimind.events import EventWriter, read_events
from minimind.metrics import TIMING_KEYS
from minimind.model import Losses
from minimind.run_dir import RunDir
from minimind.step import Stepper

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--num_key_value_heads", "1",
        "--intermediate_size", "64", "--max_seq_len", "32", "--batch_size", "2", "--vocab_size", "400",
        "--device", "cpu")
WORDS = "the a cat dog house river runs sleeps sees big small red blue Anna Ben lives in near with and".split()


def write_texts(path: Path, count: int = 60, seed: int = 1) -> Path:
    rng = random.Random(seed)
    rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(3, 40)))} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_dialogues(path: Path, count: int = 60, seed: int = 1) -> Path:
    rng = random.Random(seed)
    rows = [{"conversations": [message for _ in range(rng.randint(1, 2)) for message in (
        {"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))},
        {"role": "assistant", "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))})]} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@contextlib.contextmanager
def _process_settings() -> Iterator[None]:
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    threads, given = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    # One thread, as ``Ranks`` has: products of matrices differ in their last bit between one thread and two, and a
    # run here is compared with one there.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if given is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = given
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(*arguments: object) -> int:
    """``python train.py ARGUMENTS`` in this process; the exit code."""
    with _process_settings():
        return train.main([str(a) for a in arguments])


def start(tmp_path: Path, *more: object, out: str = "run", stage: str = "pretrain") -> int:
    return run(stage, *TINY, "--out", tmp_path / out, "--data_path", tmp_path / "data.jsonl", "--cache_dir",
               tmp_path / "cache", *more)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something just after the metrics of ``step`` were written."""
    write = EventWriter.write

    def watched(self: EventWriter, type: str, data: dict | None = None, *, step: int = 0, tokens: int = 0) -> None:
        write(self, type, data, step=step, tokens=tokens)
        if type == "metrics" and step == wanted:
            act()

    wanted = step
    monkeypatch.setattr(EventWriter, "write", watched)


def unchanged(patch: pytest.MonkeyPatch) -> None:
    """Ranks as they are (for ``changed_ranks``)."""


def paused_after(patch: pytest.MonkeyPatch, step: int, control: Path) -> None:
    """A pause is asked for when the metrics of ``step`` are written."""
    at_step(patch, step, lambda: write_control(control, "pause"))


def _torchrun_variables(size: int) -> list[dict[str, str]]:
    """The environment of each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


class Ranks:
    """``size`` processes of ``train.py`` as torchrun starts them."""

    def __init__(self, size: int, *arguments: object):
        self.processes = [
            subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, arguments)], cwd=ROOT,
                             env={**os.environ, **variables, "MINIMIND_DIE_WITH_PARENT": "1"},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for variables in _torchrun_variables(size)]

    def wait(self, timeout_s: float = 120) -> list[int]:
        """Exit codes; the outputs are in ``output``."""
        try:
            self.output = [p.communicate(timeout=timeout_s)[0] for p in self.processes]
        finally:
            self.kill()
        return [p.returncode for p in self.processes]

    def signal(self, number: int, rank: int = 0) -> None:
        self.processes[rank].send_signal(number)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait()
            if process.stdout and not process.stdout.closed and not hasattr(self, "output"):
                process.stdout.close()

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            if any(p.poll() is not None for p in self.processes):
                self.wait()
                raise AssertionError(f"a rank ended early: {self.output}")
            time.sleep(0.005)


def changed_ranks(size: int, change: Callable[[pytest.MonkeyPatch], None], *arguments: object,
                  timeout_s: float = 120) -> list[int]:
    """``train.py`` on ``size`` ranks, in each of which ``change`` (a function that pickles) was applied; exit codes,
    negative for a signal. When a rank is killed the others are too, as torchrun does it.

    The processes are forked from one that has imported torch already, which saves them their longest second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minimind.session", "tests.minimind.training"])
    ranks = [context.Process(target=_changed_rank, args=(variables, change, [str(a) for a in arguments]))
             for variables in _torchrun_variables(size)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + timeout_s
    try:
        while any(rank.is_alive() for rank in ranks) and not any((rank.exitcode or 0) < 0 for rank in ranks):
            assert time.monotonic() < deadline, "the ranks did not end"
            time.sleep(0.005)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [int(rank.exitcode or 0) for rank in ranks]


def _changed_rank(variables: dict[str, str], change: Callable[[pytest.MonkeyPatch], None],
                  arguments: list[str]) -> None:
    os.environ.update(variables)
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        status = run(*arguments)
    os._exit(status)  # as train.py leaves


def events(run_dir: Path, attempt: int, type: str | None = None) -> list[dict]:
    found = [event for event, _ in read_events(RunDir(run_dir).attempt(attempt).events)]
    return [e for e in found if type is None or e["type"] == type]


def last_step(run_dir: Path, attempt: int) -> int:
    return max((e["step"] for e in events(run_dir, attempt, "metrics")), default=0)


def curve(run_dir: Path, type: str = "metrics") -> dict[int, tuple]:
    """Numbers by step; a step that several attempts made is answered by the highest."""
    points = {}
    for attempt in RunDir(run_dir).attempts():
        for event in events(run_dir, attempt.number, type):
            points[event["step"]] = tuple((k, v) for k, v in sorted(event["data"].items()) if k not in TIMING_KEYS)
    return dict(sorted(points.items()))


def assert_same_run(whole: Path, broken: Path, steps: int) -> None:
    """The same numbers at every step, and the same weights byte for byte."""
    for kind in ("metrics", "eval"):
        assert curve(whole, kind) == curve(broken, kind)
    assert len(curve(whole)) == steps and weights(whole) == weights(broken)


def weights(run_dir: Path) -> bytes:
    """The final weights' file, byte for byte."""
    newest = RunDir(run_dir).checkpoint_dirs()[0]
    return (newest / "model.safetensors").read_bytes()


def result(run_dir: Path, attempt: int = 1) -> dict:
    found = RunDir(run_dir).attempt(attempt).read_result()
    assert found is not None
    return found


def watch_micro_steps(monkeypatch: pytest.MonkeyPatch,
                      instead: Callable[[Stepper, int, int, Callable[[], Losses]], Losses]) -> None:
    """``instead(stepper, step, number, compute)`` stands for every batch's losses; the first of a window has number 1
    and ``compute()`` are the true ones."""
    accumulate, losses = Stepper.accumulate, Stepper.losses
    now = {"step": 0, "calls": 0}

    def watched(self: Stepper, window: Window) -> torch.Tensor:
        now.update(step=window.step, calls=0)
        return accumulate(self, window)

    def counted(self: Stepper, model: object, batch: object) -> Losses:
        now["calls"] += 1
        return instead(self, now["step"], now["calls"], lambda: losses(self, model, batch))

    monkeypatch.setattr(Stepper, "accumulate", watched)
    monkeypatch.setattr(Stepper, "losses", counted)
