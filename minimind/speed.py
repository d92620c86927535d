"""How fast, and how much of what the machine could do: tokens per second, MFU, memory, waiting for data.

*MFU* (model FLOPs utilization; PaLM, arXiv:2204.02311) is ``tokens_per_s * F / peak``. F counts the arithmetic that a
token needs, forward and backward: ``6 N + 6 L h c`` with N active parameters, L layers, h channels of all query heads
and c the mean length of a piece, the run of a document's tokens in which attention looks around
(``ModelConfig.flops_per_token``). *peak* is no data sheet's number: it is what large products of matrices reach on
this very machine in the run's arithmetic, timed for a moment before step 1, times the number of ranks. On a machine
that does other things too it is as rough as they are.
"""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MATMUL_S = 0.1  # of timed products
MATMUL_SIZE = {"cpu": 768, "cuda": 8192}


@functools.cache
def matmul_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOPs per second of square products of matrices, the best of some. ``threads``: what CPUs are set to use."""
    size = MATMUL_SIZE.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # no global random state is touched
    a = torch.randn(size, size, device=device, generator=generator).to(dtype)
    times: list[float] = []
    while len(times) < 3 or sum(times) < MATMUL_S:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def memory_peak_bytes(device: torch.device) -> int:
    """Most memory so far: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Meter:
    """Tokens and seconds of training since the last ``metrics``. Saves, evaluations and samples do not count."""

    def __init__(self, flops_per_token: float, peak_flops: float, device: torch.device):
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops  # per second, of all ranks
        self.device = device
        self._start_over()
        self.skip()

    def _start_over(self) -> None:
        self._tokens = 0
        self._seconds = self._reading_s = 0.0

    def skip(self) -> None:
        """What happened since the last step was no training."""
        self._mark = time.perf_counter()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The host reads and packs a batch. (A GPU computes meanwhile; it waits only where this takes longer.)"""
        start = time.perf_counter()
        yield
        self._reading_s += time.perf_counter() - start

    def add(self, tokens: int) -> None:
        """A step is done."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now
        self._tokens += tokens

    def metrics(self) -> dict[str, float | int]:
        """The numbers since the last call."""
        seconds = max(self._seconds, 1e-9)
        speed = self._tokens / seconds
        found = {"tokens_per_s": round(speed, 1), "mfu": round(speed * self.flops_per_token / self.peak_flops, 4),
                 "data_wait_share": round(min(1.0, self._reading_s / seconds), 4),
                 "memory_peak_bytes": memory_peak_bytes(self.device)}
        self._start_over()
        return found
