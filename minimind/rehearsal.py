"""Throwaway steps before step 1: to settle, to compile, to measure. Weights, optimizer and random state stay as they
were, so that a run is the same whether its steps were measured or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from minimind.checkpoint import random_state, set_random_state
from minimind.data.sampler import Sampler, Window
from minimind.step import Stepper
from minimind.stopping import StopRequested, agreed, refuse_superseded

MEASURE_S, MEASURE_STEPS = 3.0, (3, 20)  # for --max_minutes
GLANCE_S, GLANCE_STEPS = 0.3, (1, 3)  # where only the order of magnitude counts
WARM_UP_STEPS = 2  # whose shapes the compiler sees


class Rehearsal:
    """``ask``: what this rank says to the others at the end of a window; a wish is granted at once here."""

    def __init__(self, stepper: Stepper, sampler: Sampler, ask: Callable[[], list[float]]):
        self.stepper = stepper
        self.sampler = sampler
        self.world = stepper.world
        self._ask = ask

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        """Neither gradients nor drawn random numbers are left."""
        rng = random_state(self.world.device)
        yield
        self.stepper.optimizer.zero_grad()
        set_random_state(rng, self.world.device)

    def settle(self) -> None:
        """Two backward passes: DDP regroups its gradient buckets after the first. Always, so that a fresh and a
        resumed process sum gradients in one order."""
        with self._leaving_no_trace():
            for _ in range(2):
                loss, balance, *_ = self.stepper.losses(self.stepper.parallel,
                                                        self.stepper.batch(np.zeros(0, dtype=np.int64)))
                (loss if balance is None else loss + balance).backward()

    def warm_up(self) -> float:
        """Pass over the first windows, in which torch.compile does its work. Seconds that it took."""
        start = time.perf_counter()
        with self._leaving_no_trace():
            for step in range(1, WARM_UP_STEPS + 1):
                self.grant(self.world.sum(self._ask()))
                self.stepper.accumulate(self._window(step))
        return time.perf_counter() - start

    def measure(self, seconds: float = MEASURE_S, steps: tuple[int, int] = MEASURE_STEPS) -> float:
        """Seconds of one step, the same on all ranks."""
        model, optimizer = self.stepper.model, self.stepper.optimizer
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        fewest, most = steps
        times: list[float] = []
        with self._leaving_no_trace():
            while len(times) <= fewest or (len(times) <= most and sum(times[1:]) < seconds):
                start = time.perf_counter()
                numbers, asked = self.stepper.take(self._window(1 + len(times)), 0.0, self._ask)
                numbers.read()
                self.grant(asked)
                times.append(self.world.sum([time.perf_counter() - start if self.world.is_main else 0.0])[0])
        model.load_state_dict(weights)
        optimizer.forget()
        self.stepper.scaler = self.stepper.new_scaler()
        return sum(times[1:]) / len(times[1:])  # the first one warms up

    def glance(self) -> float:
        """As ``measure``, in a moment."""
        return self.measure(GLANCE_S, GLANCE_STEPS)

    def _window(self, step: int) -> Window:
        return self.sampler.window(1 + (step - 1) % self.sampler.steps_per_epoch)

    def grant(self, asked: list[float]) -> None:
        """``asked``: sums over all ranks of what they say; raises ``StopRequested`` where one is to stop."""
        wish = agreed(*asked[:2])
        refuse_superseded(wish)
        if wish.command != "none":
            raise StopRequested(wish)
