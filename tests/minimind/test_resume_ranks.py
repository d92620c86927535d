"""Several ranks, broken in the middle of a window or continued by another number of them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minimind.control import write_control
from minimind.model import Losses
from minimind.run_dir import RunDir
from minimind.step import Batch, Stepper
from tests.minimind.training import (
    TINY,
    assert_same_run,
    changed_ranks,
    events,
    result,
    unchanged,
    watch_micro_steps,
    write_texts,
)


def pausing(patch: pytest.MonkeyPatch, step: int, control: Path) -> None:
    """A pause is asked for between two micro-steps of ``step``."""
    def watched(stepper: Stepper, now: int, number: int, compute: Callable[[], Losses]) -> Losses:
        if (now, number, stepper.world.rank) == (step, 2, 0):
            write_control(control, "pause")
        return compute()

    watch_micro_steps(patch, watched)


def dying(patch: pytest.MonkeyPatch, step: int, rank: int) -> None:
    """One rank is killed between two micro-steps of ``step``."""
    def watched(stepper: Stepper, now: int, number: int, compute: Callable[[], Losses]) -> Losses:
        if (now, number, stepper.world.rank) == (step, 2, rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return compute()

    watch_micro_steps(patch, watched)


# With every option that draws random numbers or sums over ranks. One rank is paused and killed in test_resume.py too.
@pytest.mark.parametrize("size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 3))])
def test_ranks_that_break_in_mid_window(tmp_path: Path, size: int) -> None:
    """A pause waits for the window's end; a killed window is done again; each rank goes on with its own dropout."""
    arguments = ("pretrain", *TINY, "--data_path", write_texts(tmp_path / "data.jsonl"), "--cache_dir",
                 tmp_path / "cache", "--max_steps", 11, "--save_interval", 7, "--eval_interval", 5, "--sample_interval",
                 0, "--accumulation_steps", 2, "--dropout", 0.1, "--num_experts", 2, "--num_experts_per_tok", 1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert changed_ranks(size, unchanged, *arguments, "--out", whole) == [0] * size

    assert changed_ranks(size, partial(pausing, step=5, control=RunDir(broken).attempt(1).control), *arguments,
                         "--out", broken) == [0] * size
    assert (result(broken)["status"], result(broken)["step"]) == ("paused", 5)
    saved = Path(result(broken)["checkpoint"])
    states = [torch.load(saved / f"rng-rank{rank}.pt")["torch"] for rank in range(size)]
    assert all(not torch.equal(states[0], state) for state in states[1:])
    assert {t.dtype for t in load_file(saved / "model.safetensors").values()} == {torch.float32}

    codes = changed_ranks(size, partial(dying, step=9, rank=size - 1), "pretrain", "--out", broken, "--resume", "auto")
    assert codes[-1] == -signal.SIGKILL
    assert changed_ranks(size, unchanged, "pretrain", "--out", broken, "--resume", "auto") == [0] * size
    assert [events(broken, n)[0]["data"]["resumed_from_step"] for n in (2, 3)] == [5, 7]
    per_epoch = json.loads((whole / "resolved.json").read_text())["steps_per_epoch"]
    assert 5 % per_epoch and 7 % per_epoch  # both in the middle of an epoch
    assert_same_run(whole, broken, 11)


def noting_rows(patch: pytest.MonkeyPatch, note: Path, pause_at: int | None, control: Path) -> None:
    """Each rank notes the rows that it learns from; in the window of ``pause_at`` a pause is asked for."""
    batch = Stepper.batch

    def noted(self: Stepper, numbers: np.ndarray, rows: object = None) -> Batch:
        if rows is None:
            with open(f"{note}-{self.world.rank}", "a", encoding="utf-8") as file:
                file.writelines(f"{number}\n" for number in numbers)
        return batch(self, numbers, rows)

    patch.setattr(Stepper, "batch", noted)
    if pause_at is not None:
        pausing(patch, pause_at, control)


def test_every_row_is_learnt_once_by_whatever_number_of_ranks(tmp_path: Path) -> None:
    """Two ranks, then one, then two again, within one epoch; its last window is partial, with one row for one rank and
    two for the other at the end."""
    run_dir, note = RunDir(tmp_path / "run"), tmp_path / "rows"
    arguments = ("pretrain", *TINY, "--out", run_dir.path, "--data_path", write_texts(tmp_path / "data.jsonl", 96),
                 "--cache_dir", tmp_path / "cache", "--epochs", 1, "--accumulation_steps", 2, "--eval_interval", 0,
                 "--sample_interval", 0)
    again = ("pretrain", "--out", run_dir.path, "--resume", "auto", "--allow_changes")
    steps = []
    for attempt, (size, pause_at) in enumerate(((2, 2), (1, 5), (2, None)), 1):
        change = partial(noting_rows, note=note, pause_at=pause_at, control=run_dir.attempt(attempt).control)
        assert changed_ranks(size, change, *(arguments if attempt == 1 else again)) == [0] * size
        steps.append(result(run_dir.path, attempt)["step"])
    resolved = json.loads(run_dir.resolved.read_text())
    assert steps == [2, 5, resolved["total_steps"]] and resolved["rows"] % resolved["rows_per_step"] == 7
    learnt = Counter(int(line) for rank in (0, 1) for line in Path(f"{note}-{rank}").read_text().split())
    assert learnt == Counter(range(resolved["rows"]))
