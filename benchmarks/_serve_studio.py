"""A whole studio with clients of ``/v1``: how long they wait for tokens, and what a training beside them loses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks._serve_crowd import Client, Heard
from benchmarks._serve_material import Material
from benchmarks._studio import SMALL, Studio, add_checkpoint
from benchmarks.viewers import events_of, percentile, speed

MODEL = "ckptbench"
#: what is trained beside the answers: steps of some tenths of a second
TRAINED = {**SMALL, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
           "intermediate_size": 704, "max_seq_len": 128, "batch_size": 4, "max_steps": 100_000,
           "save_interval": 100_000, "seed": 1, "use_compile": False}
#: until all of a part's clients are answered, and the last event of a part is stored
SETTLE_S = 3.0


def serve(studio: Studio, material: Material) -> Client:
    """A client of a studio that has ``material`` in its memory."""
    add_checkpoint(studio.database_url, material.checkpoint, MODEL)
    client = Client(studio.url, studio.token)
    for number in range(3):
        heard = asyncio.run(client.ask(question(material, number, 64, 16)))
        if not heard.is_done:
            raise SystemExit(f"The studio does not answer: {heard.error}")
    return client


def question(material: Material, number: int, prompt: int, tokens: int) -> dict[str, Any]:
    return {"model": MODEL, "prompt": material.prompt(prompt, number), "temperature": 0, "max_tokens": tokens,
            "ignore_eos": True}


# -- a crowd ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """Seconds, of ``clients`` that ask at the same moment. ``cpu``: of the processes, while they were answered."""

    clients: int
    whole: int  #: answers that came to their end
    tokens_per_s: float
    first: list[float]
    gaps: list[float]
    cpu: dict[str, float]

    @property
    def starved(self) -> float:
        """The longest pause of anybody, in usual ones."""
        return max(self.gaps) / statistics.median(self.gaps)


def crowd(studio: Studio, client: Client, material: Material, clients: int, prompt: int, tokens: int,
          number: int) -> Crowd:
    """``number``: of this crowd, whose prompts are no other's."""
    bodies = [question(material, 1000 * number + n, prompt, tokens) for n in range(clients)]
    processes = {name: studio.role(name)[0] for name in ("web", "inference", "broker") if studio.role(name)}
    before, began = {name: _cpu(p) for name, p in processes.items()}, time.monotonic()
    heard = asyncio.run(client.crowd(bodies))
    seconds = time.monotonic() - began
    return Crowd(clients, sum(one.is_done and one.finish_reason == "length" for one in heard),
                 sum(len(one.times) for one in heard) / seconds, [one.first_s for one in heard if one.times],
                 [gap for one in heard for gap in one.gaps],
                 {name: (_cpu(p) - before[name]) / seconds for name, p in processes.items()})


def merged(rounds: list[Crowd]) -> Crowd:
    """Rounds of one size as one."""
    return Crowd(rounds[0].clients, sum(r.whole for r in rounds), statistics.median(r.tokens_per_s for r in rounds),
                 [s for r in rounds for s in r.first], [s for r in rounds for s in r.gaps],
                 {name: statistics.median(r.cpu[name] for r in rounds) for name in rounds[0].cpu})


def as_row(found: Crowd, alone: Crowd, starved: float) -> str:
    """One line of the table; ``starved``: the median of the rounds."""
    first, gaps = ([1000 * s for s in part] for part in (found.first, found.gaps))
    return (f"  {found.clients:7}{found.tokens_per_s:10,.0f}{found.tokens_per_s / alone.tokens_per_s:7.2f}"
            f"{percentile(first, 50):10,.0f}{percentile(first, 95):8,.0f}"
            f"{percentile(gaps, 50):10,.1f}{percentile(gaps, 95):8,.1f}{max(gaps):9,.1f}{starved:10.1f}"
            f"{found.cpu['inference']:11.0%}{found.cpu['web']:7.0%}")


# -- beside a training --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """Tokens a second of the training without and with chats, and of the chats, round by round."""

    without: list[float]
    beside: list[float]
    chats: list[float]

    @property
    def slower(self) -> list[float]:
        """By how much the training was slower beside chats, as shares of its speed in the same round."""
        return sorted(1 - b / a for a, b in zip(self.without, self.beside))


def beside_training(studio: Studio, client: Client, material: Material, chats: int, rounds: int,
                    seconds: float) -> Beside:
    """A training on all cores; in every second part ``chats`` of them are answered all the time."""
    words = studio.material(rows=3000)
    run_id = studio.client.post("/runs", {
        "stage": "pretrain", "dataset_id": words["dataset_id"],
        "devices": {"kind": "cpu", "count": len(os.sched_getaffinity(0))},
        "config": {**TRAINED, "tokenizer": words["tokenizer"]}})["id"]
    studio.client.wait(f"/runs/{run_id}", lambda r: (r["progress"]["step"] or 0) > 10, timeout_s=180)
    parts: list[dict[str, Any]] = []
    for number in range(rounds):
        for busy in (False, True):
            part = asyncio.run(_part(client, material, chats if busy else 0, seconds, number))
            parts.append(part)
            time.sleep(SETTLE_S)
    events = events_of(studio, run_id)
    studio.client.post(f"/runs/{run_id}/cancel")
    speeds = [speed(events, part) for part in parts]
    return Beside(speeds[::2], speeds[1::2], [part["tokens"] / seconds for part in parts[1::2]])


async def _part(client: Client, material: Material, chats: int, seconds: float, number: int) -> dict[str, Any]:
    """``began`` and ``ended`` by the wall clock, as events have it, and the tokens that were heard between."""
    heard: list[Heard] = []

    async def talk(place: int) -> None:
        for turn in range(1000):
            heard.append(Heard())
            asked = question(material, 100_000 * (number + 1) + 1000 * place + turn, 64, 512)
            await client.ask(asked, heard=heard[-1])

    talks = [asyncio.create_task(talk(place)) for place in range(chats)]
    while sum(bool(one.times) for one in heard) < chats:
        await asyncio.sleep(0.05)
        for task in talks:
            if task.done():
                raise SystemExit(f"A chat ended: {task.exception()}")
    await asyncio.sleep(1.0)
    began, from_s = time.time(), time.monotonic()
    await asyncio.sleep(seconds)
    ended, to_s = time.time(), time.monotonic()
    for task in talks:
        task.cancel()
    for task in talks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    tokens = sum(from_s <= at < to_s for one in heard for at in one.times)
    return {"began": began, "ended": ended, "tokens": tokens}


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])
