"""A training process killed by SIGKILL at each named moment of a save: the newest whole checkpoint is gone on from."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from minimind import checkpoint as saving
from minimind import save_points
from minimind.manifest import damage_of, newest_valid
from minimind.run_dir import RunDir
from tests.minimind.training import TINY, changed_ranks, curve, result, start, weights, write_texts

OPTIONS = ("--max_steps", 4, "--save_interval", 1, "--eval_interval", 0, "--sample_interval", 0, "--log_interval", 1)
#: the newest step that is whole after a kill at the save of step 2 (in retention: of step 3, which deletes step 1)
WHOLE = {"before_fsync": 1, "after_fsync": 1, "before_manifest": 1, "after_manifest": 1, "after_rename": 2,
         "before_word": 2, "in_retention": 3}


@dataclass
class KillAt:
    """Rank 0 is killed when it comes to ``point`` for the ``time``-th time."""

    point: str
    time: int
    keeps_little: bool = False
    seen: int = 0

    def __call__(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(save_points, "watchers", [self.watch])
        if self.keeps_little:
            patch.setattr(saving, "KEEP_ALL_BYTES", 0)

    def watch(self, point: str) -> None:
        self.seen += point == self.point
        if self.seen == self.time:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the data, and a run that nobody interrupted."""
    place = tmp_path_factory.mktemp("saves")
    write_texts(place / "data.jsonl")
    assert start(place, *OPTIONS, out="whole") == 0
    return place


def killed(place: Path, out: str, kill: KillAt, ranks: int = 1, *more: object) -> list[int]:
    return changed_ranks(ranks, kill, "pretrain", *TINY, "--out", place / out, "--data_path", place / "data.jsonl",
                         "--cache_dir", place / "cache", *OPTIONS, *more)


def names(run: RunDir) -> set[str]:
    return {p.name for p in run.checkpoints.iterdir()}


def test_every_point_of_the_trainer_has_a_kill() -> None:
    assert set(save_points.POINTS) - set(WHOLE) == {"after_row"}, "the runner's; tests/worker has it"


@pytest.mark.parametrize("point", WHOLE)
def test_the_newest_whole_checkpoint_is_gone_on_from(place: Path, point: str) -> None:
    in_retention = point == "in_retention"
    kill = KillAt(point, 1 if in_retention else 2, keeps_little=in_retention)
    assert killed(place, point, kill, 1, *(["--keep", 0] if in_retention else [])) == [-signal.SIGKILL]
    run = RunDir(place / point)
    assert newest_valid(run) == (run.checkpoint(WHOLE[point], 1), []), "nothing that cannot be read is looked at"
    assert run.attempt(1).read_result() is None

    assert start(place, *OPTIONS, "--resume", "auto", out=point) == 0
    assert result(run.path, 2)["status"] == "completed"
    assert all(damage_of(path) is None for path in run.checkpoint_dirs())
    assert names(run) == {path.name for path in run.checkpoint_dirs()}, "what was left is gone"
    assert weights(run.path) == weights(place / "whole") and curve(run.path) == curve(place / "whole")


def test_two_ranks_leave_nothing_half_either(place: Path) -> None:
    status = killed(place, "ranks", KillAt("before_manifest", 2), 2)
    assert status[0] == -signal.SIGKILL
    run = RunDir(place / "ranks")
    assert newest_valid(run) == (run.checkpoint(1, 1), [])
    assert ".tmp-step-00000002-a1" in names(run)
