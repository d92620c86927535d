"""The runs of a soak: tiny, real, some of them paused, resumed, cancelled; each with an uninterrupted reference."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks._studio import SMALL, Studio
from worker.client import TERMINAL, ApiError

SAVE_INTERVAL = 25
CONFIG = {**SMALL, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
          "max_seq_len": 64, "batch_size": 4, "save_interval": SAVE_INTERVAL}
#: name -> (ranks, options)
SHAPES = {"one rank": (1, {"max_steps": 900, "seed": 11}),
          "two ranks": (2, {"max_steps": 500, "seed": 12}),
          "accumulating": (1, {"max_steps": 450, "accumulation_steps": 2, "eval_interval": 60, "seed": 13})}
#: runs that are posted and not ended, at most: some wait while others train
FLEET = 4


@dataclass(frozen=True)
class Order:
    """A run to post, and what is wished of it on the way: ``(share of its steps, wish, seconds it rests)``."""

    number: int
    shape: str
    wishes: tuple[tuple[float, str, float], ...]


def orders(seed: int) -> Iterator[Order]:
    """The orders of a seed, without end: always the same ones."""
    rng = random.Random(f"{seed}/orders")
    number = 0
    while True:
        number += 1
        shape = rng.choice(list(SHAPES))
        story, rest = rng.random(), rng.uniform(0.0, 3.0)
        at = sorted(rng.uniform(0.05, 0.95) for _ in range(2))
        wishes = {0: (), 1: ((at[0], "pause", rest),), 2: ((at[0], "pause", rest), (at[1], "pause", rest / 2)),
                  3: ((at[0], "cancel", 0.0),), 4: ((at[0], "pause", rest), (at[1], "cancel", 0.0))}
        yield Order(number, shape, wishes[0 if story < 0.5 else 1 if story < 0.7 else 2 if story < 0.8
                                          else 3 if story < 0.95 else 4])


@dataclass
class Member:
    """One posted run as the fleet last saw it."""

    id: str
    order: Order
    state: str = "queued"
    step: int = 0
    next_wish: int = 0
    wished: str = ""  # the wish that is on its way
    rests_until: float | None = None
    cancel_asked: bool = False


class Fleet(threading.Thread):
    """Posts orders and makes wishes through the API, which may be away at any time: every request is repeated with
    its ``Idempotency-Key`` until it is answered."""

    def __init__(self, studio: Studio, seed: int, material: dict[str, str]):
        super().__init__(name="fleet", daemon=True)
        self.studio = studio
        self.material = material
        self.members: dict[str, Member] = {}
        self.refused: list[str] = []  # answers that should not have come
        self.closing = threading.Event()  # nothing new; what is paused goes on
        self.ended = threading.Event()
        self._orders = orders(seed)
        self._pending: Order | None = None
        self._salt = f"soak-{seed}-{time.time_ns()}"
        self._client = studio.new_client()

    # -- references -----------------------------------------------------------------------------------------------

    def references(self) -> dict[str, str]:
        """SHA-256 of the final weights of each shape, trained without any interruption."""
        ids = {shape: self._post(shape, f"{self._salt}-reference-{shape}") for shape in SHAPES}
        found = {}
        for shape, id in ids.items():
            self._client.wait_run(id, ("completed",), timeout_s=300)
            found[shape] = weights_of(self.studio.data_dir / "runs" / id, SHAPES[shape][1]["max_steps"])
        return found

    def _post(self, shape: str, key: str) -> str:
        ranks, options = SHAPES[shape]
        body = {"stage": "pretrain", "dataset_id": self.material["dataset_id"], "name": shape,
                "config": {**CONFIG, **options, "tokenizer": self.material["tokenizer"]},
                "devices": {"kind": "cpu", "count": ranks}}
        return self._client.post("/runs", body, headers={"Idempotency-Key": key})["id"]

    # -- life -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self.ended.wait(0.4):
            for act in (self._order, *(lambda m=m: self._follow(m) for m in self.unfinished())):
                try:
                    act()
                except ApiError as error:
                    if error.status < 500:
                        self.refused.append(f"{error.status} {error}")
                except httpx2.HTTPError:
                    break  # web is away; the same requests come again
        self._client.close()

    def unfinished(self) -> list[Member]:
        return [m for m in self.members.values() if m.state not in TERMINAL]

    def _order(self) -> None:
        if self.closing.is_set() or len(self.unfinished()) >= FLEET:
            return
        self._pending = self._pending or next(self._orders)
        id = self._post(self._pending.shape, f"{self._salt}-{self._pending.number}")
        self.members[id] = Member(id, self._pending)
        self._pending = None

    def _follow(self, member: Member) -> None:
        run = self._client.get(f"/runs/{member.id}")
        member.state, member.step = run["state"], run["progress"].get("step") or 0
        if member.state in TERMINAL:
            return
        if member.wished == "pause":
            self._rest(member, run)
        elif member.next_wish < len(member.order.wishes):
            share, wish, _ = member.order.wishes[member.next_wish]
            due = run["state"] == "running" and member.step >= share * SHAPES[member.order.shape][1]["max_steps"]
            if due and not (wish == "pause" and self.closing.is_set()):
                self._wish(member, wish)

    def _wish(self, member: Member, wish: str) -> None:
        if wish == "cancel":
            member.cancel_asked = True  # before the request: its answer may be lost
        if self._ask(member, wish, {"save": member.order.number % 2 == 0} if wish == "cancel" else None):
            member.wished = wish
        member.next_wish += 1

    def _rest(self, member: Member, run: dict) -> None:
        """After a pause: wait until it is one, rest, go on. A pause that could not be saved is over by itself."""
        rest_s = member.order.wishes[member.next_wish - 1][2]
        if run["state"] == "paused":
            member.rests_until = member.rests_until or time.monotonic() + rest_s
            if (time.monotonic() >= member.rests_until or self.closing.is_set()) and self._ask(member, "resume"):
                member.wished, member.rests_until = "", None
        elif run["desired"] == "run":
            member.wished = ""

    def _ask(self, member: Member, wish: str, body: dict | None = None) -> bool:
        """False where the run has ended meanwhile, which a wish may find."""
        key = f"{self._salt}-{member.id}-{wish}-{member.next_wish}"
        try:
            self._client.post(f"/runs/{member.id}/{wish}", body or {}, headers={"Idempotency-Key": key})
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True


def weights_of(run_dir: Path, step: int) -> str | None:
    """SHA-256 of the final weights; None where there are none."""
    found = sorted((run_dir / "checkpoints").glob(f"step-{step:08d}-a*/model.safetensors"))
    return hashlib.sha256(found[-1].read_bytes()).hexdigest() if found else None
