"""The numbers of a run as curves: one value per step whatever restarts there were, thinned without losing a spike.

*Attempts.* A run that was interrupted repeats the steps after its last checkpoint. For each step the highest
attempt answers, and where a later attempt started at step k nothing of older attempts beyond k is shown.

*Thinning.* Every bin keeps its minimum and maximum (tsdownsample's MinMax; LTTB drops one of two neighbouring
spikes), and bins with a non-finite value keep one of those too: a NaN in a loss must be seen.

*Smoothing* comes before both zoom and thinning, over the whole curve from its start, so it never changes with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from tsdownsample import MinMaxDownsampler, NaNMinMaxDownsampler

from app.core.db import Session
from app.core.models import Attempt, MetricChunk
from app.core.settings import get_settings
from app.runs.schemas import MetricsOut, Series
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir, read_json

_COLUMNS = ("step", "tokens", "t")
MIN_POINTS, DEFAULT_POINTS, MAX_POINTS = 16, 2000, 20_000
_BLOCK = 64


@dataclass
class Curve:
    """Points of one key in the order of their steps; ``y`` is NaN where the number was not finite."""

    step: np.ndarray  # [n] int64
    tokens: np.ndarray  # [n] int64
    elapsed: np.ndarray  # [n] seconds of training, pauses left out
    y: np.ndarray  # [n] float64

    def axis(self, x: str, flops_per_token: float = 0.0) -> np.ndarray:
        if x == "flops":
            return self.tokens * flops_per_token
        return {"step": self.step, "tokens": self.tokens, "time": self.elapsed}[x]


def metrics(session: Session, run_id: str, *, keys: list[str] | None, x: str, start: float | None,
            end: float | None, points: int, smooth: float | None = None) -> MetricsOut:
    """Curves of ``keys`` (None: all) between ``start`` and ``end`` on the axis ``x``, at most ``points`` each.

    ``smooth`` in [0, 1): how much of the mean so far a new point leaves, see ``smoothed``; None: no smoothing.
    """
    series = {}
    flops = flops_per_token(run_id) if x == "flops" else 0.0
    for key, curve in sorted(curves(session, run_id, keys).items()):
        along = curve.axis(x, flops)
        inside = np.ones(len(along), bool)
        if start is not None:
            inside &= along >= start
        if end is not None:
            inside &= along <= end
        kept = np.flatnonzero(inside)
        kept = kept[thin(curve.y[kept], points)]
        shown = {"x": along[kept].tolist(), "y": _or_null(curve.y[kept]), "total_points": int(inside.sum())}
        if smooth is not None:
            # without a point in the range the average has come to the place where the range begins
            before = 0 if start is None else int((along < start).sum())
            shown |= _smooth(curve.y, smooth, kept, kept[-1] + 1 if len(kept) else before)
        series[key] = Series(**shown)
    return MetricsOut(x=x, series=series)


def _or_null(y: np.ndarray) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in y.tolist()]


def _smooth(y: np.ndarray, weight: float, kept: np.ndarray, until: int) -> dict[str, Any]:
    """The fields of a ``Series`` that smoothing adds: for the shown points ``kept`` of the whole curve ``y``, and for
    who goes on with the average behind its first ``until`` points."""
    mean = smoothed(y, weight)
    seen = mean[:until]
    seen = seen[np.isfinite(seen)]
    return {"smooth": _or_null(mean[kept]), "smooth_points": len(seen),
            "smooth_last": float(seen[-1]) if len(seen) else None}


def smoothed(y: np.ndarray, weight: float) -> np.ndarray:
    """The exponential moving average of the finite values of ``y``, without the bias of its beginning; NaN elsewhere.

    After k finite values: sum_j weight^(k-j) y_j / sum_j weight^(k-j), which is Adam's bias correction.
    A million points take about 15 ms, a plain loop 240.
    """
    mean = np.full(len(y), np.nan)
    finite = np.isfinite(y)
    values = y[finite]
    if not len(values):
        return mean
    # sum of the weights of k values: (1 - weight^k) / (1 - weight), written so that a weight near 1 loses nothing
    total = np.full(len(values), 1 / (1 - weight))
    if weight > 0:
        log = math.log(weight)
        changing = min(len(values), math.ceil(-40 / log))  # behind it weight^k is below 1e-17
        total[:changing] = np.expm1(log * np.arange(1, changing + 1)) / (weight - 1)
    mean[finite] = _discounted_sums(values, weight) / total
    return mean


def _discounted_sums(y: np.ndarray, weight: float) -> np.ndarray:
    """``s_k = y_k + weight * s_(k-1)``: within blocks by one matrix product, from block to block by itself."""
    if len(y) <= 2 * _BLOCK:
        sums, before = np.empty(len(y)), 0.0
        for place, value in enumerate(y.tolist()):
            sums[place] = before = value + weight * before
        return sums
    blocks = np.zeros(-(-len(y) // _BLOCK) * _BLOCK)
    blocks[:len(y)] = y
    power = weight ** np.arange(_BLOCK + 1)
    distance = np.subtract.outer(np.arange(_BLOCK), np.arange(_BLOCK))  # of target and source
    sums = blocks.reshape(-1, _BLOCK) @ np.where(distance >= 0, power[np.abs(distance)], 0).T
    ends = _discounted_sums(sums[:-1, -1], float(power[_BLOCK]))
    sums[1:] += ends[:, None] * power[1:]
    return sums.ravel()[:len(y)]


def flops_per_token(run_id: str) -> float:
    """Training FLOPs that one token of this run costs; 0 before the model's shape is known (there are no points)."""
    resolved = read_json(RunDir(get_settings().runs_dir / run_id).resolved) or {}
    if "model" not in resolved:  # also the stage without a model
        return 0.0
    return ModelConfig.from_dict(resolved["model"]).flops_per_token(resolved["max_seq_len"])


