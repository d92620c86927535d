"""A run's loss in a few points, for lists: kept in ``run.progress`` as events come, never computed from the curve.

``progress["sparkline"]`` holds at most 30 ``[step, loss]`` that lie at least ``progress["sparkline_stride"]`` steps
apart, so a new loss costs the same whether it is the tenth or the millionth; ``progress["sparkline_newest"]`` is the
last one heard of. Functions return a new dictionary: a JSON column notices no change inside the old one.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

MAX_POINTS = 30


def added(progress: dict[str, Any], step: int, loss: Any) -> dict[str, Any]:
    """``progress`` with the loss of ``step``; one that is no finite number is left out."""
    if not isinstance(loss, int | float) or isinstance(loss, bool) or not math.isfinite(loss):
        return progress
    newest = [step, round(loss, 4)]
    points, stride = progress.get("sparkline") or [], progress.get("sparkline_stride") or 1
    if not points or step >= points[-1][0] + stride:
        points = [*points, newest]
        if len(points) > MAX_POINTS:  # every second goes; the first and the newest stay
            points = points[::2]
            # losses that come every 50 steps, say, are not thinned by a stride of 2
            stride = max(2 * stride, min(b[0] - a[0] for a, b in pairwise(points)))
    return progress | {"sparkline": points, "sparkline_stride": stride, "sparkline_newest": newest}


def rewound(progress: dict[str, Any], step: int) -> dict[str, Any]:
    """``progress`` of a run that goes on from ``step``: what came behind it will be trained again."""
    if not progress.get("sparkline"):
        return progress
    points = [p for p in progress["sparkline"] if p[0] <= step]
    newest = progress.get("sparkline_newest")
    if newest is None or newest[0] > step:
        newest = points[-1] if points else None
    return progress | {"sparkline": points, "sparkline_newest": newest}


def shown(progress: dict[str, Any]) -> list[list[float]]:
    """At most 30 points in the order of their steps; the last one is the newest finite loss."""
    points, newest = progress.get("sparkline") or [], progress.get("sparkline_newest")
    if newest is None or (points and newest[0] <= points[-1][0]):
        return points
    return [*points[:MAX_POINTS - 1], newest]
