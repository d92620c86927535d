"""The command line: flags, defaults, and one clear sentence for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimind import cli, job
from minimind.config import STAGES, parse_config
from minimind.errors import ConfigError
from minimind.run_dir import RunDir, write_json
from tests.minimind.training import ROOT, TINY, result, run, write_dialogues, write_texts


def test_no_arguments_pretrain() -> None:
    command = cli.parse([])
    assert (command.stage, command.values, command.resume, command.out) == ("pretrain", {}, None, None)


@pytest.mark.parametrize(("words", "value"), [
    (["--use_compile"], True), (["--use_compile", "1"], True), (["--use_compile=true"], True),
    (["--use_compile", "0"], False), (["--use_compile", "False"], False), (["--no_use_compile"], False),
])
def test_booleans(words: list[str], value: bool) -> None:
    assert cli.parse(["sft", *words]).values == {"use_compile": value}


def test_a_python_without_the_packages_is_one_sentence() -> None:
    ended = subprocess.run([sys.executable, "-S", str(ROOT / "train.py")], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert f"{sys.executable} has no package" in ended.stderr and "pip install -r requirements.txt" in ended.stderr


def test_every_boolean_has_its_no() -> None:
    assert cli.parse(["--allow_changes"]).allow_changes and not cli.parse(["--no_allow_changes"]).allow_changes


def test_values_have_their_types() -> None:
    command = cli.parse(["pretrain", "--batch_size", "4", "--learning_rate", "1e-3", "--languages", "en,zh",
                         "--out", "x", "--resume", "auto", "--allow_changes"])
    assert command.values == {"batch_size": 4, "learning_rate": 1e-3, "languages": ["en", "zh"]}
    assert command.out == Path("x") and command.resume == "auto" and command.allow_changes is True


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_help_lists_every_option_with_its_default(stage: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.parse([stage, "--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, info in STAGES[stage].model_fields.items():
        assert f"--{name} " in text, name
        assert " ".join(info.description.split())[:40] in text
    assert text.count("Default: ") >= len(STAGES[stage].model_fields)


@pytest.mark.parametrize(("words", "says"), [
    (["pretrian"], "Did you mean 'pretrain'"),
    (["--bach_size", "3"], "Did you mean --batch_size"),
    (["--batch_size", "many"], "batch_size"),
    (["--use_compile", "perhaps"], "neither true nor false"),
    (["pretrain", "more"], "stands where no value goes"),
    (["--attempt", "1"], "--attempt needs --out"),
    (["--batch"], "no option --batch"),
])
def test_mistakes_are_named(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        cli.parse(words)
    assert says in str(raised.value)


def test_a_long_value_is_quoted_by_its_beginning() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config("sft", {"batch_size": "x" * 100_000})
    assert "batch_size = 'xxx" in str(raised.value) and len(str(raised.value)) < 500


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "data.jsonl")


@pytest.mark.parametrize(("words", "says"), [
    (["--hidden_size", 30, "--num_attention_heads", 4], "not divisible"),
    (["--device", "cuda"], "no CUDA device"),
    (["--device", "tpu"], "no device named 'tpu'"),
    (["--dtype", "float16"], "float16 cannot be trained on a CPU"),
    (["--attention", "flash_attn"], "needs a CUDA device"),
    (["--data_path", "nowhere.jsonl"], f"no file or directory {Path.cwd() / 'nowhere.jsonl'}"),
    (["--from_weight", "nowhere"], f"no checkpoint {Path.cwd() / 'nowhere'}"),
    (["--num_experts_per_tok", 2], "the model has no experts"),
    (["--use_moe", "--num_experts_per_tok", 5], "more than the 4 experts"),
    (["--max_seq_len", 4], "max_seq_len = 4"),
    (["--preset", "huge"], "no preset named 'huge'"),
    (["--tokenizer", "nowhere"], "tokenizer.json"),
])
def test_one_sentence_and_exit_2(tmp_path: Path, data: Path, words: list[object], says: str,
                                 capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = run("pretrain", *[w for w in TINY if w not in ("--device", "cpu")], "--out", tmp_path / "run",
               "--data_path", data, "--cache_dir", tmp_path / "cache", "--max_steps", 1, *words)
    assert code == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    if (tmp_path / "run/attempts/1").exists():
        assert result(tmp_path / "run")["status"] == "failed" and says in result(tmp_path / "run")["error"]["message"]
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(("content", "says"), [
    (b'{"text": "fine"}\n{"text": \n', "line 2"), (b"", "empty"), (b'{"text": "\xff\xfe"}\n', "UTF-8"),
    (b'{"text": 3}\n', "line 1"), (b'{"prompt": "x", "completion": "y"}\n', "text"),
])
def test_bad_data(tmp_path: Path, content: bytes, says: str, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    code = run("pretrain", *TINY, "--out", tmp_path / "run", "--data_path", tmp_path / "bad.jsonl", "--cache_dir",
               tmp_path / "cache", "--max_steps", 1)
    assert code == 2 and says in capfd.readouterr().err
    assert result(tmp_path / "run")["error"]["class"] == "DATA"
    assert not any((tmp_path / "cache").rglob("*.tmp"))


def test_the_wrong_layout_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_dialogues(tmp_path / "d.jsonl")
    assert run("pretrain", *TINY, "--out", tmp_path / "run", "--data_path", tmp_path / "d.jsonl") == 2
    assert "layout conversations" in capfd.readouterr().err


def test_the_life_of_a_run_directory(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture) -> None:
    arguments = [*TINY, "--data_path", data, "--cache_dir", tmp_path / "cache", "--max_steps", 2, "--save_dir",
                 tmp_path / "runs"]
    # with no run to continue, auto starts one
    assert run("pretrain", "--resume", "auto", *arguments) == 0
    [made] = (tmp_path / "runs").iterdir()
    assert made.name.startswith("pretrain-") and json.loads((made / "run.json").read_text())["stage"] == "pretrain"
    weights = (made / "checkpoints/step-00000002-a1/model.safetensors").stat().st_mtime_ns
    # a non-empty directory is not overwritten
    assert run("pretrain", "--out", made, *arguments) == 2
    assert "is not empty" in capfd.readouterr().err
    # a completed run says so
    assert run("pretrain", "--out", made, "--resume", "auto") == 0
    assert "is completed" in capfd.readouterr().out
    assert [a.number for a in RunDir(made).attempts()] == [1]
    assert (made / "checkpoints/step-00000002-a1/model.safetensors").stat().st_mtime_ns == weights
    # another stage, another learning rate
    assert run("sft", "--out", made, "--resume", "auto") == 2
    assert "is of the stage pretrain" in capfd.readouterr().err
    assert run("pretrain", "--resume", made, "--learning_rate", 0.5) == 2
    assert "learning_rate was None and is 0.5 now" in capfd.readouterr().err
    # a directory that is no run
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    assert run("pretrain", "--out", tmp_path / "other", "--resume", "auto") == 2
    assert "is not a run" in capfd.readouterr().err
    assert run("pretrain", "--resume", tmp_path / "nowhere") == 2


def test_auto_passes_over_a_start_that_failed_at_once(tmp_path: Path) -> None:
    """A mistyped path after a paused run must not hide that run from ``--resume auto``."""
    for age, name, status in ((20, "paused", "paused"), (10, "typo", "failed")):
        run_dir = RunDir(tmp_path / name)
        attempt = run_dir.make_attempt()
        write_json(run_dir.config, {"stage": "pretrain"})
        attempt.write_result(status, 0, None)
        os.utime(run_dir.config, (time.time() - age,) * 2)
    command = cli.parse(["pretrain", "--resume", "auto", "--save_dir", str(tmp_path)])
    assert job._newest_unfinished(command).path == tmp_path / "paused"


def test_the_tokenizer_stage(tmp_path: Path, data: Path) -> None:
    assert run("tokenizer", "--out", tmp_path / "run", "--data_path", data, "--vocab_size", 350, "--cache_dir",
               tmp_path / "cache") == 0
    resolved = json.loads((tmp_path / "run/resolved.json").read_text())
    assert (resolved["stage"], resolved["vocab_size"], resolved["total_steps"]) == ("tokenizer", 350, None)
    assert {p.name for p in (tmp_path / "run/tokenizer").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert result(tmp_path / "run") == {"attempt": 1, "status": "completed", "step": 0, "checkpoint": None,
                                        "error": None}
    # and a run that uses it
    assert run("pretrain", *TINY, "--out", tmp_path / "second", "--data_path", data, "--tokenizer",
               tmp_path / "run/tokenizer", "--cache_dir", tmp_path / "cache", "--max_steps", 1) == 0


def test_a_tokenizer_that_is_not_the_bases_is_refused(tmp_path: Path, data: Path,
                                                      capfd: pytest.CaptureFixture) -> None:
    common = ["--data_path", data, "--cache_dir", tmp_path / "cache"]
    assert run("tokenizer", "--out", tmp_path / "t", "--vocab_size", 350, *common) == 0
    assert run("pretrain", *TINY, "--out", tmp_path / "base", "--max_steps", 1, *common) == 0
    assert run("pretrain", *TINY, "--out", tmp_path / "run", "--max_steps", 1, *common, "--from_weight",
               tmp_path / "base", "--tokenizer", tmp_path / "t/tokenizer") == 2
    assert "is not the one that the checkpoint" in capfd.readouterr().err


def test_a_corrected_command_has_the_same_place(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture) -> None:
    arguments = [*TINY, "--out", tmp_path / "run", "--cache_dir", tmp_path / "cache", "--max_steps", 1]
    assert run("pretrain", *arguments, "--data_path", tmp_path / "nowhere.jsonl") == 2
    assert run("pretrain", *arguments, "--data_path", data) == 0
    assert [a.number for a in RunDir(tmp_path / "run").attempts()] == [1]
    assert run("pretrain", *arguments, "--data_path", data) == 2, "a run that has learnt something stays"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/.git").mkdir()
    assert run("pretrain", *TINY, "--out", tmp_path / "mine", "--data_path", data) == 2, "hidden files are files"
    assert "is not empty" in capfd.readouterr().err


def test_a_run_is_continued_from_wherever_one_stands(tmp_path: Path, data: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are kept whole, and the printed command names the cache where the run's place does not tell it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for words, cache, is_named in ((["--out", "mine"], "here/cache", True), (["--out", "runs/a"], "here/cache", False),
                                   (["--out", "../x/runs/b"], "x/cache", False), ([], "here/cache", False)):
        given = cli.parse(["--data_path", f"../{data.name}", *words])
        found = job.open_job(given)
        assert found.config.data_path == str(tmp_path / "here" / ".." / data.name)
        assert found.cache_dir.resolve() == tmp_path / cache
        assert ("--cache_dir" in found.resume_command(1)) == is_named
        found.lock.release()
    taught = job.open_job(cli.parse(["distill", "--teacher_weight", "../teacher", "--from_weight", "../base",
                                     "--out", "taught"]))
    assert (taught.config.teacher_weight, taught.config.from_weight) == (
        str(tmp_path / "here/../teacher"), str(tmp_path / "here/../base"))
    taught.lock.release()


@pytest.mark.parametrize("words", [["--out", "file/run"], ["--out", "/proc/nope/run"], ["--save_dir", "file"],
                                   ["--cache_dir", "file", "--out", "run"], ["--cache_dir", "/proc/no", "--out", "r"]])
def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path, data: Path, words: list[str],
                                                capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert run("pretrain", *TINY, "--data_path", data, "--max_steps", 1, *words) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error


def test_the_shape_of_a_base_cannot_be_changed(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture) -> None:
    common = ["--data_path", data, "--cache_dir", tmp_path / "cache", "--max_steps", 1]
    assert run("pretrain", *TINY, "--out", tmp_path / "base", *common) == 0
    wider = ["--device", "cpu", "--from_weight", tmp_path / "base", "--hidden_size", 64, "--num_hidden_layers", 3]
    assert run("pretrain", "--out", tmp_path / "wider", *wider, *common) == 2
    error = capfd.readouterr().err
    assert "hidden_size is 64" in error and "num_hidden_layers is 3" in error


def test_wandb_without_an_account_is_one_sentence(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    code = run("pretrain", *TINY, "--out", tmp_path / "run", "--data_path", data, "--cache_dir", tmp_path / "cache",
               "--max_steps", 1, "--use_wandb")
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(error) == 1 and "WANDB_MODE=offline" in error[0]


@pytest.mark.parametrize("after_s", [0.5, 1.2])
def test_ctrl_c_in_the_first_moment_is_quiet(tmp_path: Path, data: Path, after_s: float) -> None:
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *TINY, "--data_path", str(data), "--out",
                                str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--max_steps", "100000"],
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert "Traceback" not in error or "train.py" not in error, "before our first line it is Python's own"
    assert "cannot be imported" not in error
