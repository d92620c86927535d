"""What else a broken run must not change: with dropout, compiled, broken often, or in the middle of a window."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind.control import write_control
from minimind.data.cache import TokenCache
from minimind.formats.tensors import EMBEDDING
from minimind.model import Losses
from minimind.objectives import Batch
from minimind.run_dir import RunDir
from minimind.step import Stepper
from tests.minimind.training import (
    TINY,
    Ranks,
    at_step,
    curve,
    events,
    result,
    run,
    start,
    watch_micro_steps,
    weights,
    write_dialogues,
    write_texts,
)

OPTIONS = ("--max_steps", 24, "--accumulation_steps", 2, "--eval_interval", 5, "--sample_interval", 12,
           "--save_interval", 7)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data.jsonl")


def paused_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int, step: int, *options: object) -> None:
    """Attempt ``attempt`` of the run "broken", asked to pause when ``step`` was reported: it stops after the next."""
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: write_control(RunDir(tmp_path / "broken").attempt(attempt).control, "pause"))
        assert resume_or_start(tmp_path, attempt, *options) == 0
    assert (result(tmp_path / "broken", attempt)["status"], result(tmp_path / "broken", attempt)["step"]) == (
        "paused", step + 1)


def resume_or_start(tmp_path: Path, attempt: int, *options: object) -> int:
    return start(tmp_path, *options, out="broken") if attempt == 1 else \
        run("pretrain", "--out", tmp_path / "broken", "--resume", "auto")


def same_training(tmp_path: Path) -> None:
    for kind in ("metrics", "eval", "sample"):
        assert curve(tmp_path / "whole", kind) == curve(tmp_path / "broken", kind)
    assert weights(tmp_path / "whole") == weights(tmp_path / "broken")


@pytest.mark.parametrize("more", [
    pytest.param(("--dropout", 0.2), id="dropout"), pytest.param(("--num_experts", 2, "--dropout", 0.1), id="experts"),
    pytest.param(("--optimizer", "adamw"), id="adamw", marks=pytest.mark.slow),
    pytest.param(("--dropout", 0.2, "--gradient_checkpointing"), id="checkpointing", marks=pytest.mark.slow)])
def test_five_pauses_at_random_change_nothing(tmp_path: Path, data: Path, more: tuple,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(tmp_path, *OPTIONS, *more, out="whole") == 0
    steps = sorted(random.Random(str(more)).sample(range(1, 22), 5))
    for attempt, step in enumerate((s for s in steps), 1):
        step = max(step, result(tmp_path / "broken", attempt - 1)["step"] + 1 if attempt > 1 else step)
        paused_at(tmp_path, monkeypatch, attempt, step, *OPTIONS, *more)
    assert resume_or_start(tmp_path, 6) == 0
    same_training(tmp_path)


def test_dropout_drops_in_training_alone_and_draws_anew_each_step(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path, "--max_steps", 2, "--learning_rate", 1e-9, "--dropout", 0.5, "--save_interval", 1,
                 "--eval_interval", 1, out="half") == 0
    assert start(tmp_path, "--max_steps", 2, "--learning_rate", 1e-9, out="none") == 0
    (first, second), (plain, _) = (
        [dict(p)["loss"] for p in curve(tmp_path / out).values()] for out in ("half", "none"))
    assert first != pytest.approx(plain, abs=1e-6)
    evaluated = [dict(p)["eval_loss"] for p in curve(tmp_path / "half", "eval").values()]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-5)  # no chance in it


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, data: Path) -> None:
    for out, more in (("kept", ()), ("again", ("--gradient_checkpointing",))):
        assert start(tmp_path, "--max_steps", 4, "--dropout", 0.3, *more, out=out) == 0
    for a, b in zip(curve(tmp_path / "kept").values(), curve(tmp_path / "again").values(), strict=True):
        assert dict(a)["grad_norm"] == pytest.approx(dict(b)["grad_norm"], rel=1e-5)
        assert dict(a)["loss"] == pytest.approx(dict(b)["loss"], rel=1e-6)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def in_the_window(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something between the first and the second micro-step of ``step``."""
    def acting(_: Stepper, now: int, number: int, compute: Callable[[], Losses]) -> Losses:
        if now == step and number == 2:
            act()
        return compute()

    watch_micro_steps(monkeypatch, acting)


