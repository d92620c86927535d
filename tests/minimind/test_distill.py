"""The stage distill: a student, its teacher, and what keeps them from understanding each other."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind.checkpoint import load_model
from minimind.data.cache import open_cache
from minimind.data.mixture import Source
from minimind.formats.pth import save_pth
from minimind.formats.source import load_weights_from
from minimind.run_dir import RunDir
from minimind.stages.distill import Distill
from minimind.stages.pretrain import Pretrain
from minimind.stages.sft import Sft
from minimind.tokenizer import Tokenizer
from tests.minimind.training import (
    TINY,
    assert_same_run,
    changed_ranks,
    curve,
    events,
    paused_after,
    result,
    run,
    unchanged,
    write_dialogues,
    write_texts,
)

STUDENT = ("--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--num_key_value_heads",
           "1", "--intermediate_size", "32", "--max_seq_len", "32", "--batch_size", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues and two teachers that learnt from them: a dense one and a mixture of experts."""
    place = tmp_path_factory.mktemp("teachers")
    data = write_dialogues(place / "data.jsonl")
    for name, more in (("dense", ()), ("moe", ("--num_experts", 2, "--tokenizer",
                                               place / "dense/checkpoints/step-00000040-a1"))):
        assert run("sft", *TINY, "--out", place / name, "--cache_dir", place / "cache", "--data_path", data,
                   "--max_steps", 40, "--eval_interval", 0, "--sample_interval", 0, *more) == 0
    return place


def options(place: Path, *more: object, teacher: str = "dense") -> list[object]:
    return [*STUDENT, "--data_path", place / "data.jsonl", "--cache_dir", place / "cache", "--teacher_weight",
            place / teacher, "--max_steps", 8, "--save_interval", 3, "--eval_interval", 4, "--sample_interval", 0,
            "--eval_fraction", 0.2, *more]


@pytest.mark.parametrize(("teacher", "kl"), [("dense", "forward"), ("dense", "reverse"), ("moe", "forward")])
def test_the_student_comes_closer_to_its_teacher(place: Path, tmp_path: Path, teacher: str, kl: str) -> None:
    """It starts with the teacher's tokenizer and from random weights of its own shape."""
    out = tmp_path / "run"
    assert run("distill", "--out", out, *options(place, "--kl", kl, "--max_steps", 30, teacher=teacher)) == 0
    points = [dict(p) for p in curve(out).values()]
    assert points[-1]["kl_loss"] < 0.7 * points[0]["kl_loss"] and points[-1]["ce_loss"] < points[0]["ce_loss"]
    assert points[0]["loss"] == pytest.approx(0.5 * points[0]["ce_loss"] + 0.5 * points[0]["kl_loss"], rel=1e-5)
    evals = [dict(p) for p in curve(out, "eval").values()]
    assert evals[-1]["eval_kl"] < evals[0]["eval_kl"] and evals[-1]["eval_loss"] < evals[0]["eval_loss"]
    student, tokenizer = load_model(RunDir(out).checkpoint_dirs()[0])
    assert student.config.hidden_size == 16
    assert tokenizer.fingerprint == Tokenizer.load(RunDir(place / teacher).checkpoint_dirs()[0]).fingerprint
    assert all("teacher" not in name for name in load_file(RunDir(out).checkpoint_dirs()[0] / "model.safetensors"))


