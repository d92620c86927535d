"""The objective's loss on held-out documents, and when it has stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from minimind.data.packing import IGNORE, Rows
from minimind.distributed import World
from minimind.model import Losses
from minimind.objectives import Objective
from minimind.tokenizer import Tokenizer

#: evaluation reads at most this many held-out tokens, the same ones each time
MAX_EVAL_TOKENS = 131_072


class HeldOut:
    """A fixed choice of held-out rows and the number of bytes that their targets stand for."""

    def __init__(self, rows: Rows, tokenizer: Tokenizer, batch_size: int, seed: int):
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))
        enough = int(np.searchsorted(np.cumsum(rows.tokens[order]), MAX_EVAL_TOKENS)) + 1
        chosen = np.sort(order[:enough])
        self.batches = [chosen[i:i + batch_size] for i in range(0, len(chosen), batch_size)]
        self.rows = rows
        self.chosen = chosen
        table = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], dtype=np.int64)
        self.bytes = 0
        for batch in self.batches:
            targets = rows.read(batch)[1]
            self.bytes += int(table[targets[targets != IGNORE]].sum())

    @torch.no_grad()
    def evaluate(self, losses: Callable[[Rows, np.ndarray], Losses], objective: Objective, world: World) -> dict:
        """``losses(rows, batch)``: what model and objective say of a batch. Ranks take batches in turn."""
        totals = torch.zeros(1 + len(objective.metrics), dtype=torch.float64, device=world.device)
        for batch in self.batches[world.rank::world.size]:
            said = losses(self.rows, batch)
            totals[0] += said.loss.double()
            totals[1:] += said.sums
        loss, *sums = world.sum(list(totals))
        return objective.evaluation(loss, sums, objective.size(self.rows, self.chosen), self.bytes)


@dataclass
class Patience:
    """The best of the scheduled evaluations, and how many came after it. ``limit`` of them end the run; 0: never.

    Part of a checkpoint, so that a resumed run counts on. All ranks see the same losses and come to one answer.
    """

    limit: int
    best: float | None = None
    best_step: int = 0
    stale: int = 0

    def see(self, loss: float, step: int) -> bool:
        """Take in an evaluation; whether it is the best so far. One that is not finite is no improvement."""
        if math.isfinite(loss) and (self.best is None or loss < self.best):
            self.best, self.best_step, self.stale = loss, step, 0
            return True
        self.stale += 1
        return False

    @property
    def is_over(self) -> bool:
        return 0 < self.limit <= self.stale

    def state_dict(self) -> dict:
        return {k: v for k, v in asdict(self).items() if k != "limit"}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.best_step, self.stale = state["best"], state["best_step"], state["stale"]