def test_a_pause_in_mid_window_waits_for_its_end_and_a_kill_redoes_it(tmp_path: Path, data: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(tmp_path, *OPTIONS, out="whole") == 0
    with monkeypatch.context() as patch:
        in_the_window(patch, 5, lambda: write_control(RunDir(tmp_path / "broken").attempt(1).control, "pause"))
        assert start(tmp_path, *OPTIONS, out="broken") == 0
    assert (result(tmp_path / "broken")["status"], result(tmp_path / "broken")["step"]) == ("paused", 5)

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        in_the_window(patch, 10, kill)
        with pytest.raises(Killed):
            run("pretrain", "--out", tmp_path / "broken", "--resume", "auto")
    assert RunDir(tmp_path / "broken").attempt(2).read_result() is None
    assert run("pretrain", "--out", tmp_path / "broken", "--resume", "auto") == 0
    assert events(tmp_path / "broken", 3)[0]["data"] == {"resumed_from_step": 7}
    same_training(tmp_path)


def test_the_last_window_of_an_epoch_is_partial_and_in_the_final_save(tmp_path: Path, data: Path) -> None:
    """Upstream saved before its leftover micro-steps. Here every row of the epoch has changed the saved weights."""
    assert start(tmp_path, "--epochs", 1, "--accumulation_steps", 3, "--save_interval", 1, "--batch_size", 1) == 0
    resolved = json.loads((tmp_path / "run/resolved.json").read_text())
    rows, steps = resolved["rows"], resolved["total_steps"]
    left = rows - 3 * (steps - 1)
    assert 0 < left < 3
    last, before = RunDir(tmp_path / "run").checkpoint_dirs()[:2]
    assert last.name == f"step-{steps:08d}-a1" and result(tmp_path / "run")["checkpoint"] == str(last)
    assert (last / "model.safetensors").read_bytes() != (before / "model.safetensors").read_bytes()
    sampler = json.loads((last / "trainer.json").read_text())["sampler"]
    assert sampler["position"] == rows  # every row once
    tokens = TokenCache(next((tmp_path / "cache/tokens").iterdir())).sizes
    assert json.loads((last / "trainer.json").read_text())["tokens"] >= tokens.sum() * 0.9


def test_a_batch_without_targets_gives_no_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's mean over no targets was NaN. A whole window, then a micro-batch, loses all of its targets. (Data
    cannot bring this about: see ``check_counts`` in test_packing.py.)"""
    write_dialogues(tmp_path / "data.jsonl", 20)
    batch, take, masked, unchanged = Stepper.batch, Stepper.take, {"calls": 0}, []

    def without_targets(self: Stepper, numbers: object, rows: object = None) -> Batch:
        made = batch(self, numbers, rows)
        masked["calls"] += rows is None and len(numbers) > 0
        return made._replace(targets=torch.full_like(made.targets, -100)) if masked["calls"] in (1, 2, 3) else made

    def watched(self: Stepper, *arguments: object) -> tuple:
        before = [p.clone() for p in self.model.parameters()]
        done = take(self, *arguments)
        unchanged.append([torch.equal(a, b) for a, b in zip(before, self.model.parameters())])
        return done

    monkeypatch.setattr(Stepper, "batch", without_targets)
    monkeypatch.setattr(Stepper, "take", watched)
    assert start(tmp_path, "--max_steps", 3, "--accumulation_steps", 2, "--eval_interval", 0, "--sample_interval", 0,
                 "--weight_decay", 0, stage="sft") == 0
    points = [dict(p) for p in curve(tmp_path / "run").values()]
    assert all(p["loss"] is not None and p["grad_norm"] is not None for p in points)
    assert points[0]["loss"] == 0 and points[0]["grad_norm"] == 0 and points[1]["loss"] > 0
    assert all(unchanged[0]) and not any(unchanged[1]) and not any(unchanged[2])
    assert not any("skipped" in e["data"]["message"] for e in events(tmp_path / "run", 1, "warning"))


def test_changes_are_refused_unless_allowed_and_recorded(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capfd: pytest.CaptureFixture) -> None:
    paused_at(tmp_path, monkeypatch, 1, 3, *OPTIONS)
    again = ("pretrain", "--out", tmp_path / "broken", "--resume", "auto")
    changes = {"batch_size": (2, 4), "learning_rate": (None, 0.01), "accumulation_steps": (2, 1)}
    for key, (old, new) in changes.items():
        assert run(*again, f"--{key}", new) == 2
        assert f"{key} was {old} and is {new} now" in capfd.readouterr().err
    data.write_text(data.read_text() + json.dumps({"text": "the cat sleeps near the river"}) + "\n")
    assert run(*again) == 2
    assert "the training data changed" in capfd.readouterr().err
    assert len(RunDir(tmp_path / "broken").checkpoint_dirs()) == 1  # nothing was trained by all of these
    options = [word for key, (_, new) in changes.items() for word in (f"--{key}", new)]
    assert run(*again, *options, "--allow_changes") == 0
    last = RunDir(tmp_path / "broken").attempts()[-1]
    assert result(tmp_path / "broken", last.number)["status"] == "completed"
    said = [e["data"]["message"] for e in events(tmp_path / "broken", last.number, "warning")]
    recorded = json.loads(last.resolved.read_text())["config"]
    for key, (_, new) in changes.items():
        assert recorded[key] == new and any(f"{key} was" in message for message in said)
    assert any("the training data changed" in message for message in said)


def test_half_precision_is_saved_and_resumed_in_float32(tmp_path: Path, data: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's resume file held float16: the run went on with other weights."""
    monkeypatch.setattr("minimind.device.has_native_bfloat16", lambda: True)  # emulated is enough for a test
    options = ("--max_steps", 6, "--dtype", "bfloat16", "--save_interval", 2, "--eval_interval", 3,
               "--sample_interval", 0)
    assert start(tmp_path, *options, out="whole") == 0
    paused_at(tmp_path, monkeypatch, 1, 2, *options)
    [saved, *_] = RunDir(tmp_path / "broken").checkpoint_dirs()
    kept = load_file(saved / "model.safetensors")
    assert {t.dtype for t in kept.values()} == {torch.float32}
    assert not torch.equal(kept[EMBEDDING], kept[EMBEDDING].bfloat16().float())
    moments = [t for part in torch.load(saved / "optimizer.pt").values() for state in part["state"].values()
               for t in state.values()]
    assert {t.dtype for t in moments} == {torch.float32}
    assert resume_or_start(tmp_path, 2) == 0
    same_training(tmp_path)