def test_the_teacher_has_the_precision_that_is_asked_for(place: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimind.device.has_native_bfloat16", lambda: True)  # emulated is enough for a test
    for asked, said in (("auto", "float32"), ("bfloat16", "bfloat16")):
        out = tmp_path / asked
        assert run("distill", "--out", out, *options(place, "--teacher_dtype", asked, "--max_steps", 1)) == 0
        logs = [event["data"]["message"] for event in events(out, 1, "log")]
        assert [text for text in logs if text.startswith("Teacher: ") and text.endswith(f" in {said}.")]


def test_the_evaluation_is_the_students_own_cross_entropy(place: Path, tmp_path: Path) -> None:
    """So that it can be compared with that of a student who had no teacher: alpha changes nothing in it."""
    common = ("--max_steps", 1, "--eval_interval", 1, "--learning_rate", 1e-9, "--optimizer", "adamw")
    for name, alpha in (("one", 1.0), ("other", 0.0)):
        assert run("distill", "--out", tmp_path / name, *options(place, *common, "--alpha", alpha)) == 0
    one, other = (dict(curve(tmp_path / name, "eval")[1]) for name in ("one", "other"))
    assert one["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_paused_run_is_the_whole_run(place: Path, tmp_path: Path, ranks: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = options(place, "--dropout", 0.1)
    assert changed_ranks(ranks, unchanged, "distill", "--out", whole, *arguments) == [0] * ranks
    pause = partial(paused_after, step=4, control=RunDir(broken).attempt(1).control)
    assert changed_ranks(ranks, pause, "distill", "--out", broken, *arguments) == [0] * ranks
    assert result(broken)["status"] == "paused" and result(broken)["step"] < 8
    again = ("distill", "--out", broken, "--resume", "auto", "--cache_dir", place / "cache")
    assert changed_ranks(ranks, unchanged, *again) == [0] * ranks
    assert_same_run(whole, broken, 8)


def test_two_ranks_learn_what_one_does(place: Path, tmp_path: Path) -> None:
    common = ("--max_steps", 1, "--optimizer", "adamw", "--save_interval", 1)
    assert changed_ranks(2, unchanged, "distill", "--out", tmp_path / "two", *options(place, *common)) == [0, 0]
    assert run("distill", "--out", tmp_path / "one", *options(place, *common, "--batch_size", 4)) == 0
    one, two = (load_file(tmp_path / name / "checkpoints/step-00000001-a1/model.safetensors") for name in
                ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-4)


def refusal(out: Path, *arguments: object) -> dict:
    attempt = 1 + len(RunDir(out).attempts())
    assert run("distill", "--out", out, *arguments) == 2
    return result(out, attempt)["error"]


def test_it_needs_a_teacher(place: Path, tmp_path: Path) -> None:
    error = refusal(tmp_path / "run", *STUDENT, "--data_path", place / "data.jsonl", "--cache_dir", place / "cache")
    assert "no teacher" in error["message"] and "--teacher_weight" in error["hint"]


def test_a_teacher_of_another_vocabulary_is_refused_before_step_1(place: Path, tmp_path: Path) -> None:
    Tokenizer.train(["quite other words"] * 9, 300).save(tmp_path / "words")
    error = refusal(tmp_path / "run", *options(place, "--tokenizer", tmp_path / "words"))
    assert "has another vocabulary than the student" in error["message"] and "one tokenizer" in error["hint"]
    assert not events(tmp_path / "run", 1, "metrics")


def test_weights_without_a_tokenizer_teach_where_one_is_named(place: Path, tmp_path: Path) -> None:
    source = load_weights_from(place / "dense")
    teacher = save_pth(tmp_path / "teacher.pth", source.config, source.weights)
    plain = [*STUDENT, "--data_path", place / "data.jsonl", "--cache_dir", tmp_path / "cache", "--max_steps", 2,
             "--sample_interval", 0, "--teacher_weight", teacher]
    error = refusal(tmp_path / "run", *plain)
    assert "no usable tokenizer with the teacher" in error["message"] and "--tokenizer DIR" in error["hint"]
    assert run("distill", "--out", tmp_path / "run2", *plain, "--tokenizer", source.tokenizer_dir) == 0
    Tokenizer.train([" ".join(f"{i * 7919:x}" for i in range(5000))] * 2, 2300).save(tmp_path / "larger")
    error = refusal(tmp_path / "run3", *plain, "--tokenizer", tmp_path / "larger")
    assert "has another vocabulary than the student" in error["message"]


def test_a_student_of_texts_goes_on_with_texts(place: Path, tmp_path: Path) -> None:
    """Its samples are asked for as its data are written."""
    words = Tokenizer.load(RunDir(place / "dense").checkpoint_dirs()[0])
    cache = open_cache(write_texts(tmp_path / "a.jsonl"), "text", words, tmp_path / "cache", content="a")
    stage = Distill()
    stage.data([Source("texts", cache)], 32, 0.0)
    assert stage.prompt(words, "Anna") == Pretrain().prompt(words, "Anna") != Sft().prompt(words, "Anna")


def test_texts_and_dialogues_are_no_mixture(place: Path, tmp_path: Path) -> None:
    mix = f"{place / 'data.jsonl'}=1,{write_texts(tmp_path / 'texts.jsonl')}=1"
    error = refusal(tmp_path / "run", *STUDENT, "--teacher_weight", place / "dense", "--data_mix", mix, "--cache_dir",
                    place / "cache")
    assert "data.jsonl has the layout conversations and texts.jsonl the layout text" in error["message"]


def test_another_teacher_is_no_resume(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    mine = tmp_path / "teacher"
    shutil.copytree(place / "dense", mine)
    with monkeypatch.context() as patch:
        paused_after(patch, 4, RunDir(out).attempt(1).control)
        assert run("distill", "--out", out, *options(place, "--teacher_weight", mine)) == 0
    error = refusal(out, "--resume", "auto", "--teacher_weight", place / "moe", "--cache_dir", place / "cache")
    assert "the teacher changed" in error["message"] and "allow_changes" in error["hint"]
    shutil.rmtree(mine)
    error = refusal(out, "--resume", "auto", "--cache_dir", place / "cache")
    assert str(mine) in error["message"]
