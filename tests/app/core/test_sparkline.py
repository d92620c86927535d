"""The loss of a run in at most 30 points, whatever comes."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from app.core.sparkline import MAX_POINTS, added, rewound, shown


@pytest.mark.parametrize("every", [1, 7, 50])
@pytest.mark.parametrize("count", [1, 2, 29, 30, 31, 32, 500, 20_000])
def test_few_points_stand_for_all(every: int, count: int) -> None:
    progress: dict = {"step": 3}
    for step in range(every, every * count + 1, every):
        progress = added(progress, step, 1 / step)
    points = shown(progress)
    assert points[0] == [every, round(1 / every, 4)], "the first stays"
    assert points[-1] == [every * count, round(1 / (every * count), 4)], "the newest is there"
    assert min(count, 15) <= len(points) <= MAX_POINTS and len(progress["sparkline"]) <= MAX_POINTS
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    gaps = [b - a for a, b in pairwise(steps)]
    assert not gaps or max(gaps) <= max(every, 2 * every * count / 15), "spread over the whole curve"
    assert progress["step"] == 3


def test_what_is_not_finite_is_left_out() -> None:
    progress: dict = {}
    for step, loss in enumerate([None, math.nan, 2.0, math.inf, "x", True, 1.23456, None, -math.inf], 1):
        progress = added(progress, step, loss)
    assert shown(progress) == [[3, 2.0], [7, 1.2346]]
    assert shown({}) == [] and shown({"step": 3, "loss": 2.0}) == []


def test_a_step_that_was_told_before_is_one_point() -> None:
    progress = added(added({}, 5, 1.0), 5, 2.0)
    assert shown(progress) == [[5, 1.0]]


def test_the_old_dictionary_is_left_alone() -> None:
    first = added({}, 1, 1.0)
    second = added(first, 2, 2.0)
    assert len(first["sparkline"]) == 1 and len(second["sparkline"]) == 2
    assert rewound(second, 1)["sparkline"] == [[1, 1.0]] and len(second["sparkline"]) == 2


def test_a_rewind_forgets_what_was_beyond_it() -> None:
    source, progress, step = random.Random(4), {}, 0
    for _ in range(3_000):
        step += 1
        progress = added(progress, step, float(step))
        if source.random() < 0.01:
            step = source.randint(0, step)
            progress = rewound(progress, step)
            assert all(p[0] <= step for p in shown(progress))
        points = shown(progress)
        assert [s for s, _ in points] == sorted({s for s, _ in points}) and len(points) <= MAX_POINTS
        assert all(loss == s for s, loss in points)
    again = rewound(progress, 0)
    assert shown(again) == [] and shown(added(again, 1, 0.5)) == [[1, 0.5]]
    assert rewound({"step": 1}, 0) == {"step": 1}