def curves(session: Session, run_id: str, keys: list[str] | None = None) -> dict[str, Curve]:
    """Every number that the run reported, by key; a wanted key without points has an empty curve."""
    parts = _read(session, run_id, keys)
    cut = cutoffs(session, run_id)
    clock = _Clock()
    for attempt in sorted({number for number, _, _ in parts}):
        times = [data["t"][data["step"] <= cut.get(attempt, np.inf)] for n, data, _ in parts if n == attempt]
        clock.add(attempt, np.concatenate(times))
    found: dict[str, list[tuple[np.ndarray, ...]]] = {key: [] for key in keys or []}
    for attempt, data, values in parts:
        shown = data["step"] <= cut.get(attempt, np.inf)
        for key, y in values.items():
            found.setdefault(key, []).append((
                data["step"][shown], data["tokens"][shown], clock.elapsed(attempt, data["t"][shown]), y[shown],
                np.full(int(shown.sum()), attempt)))
    return {key: _curve(pieces) for key, pieces in found.items()}


def _read(session: Session, run_id: str, keys: list[str] | None) -> list[tuple[int, dict, dict]]:
    """``(attempt, columns, values by key)`` of each stored chunk, in the order they were stored."""
    rows = session.execute(select(MetricChunk.attempt, MetricChunk.data).where(MetricChunk.run_id == run_id)
                           .order_by(MetricChunk.id))
    parts = []
    for attempt, data in rows:
        columns = {"step": np.asarray(data["step"], np.int64), "tokens": np.asarray(data["tokens"], np.int64),
                   "t": np.asarray(data["t"], np.float64)}
        values = {k: np.asarray(v, np.float64) for k, v in data.items()  # None becomes NaN
                  if k not in _COLUMNS and (keys is None or k in keys)}
        parts.append((attempt, columns, values))
    return parts


def cutoffs(session: Session, run_id: str) -> dict[int, float]:
    """The last step of each attempt that still counts: where the earliest later attempt started."""
    rows = session.execute(select(Attempt.number, Attempt.resumed_from_step).where(Attempt.run_id == run_id)
                           .order_by(Attempt.number.desc()))
    cut, earliest = {}, np.inf
    for number, resumed_from in rows:
        cut[number] = earliest
        if resumed_from is not None:
            earliest = min(earliest, resumed_from)
    return cut


class _Clock:
    """Seconds of training: each attempt goes on where the shown part of the one before ended."""

    def __init__(self) -> None:
        self._starts: dict[int, tuple[float, float]] = {}
        self._end = 0.0

    def add(self, attempt: int, times: np.ndarray) -> None:
        if len(times):
            self._starts[attempt] = (float(times.min()), self._end)
            self._end += float(times.max() - times.min())

    def elapsed(self, attempt: int, times: np.ndarray) -> np.ndarray:
        if not len(times):
            return times
        start, before = self._starts[attempt]
        return np.round(times - start + before, 3)


def _curve(pieces: list[tuple[np.ndarray, ...]]) -> Curve:
    """One point per step: of several the highest attempt's, and of that attempt's the last."""
    if not pieces:
        return Curve(*(np.empty(0, np.int64),) * 2, *(np.empty(0),) * 2)
    step, tokens, elapsed, y, attempt = (np.concatenate(column) for column in zip(*pieces, strict=True))
    order = np.lexsort((np.arange(len(step)), attempt, step))
    step = step[order]
    last = np.append(step[1:] != step[:-1], True) if len(step) else np.empty(0, bool)
    return Curve(step[last], tokens[order][last], elapsed[order][last], y[order][last])


def thin(y: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most ``points`` values that show all extremes of ``y``, both ends and where it is not finite."""
    if len(y) <= points:
        return np.arange(len(y))
    y = np.ascontiguousarray(y, np.float64)
    broken = ~np.isfinite(y)
    picked = [np.array([0, len(y) - 1])]
    for_broken = 0
    if broken.any():
        for_broken = points // 4
        with_nan = np.where(broken, np.nan, y)
        seen = NaNMinMaxDownsampler().downsample(with_nan, n_out=for_broken // 2 * 2).astype(np.int64)
        picked.append(seen[broken[seen]])
    for_extremes = (points - 2 - for_broken) // 2 * 2
    finite = np.flatnonzero(~broken)
    if len(finite) <= for_extremes:
        picked.append(finite)
    else:
        picked.append(finite[MinMaxDownsampler().downsample(y[finite], n_out=for_extremes).astype(np.int64)])
    return np.unique(np.concatenate(picked))
