"""The loop: what a step computes, how it reports, saves, stops and fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minimind import checkpoint as saving
from minimind.checkpoint import load_model
from minimind.control import write_control, write_sample_wish
from minimind.data.cache import TokenCache
from minimind.data.packing import cut_stream
from minimind.data.sampler import Sampler
from minimind.metrics import TIMING_KEYS
from minimind.optim import learning_rate_at
from minimind.rehearsal import Rehearsal
from minimind.run_dir import RunDir
from tests.minimind.training import (
    TINY,
    Ranks,
    at_step,
    changed_ranks,
    curve,
    events,
    result,
    start,
    unchanged,
    weights,
    write_dialogues,
    write_texts,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data.jsonl")


def test_steps_equal_plain_pytorch(tmp_path: Path) -> None:
    """An independent loop: logits, F.cross_entropy document by document, torch's own AdamW. The last step of the epoch
    has fewer micro-steps than the others, the last of them with fewer rows, and is in the weights that were saved."""
    write_texts(tmp_path / "data.jsonl", 62)
    assert start(tmp_path, "--epochs", 1, "--accumulation_steps", 3, "--grad_clip", 0.5, "--seed", 5,
                 "--warmup_fraction", 0.5, "--save_interval", 1, "--optimizer", "adamw", "--learning_rate", 4e-3,
                 "--eval_interval", 0, "--sample_interval", 0) == 0
    checkpoints = sorted(RunDir(tmp_path / "run").checkpoint_dirs())
    resolved = json.loads((tmp_path / "run/resolved.json").read_text())
    cache = TokenCache(next((tmp_path / "cache/tokens").iterdir()))
    rows = cut_stream(cache, cache.split(0.01)[0], 32)
    total = resolved["total_steps"]
    assert resolved["rows"] == len(rows) and resolved["rows_per_step"] == 6 and len(rows) % 6 == 3

    for step in (2, 3, total):
        model, _ = load_model(checkpoints[step - 2])
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                       {"params": vectors, "weight_decay": 0}], betas=(0.9, 0.95))
        optimizer.load_state_dict(torch.load(checkpoints[step - 2] / "optimizer.pt", weights_only=True)["adamw"])
        nats, count = torch.zeros(()), 0
        for row in Sampler(len(rows), 6, 5).window(step).rows:
            tokens, targets, lengths = rows.read(np.array([row]))
            for part, target in zip(torch.from_numpy(tokens).split(lengths), torch.from_numpy(targets).split(lengths)):
                nats = nats + F.cross_entropy(model(part[None])[0], target, ignore_index=-100, reduction="sum")
                count += int((target != -100).sum())
        (nats / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["fused"] = False
            group["lr"] = learning_rate_at(step, total, 4e-3, round(total / 2), 0.1)
        optimizer.step()
        point = dict(curve(tmp_path / "run")[step])
        assert point["loss"] == pytest.approx(float(nats.detach()) / count, rel=1e-5)
        assert point["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        trained, _ = load_model(checkpoints[step - 1])
        for mine, theirs in zip(trained.parameters(), model.parameters()):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_accumulation_and_packing_do_not_change_what_is_learnt(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path, "--max_steps", 8, "--batch_size", 4, out="wide") == 0
    assert start(tmp_path, "--max_steps", 8, "--batch_size", 1, "--accumulation_steps", 4, out="narrow") == 0
    for a, b in zip(curve(tmp_path / "wide").values(), curve(tmp_path / "narrow").values()):
        assert dict(a)["loss"] == pytest.approx(dict(b)["loss"], rel=1e-4)


def test_a_whole_run(tmp_path: Path, data: Path) -> None:
    """Events, files and numbers of an ordinary run; the last window of an epoch is partial."""
    assert start(tmp_path, "--epochs", 2, "--batch_size", 8, "--save_interval", 4) == 0
    run_dir = RunDir(tmp_path / "run")
    resolved = json.loads(run_dir.resolved.read_text())
    steps = resolved["total_steps"]
    assert resolved["rows"] % 8 and steps == 2 * -(-resolved["rows"] // 8)
    seen = events(run_dir.path, 1)
    assert seen[0]["type"] == "state" and seen[0]["data"] == {"resumed_from_step": 0}
    assert [e["data"]["phase"] for e in seen if e["type"] == "phase"] == [
        "import", "tokenizer", "tokenize", "compile", "train", "save"]
    assert {"status": "ready", "resumed_from_step": 0} in [e["data"] for e in seen if e["type"] == "state"]
    metrics = events(run_dir.path, 1, "metrics")
    assert [m["step"] for m in metrics] == list(range(1, steps + 1))
    assert all(set(m["data"]) == {"loss", "lr", "grad_norm", "epoch", "learnt_share", *TIMING_KEYS} for m in metrics)
    assert all(0 < m["data"]["mfu"] < 1.5 and 0 < m["data"]["data_wait_share"] < 1 for m in metrics)
    assert all(m["data"]["memory_peak_bytes"] > 10_000_000 for m in metrics)
    assert [m["data"]["epoch"] for m in metrics] == [0] * (steps // 2) + [1] * (steps // 2)
    assert metrics[-1]["data"]["loss"] < metrics[0]["data"]["loss"] - 1
    cache = TokenCache(next((tmp_path / "cache/tokens").iterdir()))
    assert metrics[-1]["tokens"] == pytest.approx(2 * cache.sizes[cache.split(0.01)[0]].sum(), abs=2)
    last = events(run_dir.path, 1, "eval")[-1]
    assert last["step"] == steps
    assert last["data"]["perplexity"] == pytest.approx(np.exp(last["data"]["eval_loss"]))
    samples = events(run_dir.path, 1, "sample")
    assert [s["data"]["prompt_index"] for s in samples[-3:]] == [0, 1, 2] and samples[-1]["step"] == steps
    saved = [e["data"] for e in events(run_dir.path, 1, "checkpoint")]
    assert [s["path"] for s in saved] == [f"checkpoints/{p.name}" for p in reversed(run_dir.checkpoint_dirs())]
    assert saved[-1]["eval_loss"] == last["data"]["eval_loss"] and saved[-1]["bytes"] > 0
    assert result(run_dir.path)["checkpoint"] == str(run_dir.checkpoint_dirs()[0])
    assert (run_dir.attempt(1).log(0)).read_text().count("step ") >= 1


def test_evaluation_loss_is_what_it_says(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path, "--max_steps", 2, "--eval_fraction", 0.2) == 0
    cache = TokenCache(next((tmp_path / "cache/tokens").iterdir()))
    model, tokenizer = load_model(RunDir(tmp_path / "run").checkpoint_dirs()[0])
    rows = cut_stream(cache, cache.split(0.2)[1], 32)
    nats, count, size = 0.0, 0, 0
    for row in range(len(rows)):
        tokens, targets, lengths = rows.read(np.array([row]))
        for part, target in zip(torch.from_numpy(tokens).split(lengths), torch.from_numpy(targets).split(lengths)):
            with torch.no_grad():
                nats += float(F.cross_entropy(model(part[None])[0], target, ignore_index=-100, reduction="sum"))
            count += int((target != -100).sum())
            size += sum(len(tokenizer.token_bytes(int(i))) for i in target if i != -100)
    got = events(tmp_path / "run", 1, "eval")[-1]["data"]
    assert got["eval_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert got["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)


def test_reporting_changes_nothing(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path, "--max_steps", 9, "--sample_interval", 0, "--eval_interval", 0, out="a") == 0
    assert start(tmp_path, "--max_steps", 9, "--sample_interval", 1, "--eval_interval", 1, "--save_interval", 2,
                 "--log_interval", 3, out="b") == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert sorted(curve(tmp_path / "b")) == [1, 3, 6, 9]
    assert all(curve(tmp_path / "a")[s] == v for s, v in curve(tmp_path / "b").items())


def test_it_speaks_when_it_is_asked_and_learns_the_same(tmp_path: Path, data: Path) -> None:
    """Once for each wish, in mid-run, though no samples are scheduled; both ranks go on together."""
    arguments = [*TINY, "--data_path", data, "--cache_dir", tmp_path / "cache", "--max_steps", 9,
                 "--sample_interval", 0, "--eval_interval", 0]
    assert changed_ranks(2, unchanged, "pretrain", "--out", tmp_path / "silent", *arguments) == [0, 0]
    asked = partial(_asked_after, control=tmp_path / "asked/attempts/1/control.json")
    assert changed_ranks(2, asked, "pretrain", "--out", tmp_path / "asked", *arguments) == [0, 0]
    said = [(e["step"], e["data"]["prompt_index"]) for e in events(tmp_path / "asked", 1, "sample")]
    assert said == [(step, index) for step in (4, 6) for index in range(3)]
    assert weights(tmp_path / "asked") == weights(tmp_path / "silent")


def _asked_after(patch: pytest.MonkeyPatch, *, control: Path) -> None:
    """Asked when the metrics of steps 3 and 5 are written, twice in the same moment the second time."""
    at_step(patch, 3, lambda: write_sample_wish(control, 1))
    at_step(patch, 5, lambda: (write_sample_wish(control, 2), write_sample_wish(control, 3)))


def test_minutes_become_steps_and_the_throwaway_steps_leave_nothing(tmp_path: Path, data: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rehearsal, "measure", _measure_then(Rehearsal.measure, 0.25))
    assert start(tmp_path, "--max_minutes", 0.1, out="timed") == 0
    assert json.loads((tmp_path / "timed/resolved.json").read_text())["total_steps"] == 24  # 6 s / 0.25 s
    assert start(tmp_path, "--max_steps", 24, out="counted") == 0
    assert weights(tmp_path / "timed") == weights(tmp_path / "counted")
    assert start(tmp_path, "--max_minutes", 0.1, "--max_steps", 3, out="both") == 0
    assert max(curve(tmp_path / "both")) == 3


def _measure_then(measure: Callable, s_per_step: float) -> Callable:
    def measured(self: Rehearsal) -> float:
        assert measure(self) > 0
        return s_per_step

    return measured


def test_stop_with_and_without_a_save(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, save in (("saved", True), ("dropped", False)):
        with monkeypatch.context() as patch:
            control = RunDir(tmp_path / name).attempt(1).control
            at_step(patch, 5, lambda c=control, s=save: write_control(c, "stop", save=s))
            assert start(tmp_path, "--max_steps", 50, out=name) == 0
        found = result(tmp_path / name)
        assert found["status"] == "stopped" and found["step"] == 6
        assert bool(found["checkpoint"]) == save


def test_a_wish_before_step_1_ends_without_a_checkpoint(tmp_path: Path, data: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    values = {"stage": "pretrain", "data_path": str(data), "hidden_size": 32, "num_hidden_layers": 1, "max_steps": 3,
              "max_seq_len": 32}
    run_dir.config.write_text(json.dumps(values))
    for attempt, wish in ((1, "pause"), (2, "stop")):
        write_control(run_dir.make_attempt(attempt).control, wish)
        code = _external(run_dir, attempt, tmp_path)
        assert code == 0
        assert result(run_dir.path, attempt) == {"attempt": attempt, "step": 0, "checkpoint": None, "error": None,
                                                 "status": {"pause": "paused", "stop": "stopped"}[wish]}


def _external(run_dir: RunDir, attempt: int, tmp_path: Path) -> int:
    """As the job runner starts it: output goes to the attempt's log (so in a process of its own)."""
    ranks = Ranks(1, "pretrain", "--out", run_dir.path, "--attempt", attempt, "--resume", "auto", "--cache_dir",
                  tmp_path / "cache")
    return ranks.wait()[0]


