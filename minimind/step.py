"""One optimizer step: from the rows of a window to new weights, without the host waiting for a GPU.

What a window minimises, the same for every number of ranks and micro-steps (B micro-batches of all ranks)::

    summed loss of the objective / size of the window  +  sum over B of balance_b * tokens_b / tokens of the window

The size is that of the objective's unit: tokens that are learnt, or pairs of answers (``minimind.objectives``).

A host that read the loss after every step would leave a GPU idle each time, so nothing here reads a number: what
the host wants to know starts its way in ``Numbers``, and a step whose loss or gradient is not finite is held back
on the device (``Optimizer.step``). Clipping is a product with a number on the device too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minimind.attention import Segments
from minimind.data.packing import IGNORE, Rows
from minimind.data.sampler import Window, micro_batches
from minimind.device import to_device
from minimind.distributed import World
from minimind.model import Head, Losses, MiniMindForCausalLM
from minimind.objectives import Batch, NextToken, Objective
from minimind.optim import Optimizer


class Numbers:
    """A vector on its way from the device to the host; ``read`` waits for it to arrive."""

    def __init__(self, vector: Tensor):
        self._host, self._arrived = vector, None
        if vector.device.type == "cuda":
            self._host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
            self._host.copy_(vector, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()


@dataclass(frozen=True)
class Outcome:
    """What a window came to, equal on all ranks. The loss is per unit of the objective (nats per learnt token, where
    it is cross entropy; ``balance_loss``: as weighted), ``metrics`` are the objective's, per unit too.

    ``expert_load_max``: the largest share of a layer's tokens that one expert got, times the number of experts; 1 is
    perfect balance. ``None`` for models without experts.
    """

    loss: float
    grad_norm: float
    balance_loss: float | None = None
    expert_load_max: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Stepper:
    """Makes the steps of one rank. ``parallel`` is the model, wrapped for several ranks by ``wrap``."""

    def __init__(self, model: MiniMindForCausalLM, optimizer: Optimizer, world: World, rows: Rows, *,
                 dtype: torch.dtype, attention: str, batch_size: int, grad_clip: float,
                 objective: Objective | None = None):
        self.model = model
        self.parallel: nn.Module = model
        self.optimizer = optimizer
        self.world = world
        self.rows = rows
        self.objective: Objective = objective or NextToken()
        self.dtype = dtype
        self.attention = attention
        self.batch_size = batch_size
        self.grad_clip = grad_clip or math.inf
        self.scaler = self.new_scaler()
        self.reading: Callable[[], AbstractContextManager] = nullcontext  # round every read of a batch

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """float16 alone needs its loss scaled: small gradients would be 0 in it (Micikevicius et al., 2018)."""
        if self.dtype != torch.float16:
            return None
        return torch.amp.GradScaler(self.world.device.type, init_scale=2.0**14)

    def wrap(self) -> None:
        if self.world.is_parallel:
            self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """The model as it is used: without dropout."""
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()

    def take(self, window: Window, learning_rate: float, ask: Callable[[], list[float]]) -> tuple[Numbers, list[float]]:
        """Change the weights by one step. ``(numbers for ``outcome``, sums over all ranks of what ``ask`` says at the
        end of the window)``; the latter are known at once."""
        totals = self.accumulate(window)
        norm = self._clip()
        vector, agreed = self.world.agree(torch.cat([norm.double().view(1), totals]), ask())
        found_inf = (~torch.isfinite(vector[:2]).all()).float()  # of the gradient's norm and the loss
        self.optimizer.step(learning_rate, found_inf)
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad()
        return Numbers(vector), agreed

    def outcome(self, numbers: Numbers, window: Window) -> Outcome:
        """Waits until the step is computed."""
        norm, total, *rest = numbers.read()
        names, size = self.objective.metrics, self._size(window)
        loss, grad_norm = total / size, norm / self.world.size
        metrics = {name: value / size for name, value in zip(names, rest)}
        if len(rest) == len(names):
            return Outcome(loss, grad_norm, metrics=metrics)
        balance, *load = rest[len(names):]
        shares = np.array(load).reshape(self.model.config.num_hidden_layers, -1)  # [L, E] tokens
        shares /= np.maximum(1.0, shares.sum(axis=1, keepdims=True))
        return Outcome(loss, grad_norm, balance, float(shares.max()) * shares.shape[1], metrics)

    def accumulate(self, window: Window) -> Tensor:
        """Add up the gradients of a window. Sums of this rank, float64 on the device: the loss, the objective's
        metrics, and with experts the balance loss and [L * E] tokens of each expert."""
        batches = micro_batches(window.rows, self.batch_size, self.world.rank, self.world.size)
        size, tokens = self.world.size, int(self.rows.tokens[window.rows].sum())
        scale = size / self._size(window)  # DDP averages over ranks; we want the sum
        totals = torch.zeros(1, dtype=torch.float64, device=self.world.device)
        for number, rows in enumerate(batches):
            syncs = number == len(batches) - 1 or self.parallel is self.model
            with nullcontext() if syncs else self.parallel.no_sync():  # type: ignore[operator]
                total, balance, load, counted = self.losses(self.parallel, self.batch(rows))
                loss, sums = total * scale, [total.detach().double().view(1), counted.double()]
                if balance is not None:
                    weight = int(self.rows.tokens[rows].sum()) / tokens
                    loss = loss + balance * (weight * size)
                    sums += [(balance.detach().double() * weight).view(1), load.double().flatten() * bool(weight)]
                (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
            totals = totals + torch.cat(sums)
        return totals

    def _clip(self) -> Tensor:
        """Bring the gradient's norm to ``grad_clip`` at most; the norm before, on the device."""
        if self.scaler is not None:
            for part in self.optimizer.parts.values():
                self.scaler.unscale_(part)
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)

    def _size(self, window: Window) -> int:
        return max(1, self.objective.size(self.rows, window.rows))

    def batch(self, numbers: np.ndarray, rows: Rows | None = None) -> Batch:
        """``rows`` (default: those to learn from) as one stream. No numbers: two tokens that teach nothing (for a
        single one torch.compile would make graphs of their own)."""
        rows = self.rows if rows is None else rows
        with self.reading():
            if len(numbers):
                tokens, targets, lengths = rows.read(numbers)
            else:
                tokens, targets, lengths = np.zeros(2, np.int64), np.full(2, IGNORE, np.int64), [2]
            ids, labels = (to_device(torch.from_numpy(x)[None], self.world.device) for x in (tokens, targets))
            extra = {name: to_device(torch.from_numpy(x), self.world.device)
                     for name, x in self.objective.extra(rows, numbers).items()}
        return Batch(ids, labels, Segments(tuple(lengths), self.attention), extra)

    def losses(self, model: nn.Module, batch: Batch) -> Losses:
        """What the model and the objective say of a batch."""
        return self.run(model, batch, lambda hidden, output_weight: self.objective(hidden, output_weight, batch))

    def run(self, model: nn.Module, batch: Batch, head: Head) -> Losses:
        """The model over a batch in the run's arithmetic, with ``head`` on top."""
        with torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return model(batch.ids, segments=batch.segments, head=head)
