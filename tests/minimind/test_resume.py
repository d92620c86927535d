"""A paused, killed and resumed run is the uninterrupted one: same losses, samples and weights, to the last bit."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from minimind.control import write_control
from minimind.manifest import newest_valid
from minimind.run_dir import RunDir
from tests.minimind.training import (
    TINY,
    Ranks,
    curve,
    events,
    last_step,
    result,
    run,
    weights,
    write_dialogues,
    write_texts,
)

STEPS = 30


def options(tmp_path: Path, *more: object) -> list[object]:
    return [*TINY, "--data_path", tmp_path / "data.jsonl", "--cache_dir", tmp_path / "cache", "--max_steps", STEPS,
            "--save_interval", 5, "--eval_interval", 10, "--sample_interval", 15, *more]


def same_training(one: Path, other: Path) -> None:
    for type in ("metrics", "eval", "sample"):
        assert curve(one, type) == curve(other, type)
    assert len(curve(one)) == STEPS
    assert weights(one) == weights(other)


# Two ranks are also paused and resumed through the whole studio, in tests/integration.
@pytest.mark.parametrize(("ranks", "breaks"), [
    (1, "pause kill"), pytest.param(2, "pause kill", marks=pytest.mark.slow),
    pytest.param(3, "pause kill", marks=pytest.mark.slow)])
def test_a_broken_run_is_the_whole_run(tmp_path: Path, ranks: int, breaks: str) -> None:
    write_texts(tmp_path / "data.jsonl")
    arguments = options(tmp_path, "--accumulation_steps", 2, "--optimizer", "adamw" if ranks == 1 else "muon")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reference = Ranks(ranks, "pretrain", "--out", whole, *arguments)
    assert reference.wait() == [0] * ranks, reference.output

    saved = 0
    for attempt, how in enumerate(breaks.split(), 1):
        running = Ranks(ranks, "pretrain", "--out", broken, *(["--resume", "auto"] if attempt > 1 else arguments))
        enough = 4 if attempt == 1 and how == "pause" else saved + 6
        running.wait_until(lambda a=attempt, e=enough: last_step(broken, a) >= e)
        assert events(broken, attempt)[0]["data"] == {"resumed_from_step": saved}
        if how == "pause":
            write_control(RunDir(broken).attempt(attempt).control, "pause")
            assert running.wait() == [0] * ranks, running.output
            paused = result(broken, attempt)
            assert paused["status"] == "paused" and enough <= paused["step"] < STEPS
            assert Path(paused["checkpoint"]).name == f"step-{paused['step']:08d}-a{attempt}"
        else:
            running.kill()
            assert RunDir(broken).attempt(attempt).read_result() is None
        saved = int(newest_valid(broken)[0].name.split("-")[1])

    last = len(breaks.split()) + 1
    final = Ranks(ranks, "pretrain", "--out", broken, "--resume", "auto")
    assert final.wait() == [0] * ranks, final.output
    assert events(broken, last)[0]["data"] == {"resumed_from_step": saved}
    assert result(broken, last) == {"attempt": last, "status": "completed", "step": STEPS, "error": None,
                                    "checkpoint": str(broken / "checkpoints" / f"step-{STEPS:08d}-a{last}")}
    same_training(whole, broken)
    assert not list((broken / "checkpoints").glob(".tmp*"))


def test_another_number_of_ranks_keeps_rows_and_steps(tmp_path: Path) -> None:
    write_texts(tmp_path / "data.jsonl")
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert run("pretrain", "--out", whole, *options(tmp_path, "--accumulation_steps", 2)) == 0
    pair = Ranks(2, "pretrain", "--out", moved, *options(tmp_path))
    pair.wait_until(lambda: last_step(moved, 1) >= 4)
    pair.signal(signal.SIGTERM, rank=1)  # a signal to any rank pauses all of them
    assert pair.wait() == [0, 0], pair.output
    assert result(moved, 1)["status"] == "paused"
    assert run("pretrain", "--out", moved, "--resume", "auto") == 2
    assert "number of ranks was 2 and is 1 now" in result(moved, 2)["error"]["message"]
    assert run("pretrain", "--out", moved, "--resume", "auto", "--allow_changes") == 0
    resolved = json.loads((moved / "attempts/3/resolved.json").read_text())
    assert (resolved["world_size"], resolved["accumulation_steps"], resolved["rows_per_step"]) == (1, 2, 4)
    for step, (a, b) in enumerate(zip(curve(whole).values(), curve(moved).values()), 1):
        assert dict(a)["loss"] == pytest.approx(dict(b)["loss"], rel=2e-3), step
        assert (dict(a)["lr"], dict(a)["epoch"]) == (dict(b)["lr"], dict(b)["epoch"])
    assert len(curve(moved)) == STEPS


@pytest.mark.slow  # half a minute
def test_what_was_accepted_once_stays_accepted(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Another rate and another number of ranks, then the very command that the pause has printed."""
    write_texts(tmp_path / "data.jsonl")
    moved = tmp_path / "moved"
    first = Ranks(1, "pretrain", "--out", moved, *options(tmp_path, "--accumulation_steps", 2))
    first.wait_until(lambda: last_step(moved, 1) >= 3)
    first.signal(signal.SIGTERM)
    assert first.wait() == [0]
    pair = Ranks(2, "pretrain", "--out", moved, "--resume", "auto", "--allow_changes", "--learning_rate", 0.001,
                 "--cache_dir", tmp_path / "cache", "--log_interval", 2)
    pair.wait_until(lambda: last_step(moved, 2) >= 6)
    pair.signal(signal.SIGTERM)
    assert pair.wait() == [0, 0], pair.output
    resolved = json.loads((moved / "attempts/2/resolved.json").read_text())
    assert (resolved["world_size"], resolved["rows_per_step"], resolved["total_steps"]) == (2, 4, STEPS)
    assert {p.name for p in (moved / "attempts/2/logs").iterdir()} == {"rank0.log", "rank1.log"}
    [line] = [line for line in pair.output[0].splitlines() if "Continue with: " in line]
    words = shlex.split(line.partition("Continue with: ")[2])
    assert words[:4] == ["torchrun", "--nproc_per_node", "2", "train.py"]
    assert words[words.index("--cache_dir") + 1] == str(tmp_path / "cache")
    again = Ranks(2, *words[4:])
    assert again.wait() == [0, 0], again.output
    assert dict(curve(moved)[STEPS])["lr"] == pytest.approx(1e-4)


