"""Windows: every row once per epoch, whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.data.sampler import Sampler, micro_batches


@pytest.mark.parametrize(("rows", "per_step"), [(10, 4), (12, 4), (3, 8), (1, 1)])
def test_an_epoch_uses_every_row_once(rows: int, per_step: int) -> None:
    sampler = Sampler(rows, per_step, seed=7)
    for epoch in range(3):
        windows = [sampler.window(epoch * sampler.steps_per_epoch + k + 1) for k in range(sampler.steps_per_epoch)]
        assert sorted(np.concatenate([w.rows for w in windows]).tolist()) == list(range(rows))
        assert {w.epoch for w in windows} == {epoch}
        assert [w.position for w in windows] == [sampler.position_after(w.step - 1) for w in windows]
        assert sampler.position_after(windows[-1].step) == (epoch + 1) * rows


def test_a_window_depends_on_nothing_but_its_step() -> None:
    forward = [Sampler(50, 6, 3).window(k).rows.tolist() for k in range(1, 30)]
    backward = Sampler(50, 6, 3)
    assert [backward.window(k).rows.tolist() for k in range(29, 0, -1)][::-1] == forward
    assert Sampler(50, 6, 4).window(1).rows.tolist() != forward[0]
    assert forward[:9] != forward[9:18]  # another epoch, another order


@pytest.mark.parametrize("count", [12, 11, 5, 4, 1])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_window(count: int, world: int) -> None:
    rows = np.arange(100, 100 + count)
    shares = [micro_batches(rows, 2, rank, world) for rank in range(world)]
    assert len({len(s) for s in shares}) == 1  # all ranks make the same number of micro-steps
    assert sorted(np.concatenate([b for s in shares for b in s]).tolist()) == rows.tolist()
    assert all(len(b) <= 2 for s in shares for b in s)
