"""Which rows make which optimizer step: a pure function of (seed, epoch, position), before any sharding.

An epoch is a permutation of all rows. Step k takes the next ``rows_per_step`` of them; the last step of an epoch
takes what is left. No rank keeps a state, so a resumed run and any number of ranks see the same rows in the same
steps.
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


class Sampler:
    def __init__(self, num_rows: int, rows_per_step: int, seed: int):
        assert num_rows > 0 and rows_per_step > 0
        self.num_rows = num_rows
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.steps_per_epoch = -(-num_rows // rows_per_step)
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of epoch 0, 1, ... (the last one asked for is remembered)."""
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._order, self._epoch = generator.permutation(self.num_rows), epoch
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