def test_a_pause_that_cannot_be_saved_goes_on(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = {"bytes": 1000}
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage._replace(free=free["bytes"]))
    control = RunDir(tmp_path / "run").attempt(1).control
    acts = {3: lambda: write_control(control, "pause"), 8: lambda: free.update(bytes=usage.free)}
    for step, act in acts.items():
        at_step(monkeypatch, step, act)
    assert start(tmp_path, "--max_steps", 12, "--save_interval", 5) == 0
    codes = [e["data"]["code"] for e in events(tmp_path / "run", 1, "warning")]
    assert codes == ["save_failed", "save_skipped"]
    assert result(tmp_path / "run")["status"] == "completed"
    assert [p.name for p in RunDir(tmp_path / "run").checkpoint_dirs()] == ["step-00000012-a1", "step-00000010-a1"]


def test_a_full_disk_at_the_end_is_said(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert start(tmp_path, "--max_steps", 2) == 2
    assert result(tmp_path / "run")["error"]["class"] == "DISK_FULL"


@pytest.mark.slow  # starts three trainers
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_log_on_a_full_disk_does_not_end_the_run(tmp_path: Path, data: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    assert start(tmp_path, "--max_steps", 1) == 0
    (run_dir.path / "attempts/1/result.json").unlink()  # as if it had been killed
    shutil.rmtree(run_dir.checkpoints)
    run_dir.make_attempt(2).log(0).symlink_to("/dev/full")
    assert _external(run_dir, 2, tmp_path) == 0
    assert result(run_dir.path, 2)["status"] == "completed"
    data.unlink()
    (run_dir.path / "attempts/2/result.json").unlink()
    run_dir.make_attempt(3).log(0).symlink_to("/dev/full")
    assert _external(run_dir, 3, tmp_path) == 2
    assert "data.jsonl" in result(run_dir.path, 3)["error"]["message"]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch,
                                           capfd: pytest.CaptureFixture) -> None:
    at_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert start(tmp_path, "--max_steps", 50) == 0
    assert result(tmp_path / "run")["status"] == "paused"
    assert f"--out {tmp_path / 'run'} --resume auto" in capfd.readouterr().out


def test_fine_tuning_learns_the_answers(tmp_path: Path) -> None:
    write_dialogues(tmp_path / "data.jsonl", count=20)
    assert start(tmp_path, "--epochs", 12, "--learning_rate", 1e-2, stage="sft") == 0
    points = list(curve(tmp_path / "run").values())
    assert dict(points[-1])["loss"] < 0.6 * dict(points[0])["loss"]


def test_wandb_project_alone_is_one_warning(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture) -> None:
    assert start(tmp_path, "--max_steps", 1, "--wandb_project", "p", out="without") == 0
    assert capfd.readouterr().out.count("--wandb_project has no effect") == 1


@pytest.mark.slow
def test_wandb_offline_needs_no_account(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    arguments = ["pretrain", *TINY, "--out", tmp_path / "run", "--data_path", data, "--cache_dir", tmp_path / "cache",
                 "--max_steps", 2, "--use_wandb"]
    ranks = Ranks(1, *arguments)  # WANDB_MODE=offline comes from conftest.py
    assert ranks.wait() == [0], ranks.output
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_compiled_blocks_train_alike(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path, "--max_steps", 4, out="plain") == 0
    # in a process of its own: torch's compiler warns of torch's own deprecated parts
    ranks = Ranks(1, "pretrain", *TINY, "--out", tmp_path / "compiled", "--data_path", data, "--cache_dir",
                  tmp_path / "cache", "--max_steps", 4, "--use_compile")
    assert ranks.wait(200) == [0], ranks.output
    for a, b in zip(curve(tmp_path / "plain").values(), curve(tmp_path / "compiled").values(), strict=True):
        assert dict(a)["loss"] == pytest.approx(dict(b)["loss"], rel=1e-4)
