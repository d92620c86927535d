"""Every stage after pretraining teaches what it is for: the short version of ``./studio bench learn``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