def test_two_cannot_train_one_run(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_texts(tmp_path / "data.jsonl")
    arguments = options(tmp_path, "--max_steps", 100_000, "--use_compile", "false")
    running = Ranks(1, "pretrain", "--out", tmp_path / "run", *arguments, "--no_use_compile")
    running.wait_until(lambda: last_step(tmp_path / "run", 1) >= 6)
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto") == 2
    assert f"is being trained by process {running.processes[0].pid} now" in capfd.readouterr().err
    assert [a.number for a in RunDir(tmp_path / "run").attempts()] == [1]
    # whatever made it think that it may: once a later attempt exists, the earlier one changes nothing any more
    (tmp_path / "run/attempts/2").mkdir()
    assert running.wait() == [2] and "taken this run over" in running.output[0]
    saved = [p.name for p in RunDir(tmp_path / "run").checkpoint_dirs()]
    assert RunDir(tmp_path / "run").attempt(1).read_result() is None
    (tmp_path / "run/attempts/2").rmdir()
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto", "--max_steps", last_step(
        tmp_path / "run", 1) + 2, "--allow_changes") == 0
    assert saved[0] in [p.name for p in RunDir(tmp_path / "run").checkpoint_dirs()]


def test_another_optimizer_cannot_go_on(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_texts(tmp_path / "data.jsonl")
    assert run("pretrain", "--out", tmp_path / "run", *options(tmp_path, "--max_steps", 2)) == 0
    (tmp_path / "run/attempts/1/result.json").unlink()  # as if it had been killed
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto", "--optimizer", "adamw",
               "--allow_changes") == 2
    assert "the optimizer is not the one" in capfd.readouterr().err


