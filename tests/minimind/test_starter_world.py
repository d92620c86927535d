"""Stages that say the same ``starter_minutes`` learn of one world, however long each of them trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.config import parse_config
from minimind.data import starter
from minimind.errors import ConfigError
from minimind.metrics import silent
from minimind.prepare import Materials


class NeverStops:
    def check(self) -> None:
        pass


def materials(tmp_path: Path, stage: str, **options: object) -> Materials:
    return Materials(parse_config(stage, options), tmp_path, silent(), NeverStops(), has_gpu=False)


def written(made: Materials) -> list[dict]:
    (data,) = made.data_sets
    return [json.loads(line) for line in data.path.read_text(encoding="utf-8").splitlines()]


def test_stages_of_different_length_learn_of_one_world(tmp_path: Path) -> None:
    long = materials(tmp_path, "pretrain", max_minutes=9, starter_minutes=2, seed=5)
    short = materials(tmp_path, "sft", max_minutes=0.5, starter_minutes=2, seed=5)
    assert long.starter_plan == short.starter_plan == starter.plan(2)
    assert written(long) == list(starter.generate("text", minutes=2, seed=5))
    assert written(short) == list(starter.generate("dialogues", minutes=2, seed=5))
    assert materials(tmp_path, "tokenizer", starter_minutes=2, seed=5).contents == long.contents
    assert materials(tmp_path, "sft", max_minutes=0.5, seed=5).starter_plan == starter.plan(0.5)


def test_a_stage_may_learn_from_another_part_that_fits_it(tmp_path: Path) -> None:
    made = materials(tmp_path, "sft", starter="tools", starter_minutes=1)
    assert written(made) == list(starter.generate("tools", minutes=1))
    for stage, part in (("sft", "text"), ("dpo", "dialogues"), ("pretrain", "tools")):
        with pytest.raises(ConfigError) as wrong:
            parse_config(stage, {"starter": part})
        (problem,) = wrong.value.problems
        assert problem["field"] == "starter" and part in problem["message"], problem
    with pytest.raises(ConfigError, match="data of your own"):
        parse_config("sft", {"starter": "tools", "data_path": "mine.jsonl"})