# Minutes of torch's compiler, in processes of their own: it warns of torch's own deprecated parts.
@pytest.mark.slow
@pytest.mark.parametrize(("size", "more"), [
    (1, ()), (2, ("--dropout", 0.1, "--num_experts", 2, "--num_experts_per_tok", 1))], ids=["plain", "ranks, experts"])
def test_a_compiled_run_is_resumed_exactly(tmp_path: Path, data: Path, size: int, more: tuple) -> None:
    arguments = (*TINY, "--data_path", data, "--cache_dir", tmp_path / "cache", *OPTIONS, *more, "--use_compile")
    for out in ("whole", "broken"):
        ranks = Ranks(size, "pretrain", "--out", tmp_path / out, *arguments)
        if out == "broken":
            ranks.wait_until(lambda: len(events(tmp_path / "broken", 1, "metrics")) >= 9, 300)
            ranks.kill()
            ranks = Ranks(size, "pretrain", "--out", tmp_path / out, "--resume", "auto")
        assert ranks.wait(300) == [0] * size, ranks.output
    assert events(tmp_path / "broken", 2)[0]["data"]["resumed_from_step"] in (7, 14, 21)
    assert any("Compiled in" in e["data"]["message"] for e in events(tmp_path / "broken", 2, "log"))
    same_training(tmp_path)
