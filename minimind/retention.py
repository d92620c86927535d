"""Which checkpoints of a run are kept, and how one goes.

Everything stays while it fits in 2 GB. Then: the last two, the best by evaluation loss, and the first of each
``1 / keep`` of the run.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from minimind.manifest import MANIFEST_FILE
from minimind.run_dir import parse_checkpoint_name
from minimind.save_points import reached

#: all checkpoints of a run are kept while they fit in this many bytes
KEEP_ALL_BYTES = 2 << 30
#: kept whatever else is: where the newest is damaged, training goes on from the other
KEEP_LAST = 2


class Saved(NamedTuple):
    path: Path
    step: int
    attempt: int
    bytes: int
    eval_loss: float | None


def superfluous(saved: Iterable[Saved], total_steps: int, keep: int, *,
                keep_all_bytes: int | None = None) -> list[Saved]:
    """Those of a run's whole checkpoints that need not be kept, newest first. ``keep``: shares of the run."""
    newest_first = sorted(saved, key=lambda s: (s.attempt, s.step), reverse=True)
    if sum(s.bytes for s in newest_first) <= (KEEP_ALL_BYTES if keep_all_bytes is None else keep_all_bytes):
        return []
    kept = {s.path for s in newest_first[:KEEP_LAST]}
    evaluated = [s for s in newest_first if s.eval_loss is not None]
    if evaluated:
        kept.add(min(evaluated, key=lambda s: s.eval_loss).path)
    if keep:
        milestones: dict[int, Path] = {}
        for one in newest_first:  # the earliest of each share is written last
            milestones[(one.step - 1) * keep // max(1, total_steps)] = one.path
        kept |= set(milestones.values())
    return [s for s in newest_first if s.path not in kept]


def remove(directory: Path) -> None:
    """Delete a checkpoint. Without its manifest it is none: a kill in the middle leaves nothing that anybody reads."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        directory.joinpath(MANIFEST_FILE).unlink()
    reached("in_retention")
    shutil.rmtree(directory, ignore_errors=True)


def leftovers(checkpoints: Path) -> list[Path]:
    """What killed processes were writing or deleting under ``checkpoints``: none of it is a checkpoint."""
    if not checkpoints.is_dir():
        return []
    return sorted(p for p in checkpoints.iterdir() if p.name.startswith(".tmp-") or (
        parse_checkpoint_name(p.name) is not None and p.is_dir() and not p.joinpath(MANIFEST_FILE).exists()))


def remove_all(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
