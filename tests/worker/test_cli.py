"""The commands' own words: help, mistakes, and what the demo shows on a terminal and elsewhere."""

from __future__ import annotations

import sys

import pytest

from minimind.errors import MiniMindError
from worker.cli.__main__ import COMMANDS, for_the_user, main
from worker.cli.demo import ProgressBar


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write their data directory into the environment; it is put back after each test."""
    monkeypatch.setenv("STUDIO_DATA_DIR", "unused")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_the_data_directory(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--data_dir" in capsys.readouterr().out


def test_no_command_shows_all_of_them(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_a_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture) -> None:
    assert main(["dmeo"]) == 2
    assert "Did you mean 'demo'?" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "100000"])
def test_the_demo_wants_a_training_time(minutes: str, capsys: pytest.CaptureFixture, tmp_path) -> None:
    assert main(["demo", "--minutes", minutes, "--data_dir", str(tmp_path / "d")]) == 2
    assert "is not a training time" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_only_what_a_user_can_mend_becomes_a_sentence() -> None:
    assert for_the_user(MiniMindError("It is broken.", hint="Mend it.")) == "It is broken. Mend it."
    assert for_the_user(KeyError("x")) is None


RUN = {"id": "r1", "stage": "pretrain", "state": "running",
       "progress": {"step": 50, "total_steps": 200, "loss": 1.25, "tokens_per_s": 12000.0, "eta_s": 30.2,
                    "phase": "train"}}


def test_elsewhere_the_progress_is_plain_lines_that_are_not_too_many(capsys: pytest.CaptureFixture) -> None:
    bar = ProgressBar()
    assert not bar.live
    bar.show(RUN)
    bar.show(RUN)
    bar.show({**RUN, "state": "paused"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "50/200" in lines[0] and "loss 1.250" in lines[0] and "12,000 tokens/s" in lines[0]
    assert "paused" in lines[1]


def test_on_a_terminal_it_is_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bar = ProgressBar()
    bar.show(RUN)
    bar.show({**RUN, "progress": {"phase": "tokenize"}})
    bar.end()
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and shown.count("\r") == 2
    assert "tokenize" in shown
