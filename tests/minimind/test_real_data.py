"""Files as their authors published them: each is read without hand work and trains for fifty steps.

They are no part of the repository: ``STUDIO_TEST_DATA`` names the directory that has them under ``original/``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.minimind.training import TINY, curve, result, run

DATA = Path(os.environ.get("STUDIO_TEST_DATA", "")) / "original"
SHAPE = TINY[:TINY.index("--max_seq_len")]
COMMON = ("--max_seq_len", 256, "--batch_size", 2, "--device", "cpu", "--max_steps", 50, "--eval_interval", 25,
          "--sample_interval", 0)
#: stage, file, documents that are learnt from or held out
FILES = (
    ("sft", "sft/alpaca_en_demo.json", 999), ("lora", "lora/medical_qa_gbk_1500.csv", 1500),
    ("lora", "sft/identity.json", 91), ("sft", "sft/crosswoz_val.json.zip", 500),
    ("sft", "tools/glaive_toolcall_en_240.json", 240), ("sft", "tools/glaive_toolcall_zh_240.json", 240),
    ("dpo", "dpo/dpo_en_demo.json", 600), ("dpo", "dpo/dpo_zh_demo_240.json", 480),
)
#: a model of 0.1M parameters with a tenth of a million tokens behind it has next to no opinion yet
RATE = {"dpo": ("--learning_rate", 0.001)}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="STUDIO_TEST_DATA names no directory "
                                                                             "with original/")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned on the ninth of them."""
    place = tmp_path_factory.mktemp("base")
    assert run("sft", *SHAPE, *COMMON, "--vocab_size", 1000, "--out", place / "sft", "--cache_dir", place / "cache",
               "--data_path", DATA / "sft/alpaca_zh_demo.json") == 0
    return place / "sft"


@pytest.mark.parametrize(("stage", "file", "documents"), FILES, ids=[file for _, file, _ in FILES])
def test_fifty_steps(base: Path, tmp_path: Path, stage: str, file: str, documents: int) -> None:
    out = tmp_path / "run"
    assert run(stage, *COMMON, "--out", out, "--cache_dir", tmp_path / "cache", "--data_path", DATA / file,
               "--from_weight", base, *RATE.get(stage, ())) == 0
    assert result(out)["status"] == "completed" and result(out)["step"] == 50
    points = [dict(point) for point in curve(out).values()]
    assert len(points) == 50 and all(math.isfinite(point["loss"]) for point in points)
    if stage == "dpo":  # of two to four pairs a step the loss says little: what it won over all steps does
        assert sum(point["reward_margin"] for point in points) > 0
    else:
        assert sum(p["loss"] for p in points[-10:]) < sum(p["loss"] for p in points[:10])
    log = (out / "attempts/1/logs/rank0.log").read_text()
    assert f"{Path(file).name}: {documents:,} documents" in log
