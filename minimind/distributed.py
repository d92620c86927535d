"""One process or many: who we are, how ranks agree, and how they wait for each other.

Before the process group exists, rank 0 prepares (tokenizing can take an hour, longer than any collective may
block) and the others wait at the rendezvous store for its word. Afterwards every decision that changes the flow is
made from numbers that all ranks have summed: ranks agree before they branch.
"""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

POLL_S = 0.1
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
#: a collective that blocks longer means a dead or hung rank
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


class World:
    """All ranks of this training, seen from one of them."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1,
                 store: dist.Store | None = None):
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.local_size = local_size
        self.device = torch.device("cpu")
        self._store = store
        self._host_group: dist.ProcessGroup | None = None  # beside NCCL, for numbers that the host needs at once

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun's variables say; one rank without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        store, rank, size = next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        return cls(rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", size)),
                   dist.PrefixStore("minimind", store))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_parallel(self) -> bool:
        return self.size > 1

    def tell(self, key: str, value: dict) -> None:
        """Rank 0 to all others, before or after the process group exists."""
        if self._store is not None:
            self._store.set(key, json.dumps(value))

    def hear(self, key: str) -> dict:
        """What rank 0 told; waits for as long as it takes (torchrun ends us if rank 0 dies)."""
        assert self._store is not None
        while not self._store.check([key]):
            time.sleep(POLL_S)
        return json.loads(self._store.get(key))

    def heard(self, key: str) -> dict | None:
        """As ``hear``, but ``None`` where nothing was told yet or nobody can be asked any more."""
        try:
            if self._store is None or not self._store.check([key]):
                return None
            return json.loads(self._store.get(key))
        except (dist.DistError, RuntimeError, ValueError):
            return None

    def connect(self, device: torch.device) -> None:
        """Make the process group: NCCL on GPUs, gloo on CPUs."""
        self.device = device
        if not self.is_parallel:
            return
        assert self._store is not None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.PrefixStore("pg", self._store),
                                rank=self.rank, world_size=self.size, timeout=COLLECTIVE_TIMEOUT)
        if device.type == "cuda":
            self._host_group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)

    def sum(self, values: list[Any]) -> list[float]:
        """Element-wise sums over all ranks, in float64; ``values`` may hold scalar tensors."""
        vector = torch.stack([v.double().to(self.device) if isinstance(v, Tensor) else
                              torch.tensor(float(v), dtype=torch.float64, device=self.device) for v in values])
        if self.is_parallel:
            dist.all_reduce(vector)
        return vector.tolist()

    def agree(self, numbers: Tensor, host: list[float]) -> tuple[Tensor, list[float]]:
        """Element-wise sums over all ranks: of ``numbers`` [n], float64, which stay on the device, and of ``host``,
        which the host knows at once.

        Nobody waits for a GPU: NCCL's sum is only begun, and what the host wants to know goes through a group of its
        own. CPUs do both in one go.
        """
        if not self.is_parallel:
            return numbers, host
        if self._host_group is not None:
            asked = torch.tensor(host, dtype=torch.float64)
            dist.all_reduce(asked, group=self._host_group)
            dist.all_reduce(numbers)
            return numbers, asked.tolist()
        vector = torch.cat([numbers, torch.tensor(host, dtype=torch.float64)])
        dist.all_reduce(vector)
        return vector[:len(numbers)], vector[len(numbers):].tolist()

    def all_true(self, flag: bool) -> bool:
        return self.sum([0.0 if flag else 1.0])[0] == 0.0 if self.is_parallel else flag

    def from_main(self, value: Any) -> Any:
        """Rank 0's value (anything that JSON can say) on every rank."""
        if not self.is_parallel:
            return value
        box = [json.dumps(value) if self.is_main else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return json.loads(str(box[0]))

    def barrier(self) -> None:
        self.sum([0.0])

    def close(self) -> None:
        if self.is_parallel and dist.is_initialized():
            dist.destroy_process_group()


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_rank(world: World, *, external: bool) -> int:
    """Threads of one rank: the machine's cores shared among its ranks.

    ``OMP_NUM_THREADS`` wins, except under a plain torchrun, which sets it to 1 without being asked.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0 and (external or not world.is_parallel):
        return int(given)
    return max(1, available_cores() // world.local_size)
