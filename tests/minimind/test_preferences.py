"""The stage dpo: what a run of it does, and that a broken one is the whole one."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind.run_dir import RunDir
from tests.minimind.training import (
    TINY,
    WORDS,
    assert_same_run,
    changed_ranks,
    curve,
    events,
    paused_after,
    result,
    run,
    unchanged,
    write_dialogues,
)


def write_pairs(path: Path, count: int = 40, seed: int = 1) -> Path:
    """Chosen answers end with "please", rejected ones do not."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        asked = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))}]
        said = " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))
        rows.append({"chosen": [*asked, {"role": "assistant", "content": f"{said} please"}],
                     "rejected": [*asked, {"role": "assistant", "content": said}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sft to start from."""
    place = tmp_path_factory.mktemp("base")
    assert run("sft", *TINY, "--out", place / "sft", "--cache_dir", place / "cache", "--data_path",
               write_dialogues(place / "data.jsonl"), "--max_steps", 3, "--eval_interval", 0,
               "--sample_interval", 0) == 0
    return place / "sft"


def options(tmp_path: Path, base: Path, *more: object) -> list[object]:
    return ["--data_path", write_pairs(tmp_path / "pairs.jsonl"), "--cache_dir", tmp_path / "cache", "--from_weight",
            base, "--max_seq_len", 32, "--batch_size", 2, "--device", "cpu", "--max_steps", 8, "--save_interval", 3,
            "--eval_interval", 4, "--sample_interval", 0, "--eval_fraction", 0.2, "--learning_rate", 0.002, *more]


def test_the_chosen_answers_become_likelier(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "run"
    assert run("dpo", "--out", out, *options(tmp_path, base, "--max_steps", 25)) == 0
    points = [dict(p) for p in curve(out).values()]
    assert points[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy and reference are one: log 2
    assert points[0]["reward_margin"] == pytest.approx(0.0, abs=1e-4)
    assert points[-1]["loss"] < 0.5 and points[-1]["reward_accuracy"] == 1.0 and points[-1]["reward_margin"] > 0.5
    last = dict(list(curve(out, "eval").values())[-1])
    assert last["eval_reward_accuracy"] > 0.9 and last["eval_loss"] < 0.6
    assert "perplexity" not in last  # nothing of a pair is a language model's


@pytest.mark.parametrize("loss_type", ["ipo", "simpo", "orpo"])
def test_every_loss_trains(tmp_path: Path, base: Path, loss_type: str) -> None:
    out = tmp_path / "run"
    assert run("dpo", "--out", out, *options(tmp_path, base, "--loss_type", loss_type)) == 0
    points = [dict(p) for p in curve(out).values()]
    assert points[-1]["loss"] < points[0]["loss"]
    kept = (out / "checkpoints/step-00000008-a1/objective.safetensors").exists()
    assert kept == (loss_type == "ipo")


def test_the_reference_is_computed_once(tmp_path: Path, base: Path) -> None:
    """A second run with another beta finds it; it is what the base says, which is what the first step says too."""
    for name, beta in (("one", 0.1), ("two", 0.5)):
        assert run("dpo", "--out", tmp_path / name, *options(tmp_path, base, "--beta", beta)) == 0
    phases = [[e["data"] for e in events(tmp_path / name, 1, "phase") if "thinks" in (e["data"].get("message") or "")]
              for name in ("one", "two")]
    assert phases[0] and not phases[1]
    [kept] = (tmp_path / "cache/reference").iterdir()
    saved = tmp_path / "one/checkpoints/step-00000008-a1/objective.safetensors"
    assert kept.read_bytes() == saved.read_bytes()
    assert int((load_file(kept)["logps"] < 0).sum()) == 80  # of every side of every pair


def test_in_a_mixture_every_pair_keeps_its_own_reference(tmp_path: Path, base: Path) -> None:
    """The first file is too small to have something held out; what is held out of the second one stays its own."""
    few, many = write_pairs(tmp_path / "few.jsonl", 4, seed=2), write_pairs(tmp_path / "many.jsonl", 40, seed=3)

    def logps(name: str, *data: object) -> torch.Tensor:
        assert run("dpo", "--out", tmp_path / name, *options(tmp_path, base)[2:], "--max_steps", 1, *data) == 0
        return load_file(tmp_path / name / "checkpoints/step-00000001-a1/objective.safetensors")["logps"]

    alone = [logps(path.stem, "--data_path", path) for path in (few, many)]
    torch.testing.assert_close(logps("both", "--data_mix", f"{few}=1,{many}=3"), torch.cat(alone), rtol=1e-5, atol=0)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_paused_run_is_the_whole_run(tmp_path: Path, base: Path, ranks: int) -> None:
    """Also where neither the base nor the cache is there any more."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    mine = tmp_path / "mine"
    shutil.copytree(base, mine)
    arguments = options(tmp_path, mine, "--dropout", 0.1)
    assert changed_ranks(ranks, unchanged, "dpo", "--out", whole, *arguments) == [0] * ranks
    pause = partial(paused_after, step=4, control=RunDir(broken).attempt(1).control)
    assert changed_ranks(ranks, pause, "dpo", "--out", broken, *arguments) == [0] * ranks
    assert result(broken)["status"] == "paused" and result(broken)["step"] < 8
    shutil.rmtree(mine)
    shutil.rmtree(tmp_path / "cache")
    assert changed_ranks(ranks, unchanged, "dpo", "--out", broken, "--resume", "auto") == [0] * ranks
    assert_same_run(whole, broken, 8)


def test_two_ranks_learn_what_one_does(tmp_path: Path, base: Path) -> None:
    """One step over the same pairs: the same weights but for rounding."""
    common = ("--max_steps", 1, "--optimizer", "adamw", "--save_interval", 1)
    assert changed_ranks(2, unchanged, "dpo", "--out", tmp_path / "two", *options(tmp_path, base, *common)) == [0, 0]
    assert run("dpo", "--out", tmp_path / "one",
               *options(tmp_path, base, *common, "--batch_size", 4)) == 0
    one, two = (load_file(tmp_path / name / "checkpoints/step-00000001-a1/model.safetensors") for name in
                ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-4)
    a, b = (dict(curve(tmp_path / name)[1]) for name in ("one", "two"))
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def refusal(tmp_path: Path, *arguments: object) -> dict:
    out = tmp_path / "refused"
    assert run("dpo", "--out", out, *arguments) == 2
    return result(out)["error"]


def test_it_needs_a_model_to_start_from(tmp_path: Path) -> None:
    error = refusal(tmp_path, "--data_path", write_pairs(tmp_path / "pairs.jsonl"), "--cache_dir", tmp_path / "cache")
    assert "goes on from a trained model" in error["message"] and "--from_weight" in error["hint"]


def test_prompts_that_fill_the_window_are_said(tmp_path: Path, base: Path) -> None:
    arguments = options(tmp_path, base, "--max_seq_len", 64, "--max_steps", 1, "--eval_fraction", 0)
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    long = json.loads(rows[2])
    for side in long.values():
        side[0]["content"] *= 100
    rows[2] = json.dumps(long)
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    assert run("dpo", "--out", tmp_path / "run", *arguments) == 0
    [said] = [e["data"]["message"] for e in events(tmp_path / "run", 1, "warning")]
    assert "1 of" in said and "pairs were left out (the first is pair 3): the prompt alone fills the window" in said
    error = refusal(tmp_path, *options(tmp_path, base, "--max_seq_len", 8))
    assert "Every prompt fills the window of 8 tokens" in error["message"] and "max_seq_len" in error["hint"]


def test_equal_sides_are_an_error_that_names_the_line(tmp_path: Path, base: Path) -> None:
    path = write_pairs(tmp_path / "equal.jsonl")
    rows = path.read_text().splitlines()
    row = json.loads(rows[6])
    rows[6] = json.dumps(row | {"rejected": row["chosen"]})
    path.write_text("\n".join(rows) + "\n")
    error = refusal(tmp_path, *options(tmp_path, base), "--data_path", path)
    assert "line 7: chosen and rejected are equal" in error["message"]


def test_new_pairs_need_a_new_run(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        paused_after(patch, 4, RunDir(out).attempt(1).control)
        assert run("dpo", "--out", out, *options(tmp_path, base)) == 0
    write_pairs(tmp_path / "pairs.jsonl", seed=9)
    assert run("dpo", "--out", out, "--resume", "auto", "--allow_changes") == 2
    assert "can no longer be computed" in result(out, 2)["error"]["message"]
