"""Losses and gradients that are not finite: one step is left out on every rank, many end the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from minimind.control import write_control
from minimind.data.sampler import Window
from minimind.model import Losses
from minimind.run_dir import RunDir
from minimind.step import Stepper
from tests.minimind.training import (
    TINY,
    at_step,
    changed_ranks,
    curve,
    events,
    result,
    run,
    start,
    watch_micro_steps,
    write_texts,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data.jsonl")


def broken_at(monkeypatch: pytest.MonkeyPatch, steps: set[int], rank: int = 0, value: float = float("nan")) -> None:
    """The loss of the second micro-step of ``steps`` is NaN or infinite on ``rank``."""
    def broken_losses(stepper: Stepper, step: int, number: int, compute: Callable[[], Losses]) -> Losses:
        found = compute()
        breaks = step in steps and number == 2 and stepper.world.rank == rank
        return found._replace(loss=found.loss * value) if breaks else found

    watch_micro_steps(monkeypatch, broken_losses)


def test_numbers_that_are_not_finite_end_the_run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {3, 4, 5}
    broken_at(monkeypatch, steps)
    assert start(tmp_path, "--max_steps", 8, "--accumulation_steps", 2, out="some") == 0
    points = curve(tmp_path / "some")
    assert [s for s, p in points.items() if dict(p)["loss"] is None] == [3, 4, 5]
    assert len(events(tmp_path / "some", 1, "warning")) == 3
    steps |= set(range(4, 99))
    steps.discard(3)
    assert start(tmp_path, "--max_steps", 80, "--accumulation_steps", 2, out="all") == 2
    error = result(tmp_path / "all")["error"]
    assert error["class"] == "NAN" and "step 13" in error["message"] and "learning_rate" in error["hint"]


def test_nan_policy_stop_ends_at_the_first(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, {4})
    assert start(tmp_path, "--max_steps", 8, "--accumulation_steps", 2, "--nan_policy", "stop") == 2
    error = result(tmp_path / "run")["error"]
    assert error["class"] == "NAN" and "Step 4 was not finite" in error["message"] and "nan_policy" in error["message"]
    assert [e["data"]["class"] for e in events(tmp_path / "run", 1, "error")] == ["NAN"]
    assert max(curve(tmp_path / "run")) == 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_changes_neither_weights_nor_optimizer(tmp_path: Path, data: Path, optimizer: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, {1, 3})
    take, found = Stepper.take, {}

    def watched(self: Stepper, window: Window, *rest: object) -> tuple:
        before = flat_state(self)
        done = take(self, window, *rest)
        found[window.step] = [name for name, value in flat_state(self).items()
                              if name in before and not torch.equal(value, before[name])]
        return done

    monkeypatch.setattr(Stepper, "take", watched)
    assert start(tmp_path, "--max_steps", 4, "--accumulation_steps", 2, "--optimizer", optimizer) == 0
    assert found[1] == [] and found[3] == []
    assert any("moment" in n or "exp_avg" in n for n in found[4]) and any("proj" in n for n in found[2])


def flat_state(stepper: Stepper) -> dict[str, torch.Tensor]:
    """Weights and optimizer state by name."""
    found = {n: p.detach().clone() for n, p in stepper.model.named_parameters()}
    for part, state in stepper.optimizer.state_dict().items():
        for number, values in state["state"].items():
            found |= {f"{part}.{number}.{name}": value.clone() for name, value in values.items()}
    return found


def fake_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 cannot be trained on a CPU; its scaler runs there."""
    monkeypatch.setattr(Stepper, "new_scaler",
                        lambda self: torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3))


def test_a_step_that_overflowed_changes_no_weight(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16's scaler knows of each optimizer apart; an infinity in one must hold back the other too."""
    fake_scaler(monkeypatch)
    take, found = Stepper.take, {}

    def watched(self: Stepper, window: Window, *rest: object) -> tuple:
        before = {name: value.clone() for name, value in self.model.named_parameters()}
        block = next(p for name, p in self.model.named_parameters() if ".layers." in name and p.ndim == 2)
        hook = block.register_hook(lambda grad: grad * float("inf") if window.step == 3 else grad)
        done = take(self, window, *rest)
        hook.remove()
        found[window.step] = (self.scaler.get_scale(),
                              [n for n, p in self.model.named_parameters() if not torch.equal(p, before[n])])
        return done

    monkeypatch.setattr(Stepper, "take", watched)
    # also where a step that is not finite ends the run: an overflow is the scaler's ordinary work
    assert start(tmp_path, "--max_steps", 4, "--nan_policy", "stop") == 0
    assert found[3] == (2.0, [])
    assert all(found[step][1] for step in (1, 2, 4))
    assert dict(curve(tmp_path / "run")[3])["grad_norm"] is None


def test_scaling_the_loss_changes_no_step_and_its_state_is_resumed(tmp_path: Path, data: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two scale exactly; the scale grows every three steps, so a lost growth tracker would show."""
    assert start(tmp_path, "--max_steps", 8, out="plain") == 0
    fake_scaler(monkeypatch)
    assert start(tmp_path, "--max_steps", 8, out="whole") == 0
    assert curve(tmp_path / "plain") == curve(tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: write_control(RunDir(tmp_path / "broken").attempt(1).control, "pause"))
        assert start(tmp_path, "--max_steps", 8, out="broken") == 0
    assert run("pretrain", "--out", tmp_path / "broken", "--resume", "auto") == 0
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    states = [json.loads((p / "trainer.json").read_text())["scaler"]
              for name in ("whole", "broken") for p in RunDir(tmp_path / name).checkpoint_dirs()[:1]]
    assert states[0] == states[1] and states[0]["scale"] == 16.0 and states[0]["_growth_tracker"] == 2


@pytest.mark.parametrize(("value", "policy"), [(float("nan"), "skip"), (float("inf"), "stop")])
def test_one_rank_that_breaks_is_obeyed_by_all(tmp_path: Path, data: Path, value: float, policy: str) -> None:
    """The loss of the second of two ranks breaks in the middle of step 3."""
    codes = changed_ranks(2, partial(broken_at, steps={3}, rank=1, value=value), "pretrain", *TINY, "--out",
                          tmp_path / "run", "--data_path", data, "--cache_dir", tmp_path / "cache", "--max_steps", 5,
                          "--accumulation_steps", 2, "--save_interval", 1, "--nan_policy", policy)
    points = curve(tmp_path / "run")
    files = [p / "model.safetensors" for p in sorted(RunDir(tmp_path / "run").checkpoint_dirs())]
    if policy == "stop":
        assert codes == [2, 2] and list(points) == [1, 2] and len(files) == 2
        [error] = events(tmp_path / "run", 1, "error")
        assert error["data"] == result(tmp_path / "run")["error"]
        assert error["data"]["class"] == "NAN" and "Step 3 was not finite" in error["data"]["message"]
        return
    assert codes == [0, 0]
    assert [s for s, p in points.items() if dict(p)["loss"] is None] == [3] and len(points) == 5
    assert [e["data"]["message"] for e in events(tmp_path / "run", 1, "warning")] == [
        "Step 3 was skipped: its loss or gradient is not finite."]
    same = [a.read_bytes() == b.read_bytes() for a, b in zip(files, files[1:])]
    assert same == [False, True, False, False]  # of steps 1 and 2, 2 and 3, ...
