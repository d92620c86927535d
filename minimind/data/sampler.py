"""Which rows make which optimizer step: a pure function of (seed, epoch, position), before any sharding.

An epoch is a permutation of all rows. Step k takes the next ``rows_per_step`` of them; the last step of an epoch
takes what is left. No rank keeps a state, so a resumed run and any number of ranks see the same rows in the same
steps.

A *mixture* takes rows of several sources in given shares. An epoch is still as many rows as there are, but rows of a
source with a large share come several times in it, and a source with a small share takes several epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Rows of one optimizer step. ``position``: rows used before it since the start of training."""

    step: int
    epoch: int
    position: int
    rows: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """``sizes``: rows of each source, which are numbered one source behind the other; ``quotas``: how many rows of
    it an epoch takes. Both add up to the rows of an epoch."""

    sizes: tuple[int, ...]
    quotas: tuple[int, ...]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Rows of epoch 0, 1, ...: whose turn it is is shuffled, and each source is walked through in its turns."""
        turns = np.repeat(np.arange(len(self.sizes)), self.quotas)
        turns = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(turns)
        rows = np.empty(len(turns), dtype=np.int64)
        begin = 0
        for source, (size, quota) in enumerate(zip(self.sizes, self.quotas)):
            rows[turns == source] = begin + _walk(size, epoch * quota, quota, [seed, source + 1])
            begin += size
        return rows

    def times_per_epoch(self) -> np.ndarray:
        """How often each row comes in an epoch on average, [rows]."""
        return np.repeat(np.array(self.quotas) / np.array(self.sizes), self.sizes)


def _walk(size: int, start: int, count: int, seed: list[int]) -> np.ndarray:
    """Places ``start`` .. ``start + count - 1`` of an endless row of permutations of ``size``: none comes again before
    all have come."""
    passes = range(start // size, (start + count - 1) // size + 1)
    walked = [np.random.Generator(np.random.PCG64([*seed, number])).permutation(size) for number in passes]
    begin = start - passes[0] * size
    return np.concatenate(walked)[begin:begin + count]


class Sampler:
    def __init__(self, num_rows: int, rows_per_step: int, seed: int, mixture: Mixture | None = None):
        assert num_rows > 0 and rows_per_step > 0
        assert mixture is None or sum(mixture.sizes) == sum(mixture.quotas) == num_rows
        self.num_rows = num_rows
        self.mixture = mixture
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.steps_per_epoch = -(-num_rows // rows_per_step)
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def order(self, epoch: int) -> np.ndarray:
        """The rows of epoch 0, 1, ... in their order (the last one asked for is remembered)."""
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._order = self.mixture.order(self.seed, epoch) if self.mixture else \
                generator.permutation(self.num_rows)
            self._epoch = epoch
        return self._order

    def window(self, step: int) -> Window:
        """Rows of optimizer step ``step`` (the first is 1)."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        first = place * self.rows_per_step
        rows = self.order(epoch)[first:first + self.rows_per_step]
        return Window(step, epoch, epoch * self.num_rows + first, rows)

    def position_after(self, step: int) -> int:
        """Global row position once ``step`` steps are done."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch * self.num_rows + place * self.rows_per_step


def micro_batches(rows: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[np.ndarray]:
    """The window's rows as micro-steps of one rank: each takes ``batch_size`` rows on every rank in turn.

    Every rank gets the same number of micro-steps; in the last ones of a partial window a rank can be without rows.
    """
    block = batch_size * world_size
    count = max(1, -(-len(rows) // block))
    return [rows[m * block + rank * batch_size:m * block + (rank + 1) * batch_size] for m in range(count)]
