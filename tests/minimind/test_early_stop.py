"""Early stop, the best checkpoint, and steps of a number of tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from minimind.checkpoint import apply_retention
from minimind.config import parse_config, spread_rows
from minimind.control import write_control
from minimind.errors import ConfigError
from minimind.evaluation import HeldOut, Patience
from minimind.manifest import Manifest
from minimind.preflight import preflight
from minimind.presets import PRESETS
from minimind.run_dir import RunDir
from tests.minimind.training import Ranks, at_step, curve, events, result, run, start, write_texts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data.jsonl")


def test_patience_counts_what_is_not_better() -> None:
    patience = Patience(2)
    assert [patience.see(loss, step) for step, loss in enumerate((3.0, 2.0, 2.0, math.nan), 1)] == [
        True, True, False, False]
    assert patience.is_over and (patience.best, patience.best_step) == (2.0, 2)
    again = Patience(3)
    again.load_state_dict(json.loads(json.dumps(patience.state_dict())))
    assert (again.best, again.stale, again.is_over) == (2.0, 2, False)
    assert not Patience(0, stale=99).is_over


def scripted(monkeypatch: pytest.MonkeyPatch, answers: list[float]) -> None:
    """Evaluations that answer what they are told to, one after the other."""
    monkeypatch.setattr(HeldOut, "evaluate", lambda self, losses, objective, world: {
        "eval_loss": answers.pop(0), "perplexity": 1.0, "bits_per_byte": 1.0})


OPTIONS = ("--max_steps", 40, "--early_stop", 3, "--eval_interval", 2, "--sample_interval", 0)


def test_it_ends_after_evaluations_without_a_better_one(tmp_path: Path, data: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [5.0, 4.0, 4.5, 3.5, 3.6, 3.7, 3.8, 1.0])
    assert start(tmp_path, *OPTIONS) == 0
    found = result(tmp_path / "run")
    assert (found["status"], found["step"]) == ("completed", 14)
    saved = {e["step"]: e["data"]["best"] for e in events(tmp_path / "run", 1, "checkpoint")}
    assert saved == {2: True, 4: True, 8: True, 14: False}  # every best one, and the last step
    assert any("Stopped early" in e["data"]["message"] and "3.5000 at step 8" in e["data"]["message"]
               for e in events(tmp_path / "run", 1, "log"))
    # the best one survives when space is short, whatever else goes
    monkeypatch.setattr("minimind.checkpoint.KEEP_ALL_BYTES", 0)
    apply_retention(RunDir(tmp_path / "run"), 40, keep=0)
    assert {Manifest.read(p).step for p in RunDir(tmp_path / "run").checkpoint_dirs()} == {8, 14}
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto") == 0
    assert len(RunDir(tmp_path / "run").attempts()) == 1  # it is completed


def test_a_resumed_run_counts_on(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [5.0, 4.0, 4.5, 4.6, 4.7, 1.0]
    scripted(monkeypatch, losses)
    with monkeypatch.context() as patch:  # takes effect at the end of step 9: 4.5 and 4.6 were not better
        at_step(patch, 8, lambda: write_control(RunDir(tmp_path / "run").attempt(1).control, "pause"))
        assert start(tmp_path, *OPTIONS) == 0
    assert result(tmp_path / "run")["step"] == 9
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto") == 0
    assert result(tmp_path / "run", 2)["step"] == 10 and losses == [1.0]
    # killed between the last save and the verdict: nothing more is trained
    (tmp_path / "run/attempts/2/result.json").unlink()
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto") == 0
    assert (result(tmp_path / "run", 3)["status"], result(tmp_path / "run", 3)["step"]) == ("completed", 10)
    assert not events(tmp_path / "run", 3, "metrics")


def test_save_best_saves_without_stopping(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [5.0, 4.0, 4.5, 4.6, 4.7, 4.8])
    assert start(tmp_path, "--max_steps", 12, "--save_best", "--eval_interval", 2, "--sample_interval", 0) == 0
    assert [e["step"] for e in events(tmp_path / "run", 1, "checkpoint")] == [2, 4, 12]
    assert start(tmp_path, "--max_steps", 4, "--eval_interval", 0, "--early_stop", 1, out="never") == 0
    assert result(tmp_path / "never")["step"] == 4


@pytest.mark.slow
def test_two_ranks_stop_at_one_step(tmp_path: Path, data: Path) -> None:
    """A learning rate that destroys what was learnt makes the second evaluation worse than the first."""
    ranks = Ranks(2, "pretrain", "--preset", "tiny-cpu", "--hidden_size", 32, "--num_hidden_layers", 1,
                  "--max_seq_len", 32, "--vocab_size", 400, "--device", "cpu", "--out", tmp_path / "run", "--data_path",
                  data, "--cache_dir", tmp_path / "cache", "--max_steps", 60, "--early_stop", 1, "--eval_interval", 1,
                  "--learning_rate", 5, "--warmup_fraction", 0, "--optimizer", "adamw", "--grad_clip", 0)
    assert ranks.wait() == [0, 0], ranks.output
    evaluated = [e["data"]["eval_loss"] for e in events(tmp_path / "run", 1, "eval")]
    found = result(tmp_path / "run")
    assert found["status"] == "completed" and found["step"] == len(evaluated) < 60
    assert evaluated[-1] >= min(evaluated[:-1])


@pytest.mark.parametrize("never", [("--eval_fraction", 0), ("--eval_interval", 0)])
def test_patience_without_evaluations_is_said(tmp_path: Path, data: Path, never: tuple) -> None:
    assert start(tmp_path, "--max_steps", 1, "--early_stop", 3, "--sample_interval", 0, *never) == 0
    assert "early_stop and save_best have no effect" in events(tmp_path / "run", 1, "warning")[-1]["data"]["message"]


@pytest.mark.parametrize(("rows", "most", "world", "expected"), [
    (12, 4, 1, (4, 3)), (12, 4, 2, (3, 2)), (12, 4, 3, (4, 1)), (13, 8, 2, (7, 1)), (5, 4, 8, (1, 1)),
    (1, 1, 1, (1, 1)), (10, 4, 1, (4, 3)), (9, 4, 1, (3, 3))])
def test_rows_are_spread_evenly(rows: int, most: int, world: int, expected: tuple[int, int]) -> None:
    batch_size, accumulation = spread_rows(rows, most, world)
    assert (batch_size, accumulation) == expected
    assert batch_size <= most and batch_size * accumulation * world >= rows


def test_batch_tokens_means_the_nearest_number_of_rows_for_any_number_of_ranks() -> None:
    config = parse_config("pretrain", {"preset": "tiny-cpu", "batch_tokens": 2500, "max_seq_len": 256})
    shapes = [config.step_shape(PRESETS["tiny-cpu"], world) for world in (1, 2, 3)]
    assert {rows for _, _, rows in shapes} == {10} and shapes[1] == (3, 2, 10)  # the preset's batch_size is 4
    assert preflight(config, world_size=3).tokens_per_step == 2560
    pairs = parse_config("dpo", {"preset": "tiny-cpu", "batch_tokens": 2500, "max_seq_len": 256})  # 512 tokens a row
    assert pairs.step_shape(PRESETS["tiny-cpu"], 2) == (3, 1, 5)
    assert preflight(pairs).tokens_per_step == 2560
    plain = parse_config("pretrain", {"preset": "tiny-cpu", "batch_size": 2, "accumulation_steps": 3})
    assert plain.step_shape(PRESETS["tiny-cpu"], 2) == (2, 3, 12)
    with pytest.raises(ConfigError) as raised:
        parse_config("pretrain", {"batch_tokens": 2500, "accumulation_steps": 2})
    assert raised.value.problems[0]["field"] == "batch_tokens" and "accumulation_steps 2" in str(raised.value)


def test_batch_tokens_makes_the_same_steps_as_rows_do(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path, "--max_steps", 12, "--batch_size", 1, "--accumulation_steps", 3, out="rows") == 0
    assert start(tmp_path, "--max_steps", 12, "--batch_tokens", 100, out="tokens") == 0
    resolved = json.loads((tmp_path / "tokens/resolved.json").read_text())
    assert (resolved["rows_per_step"], resolved["batch_size"], resolved["accumulation_steps"]) == (3, 2, 2)
    for a, b in zip(curve(tmp_path / "rows").values(), curve(tmp_path / "tokens").values(), strict=True):
        assert dict(a)["loss"] == pytest.approx(dict(b)["loss"], rel=1e-4)


@pytest.mark.slow
def test_batch_tokens_moves_to_a_number_of_ranks_that_does_not_divide_its_rows(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--max_steps", 12, "--batch_tokens", 100)
    assert start(tmp_path, *options, out="whole") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: write_control(RunDir(tmp_path / "moved").attempt(1).control, "pause"))
        assert start(tmp_path, *options, out="moved") == 0
    pair = Ranks(2, "pretrain", "--out", tmp_path / "moved", "--resume", "auto", "--allow_changes")
    assert pair.wait() == [0, 0], pair.output
    moved = json.loads((tmp_path / "moved/attempts/2/resolved.json").read_text())
    assert (moved["rows_per_step"], moved["batch_size"], moved["total_steps"]) == (3, 2, 12)  # 3 is no multiple of 2
    for a, b in zip(curve(tmp_path / "moved").values(), curve(tmp_path / "whole").values(), strict=True):
        assert dict(a)["loss"] == pytest.approx(dict(b)["loss"], rel=2e-3)