def test_fine_tuning_resumes_too_without_its_base(tmp_path: Path) -> None:
    write_texts(tmp_path / "text.jsonl")
    write_dialogues(tmp_path / "data.jsonl")
    base = tmp_path / "base"
    assert run("pretrain", *TINY, "--out", base, "--data_path", tmp_path / "text.jsonl", "--cache_dir",
               tmp_path / "cache", "--max_steps", 5) == 0
    arguments = options(tmp_path, "--from_weight", base)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("sft", "--out", whole, *arguments) == 0
    ranks = Ranks(1, "sft", "--out", broken, *arguments)
    ranks.wait_until(lambda: last_step(broken, 1) >= 7)
    ranks.kill()
    shutil.rmtree(base)
    assert run("sft", "--out", broken, "--resume", "auto") == 0
    same_training(whole, broken)
    lineage = json.loads((broken / "checkpoints" / f"step-{STEPS:08d}-a2" / "manifest.json").read_text())["lineage"]
    assert lineage["base"].startswith(str(base)) and len(lineage["base_weights"]) == 64


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    write_texts(tmp_path / "data.jsonl")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("pretrain", "--out", whole, *options(tmp_path)) == 0
    shutil.copytree(whole, broken)
    (broken / "attempts/1/result.json").unlink()  # as if it had been killed
    for step in (25, 30):
        path = broken / "checkpoints" / f"step-{step:08d}-a1" / "optimizer.pt"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert run("pretrain", "--out", broken, "--resume", "auto") == 0
    assert events(broken, 2)[0]["data"] == {"resumed_from_step": 20}
    warnings = [e["data"]["message"] for e in events(broken, 2, "warning")]
    assert sum("optimizer.pt has changed" in w for w in warnings) == 2
    same_training(whole, broken)


def test_a_completed_run_whose_last_checkpoint_is_damaged_is_completed_again(tmp_path: Path) -> None:
    write_texts(tmp_path / "data.jsonl")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("pretrain", "--out", whole, *options(tmp_path)) == 0
    shutil.copytree(whole, broken)
    (broken / "attempts/1/result.json").write_text(
        (whole / "attempts/1/result.json").read_text().replace(str(whole), str(broken)))
    path = broken / "checkpoints" / f"step-{STEPS:08d}-a1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert run("pretrain", "--out", broken, "--resume", "auto") == 0
    assert result(broken, 2)["status"] == "completed"
    same_training(whole, broken)


def test_one_named_checkpoint_is_continued_and_its_successors_lead(tmp_path: Path) -> None:
    write_texts(tmp_path / "data.jsonl")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("pretrain", "--out", whole, *options(tmp_path)) == 0
    shutil.copytree(whole, broken)
    assert run("pretrain", "--resume", broken / "checkpoints/step-00000020-a1") == 0
    assert events(broken, 2)[0]["data"] == {"resumed_from_step": 20}
    same_training(whole, broken)
    assert newest_valid(broken)[0].name == f"step-{STEPS:08d}-a2"


def test_a_run_of_a_job_runner_is_not_taken_over_by_hand(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_texts(tmp_path / "data.jsonl")
    values = {"stage": "pretrain", "data_path": str(tmp_path / "data.jsonl"), "hidden_size": 32, "max_seq_len": 32,
              "num_hidden_layers": 1, "max_steps": 100_000, "vocab_size": 400, "save_interval": 5, "use_compile": False}
    (tmp_path / "run").mkdir()
    RunDir(tmp_path / "run").config.write_text(json.dumps(values))
    running = Ranks(1, "pretrain", "--out", tmp_path / "run", "--attempt", 1, "--resume", "auto", "--cache_dir",
                    tmp_path / "cache")
    running.wait_until(lambda: last_step(tmp_path / "run", 1) >= 2)
    assert run("pretrain", "--resume", tmp_path / "run") == 2
    assert "is being trained by process" in capfd.readouterr().err
    running.signal(signal.SIGTERM)
    assert running.wait() == [0] and result(tmp_path / "run")["status"] == "paused"
