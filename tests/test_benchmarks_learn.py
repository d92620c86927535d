"""Every stage after pretraining teaches what it is for: the short version of ``./studio bench learn``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.learn import SHORT, Bench

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_every_stage_teaches_what_it_is_for(tmp_path: Path) -> None:
    """The program ends with status 1 where a goal is missed, and says which."""
    out = tmp_path / "found.json"
    done = subprocess.run([sys.executable, "-P", str(ROOT / "benchmarks/learn.py"), "--short", "--cache", str(tmp_path),
                           "--out", str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["sft"]["right"]["0"] < 0.3  # the pretrained model has not learnt to answer
    assert found["lora"]["identity"][0] == 0.0 and found["lora"]["identity"][1] > 0.8
    assert found["dpo"]["preferred"][1] > max(0.9, found["dpo"]["preferred"][0])
    assert found["distill"]["with"]["eval_kl"] < found["distill"]["alone"]["eval_kl"]


def test_a_run_of_other_flags_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    made: list[list[str]] = []

    def trained(command: list[str], **_: object) -> subprocess.CompletedProcess:
        made.append(command)
        Path(command[command.index("--out") + 1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", trained)
    for steps in ("3", "3", "4"):
        Bench(1, SHORT, tmp_path).train("lora", "lora", "--max_steps", steps)
    assert [command[-1] for command in made] == ["3", "4"]
    assert capsys.readouterr().out.count("kept from") == 1
