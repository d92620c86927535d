"""How fast do checkpoints answer, beside what one would use instead?

    ./studio bench serve [--only speed first server training gpu] [--batch 1 8 32] [--rounds 7] [--quick] [--out FILE]

speed     one thread, CPU seconds, all engines in turn in one process with the same random weights of the 26M family:
          Hugging Face's generate, this project's engine (float32 and int8 weights, compiled and not), and llama.cpp
          (its whole process is counted). Prompts of 64 tokens, 64 new ones, greedy; medians of the paired ratios.
          Beside them the share of the bound that reading all weights once a token sets, measured in the same run.
first     time to first token of a prompt of 256 tokens against its arithmetic, 2 N tokens over the rate of float32
          products in the same run, and of the next turn of that conversation.
server    a whole studio and 1, 8 and 100 clients that stream from /v1 at the same moment, by the clock: time to first
          token, gaps between tokens, and whether anybody starves (the longest gap in medians, at most 10).
training  tokens a second of a training on all cores of that studio, without and with 4 chats that are answered all
          the time; it may lose no more than STUDIO_INFERENCE_SHARE.
gpu       speed on a GPU with bfloat16 weights, by the clock; left out where there is none.

transformers and xllamacpp are no part of the studio (pip install -r requirements-dev.txt); what is missing is left
out and said.
Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks._serve_engines import Contestant, HuggingFace, LlamaCpp, Ours, missing_for  # noqa: E402
from benchmarks._serve_material import MODELS, Material, make_material  # noqa: E402
from benchmarks._serve_race import (  # noqa: E402
    FIRST_TURN,
    NEXT_TURN,
    Speed,
    as_json,
    bandwidth,
    first_tokens,
    race,
    spread,
)
from benchmarks._serve_studio import Crowd, as_row, beside_training, crowd, merged, serve  # noqa: E402
from benchmarks._studio import Studio  # noqa: E402
from worker.engines import EngineOptions  # noqa: E402

PARTS = ("speed", "first", "server", "training", "gpu")
AGAINST = ("hf", "fp32", "fp32-compiled", "int8", "int8-compiled", "llama-f32", "llama-q8_0")
#: (batch, weights) -> times Hugging Face's tokens a second
SPEED_GOALS = {(1, "fp32"): 2.4, (1, "int8"): 3.3, (8, "fp32"): 1.2, (8, "int8"): 2.5}
FIRST_GOAL = 1.4  # times the arithmetic
NEXT_GOAL = 0.25  # of the first turn's
STARVED_GOAL = 10  # the longest gap of any client in median gaps
Make = Callable[[int], Contestant]


class Bench:
    def __init__(self, args: argparse.Namespace, material: Material):
        self.args, self.material = args, material
        self.found: dict[str, Any] = {}
        self.missed: list[str] = []

    def goal(self, what: str, reached: bool) -> None:
        print(f"  {'reached' if reached else 'MISSED'}: {what}", flush=True)
        if not reached:
            self.missed.append(what)

    # -- engines ----------------------------------------------------------------------------------------------

    def makers(self, names: list[str]) -> dict[str, Make]:
        """Name -> who takes ``batch`` prompts at once; what this machine lacks something for is said and left out."""
        clock = time.process_time
        known: dict[str, Make] = {"hf": lambda _: HuggingFace(self.material, clock)}
        for weights in ("fp32", "int8"):
            for compiled in (False, True):
                known[weights + "-compiled" * compiled] = \
                    lambda _, w=weights, c=compiled: Ours(self.material, clock, w, c)  # type: ignore[misc]
        for kind in ("f32", "q8_0"):
            known[f"llama-{kind}"] = lambda batch, k=kind: LlamaCpp(self.material, k, batch)  # type: ignore[misc]
        return self.available({name: known[name] for name in names})

    def available(self, known: dict[str, Make]) -> dict[str, Make]:
        reasons = {name: reason for name in known if (reason := missing_for(name))}
        for reason in reasons.values():
            print(f"  {reason}")
        return {name: make for name, make in known.items() if name not in reasons}

    def speed(self) -> None:
        makers = self.makers(list(self.args.against))
        for batch in self.args.batch:
            speeds = self.race(makers, batch)
            by_name = dict(zip(makers, speeds))
            bounds = {s.weight_bytes: bandwidth(s.weight_bytes) / s.weight_bytes for s in speeds} if batch == 1 else {}
            self.report_speed("speed", batch, speeds, bounds)
            if "hf" not in by_name:
                continue
            for weights in ("fp32", "int8"):
                ours = [s for name, s in by_name.items() if name.partition("-")[0] == weights]
                if weights == "fp32" and ours:
                    equal = min(min(s.same) for s in ours) == 1
                    self.goal(f"batch {batch}: float32 answers are Hugging Face's, token for token", equal)
                wanted = SPEED_GOALS.get((batch, weights))
                if wanted is not None and ours:
                    best = max(statistics.median(s.ratios(by_name["hf"])) for s in ours)
                    self.goal(f"batch {batch}, {weights}: {best:.2f} times Hugging Face (at least {wanted})",
                              best >= wanted)

    def race(self, makers: dict[str, Make], batch: int) -> list[Speed]:
        engines: list[Contestant] = []
        try:
            for make in makers.values():
                engines.append(make(batch))
            return race(engines, self.material, batch, self.args.rounds, self.args.prompt, self.args.tokens)
        finally:
            for engine in engines:
                engine.close()

    def report_speed(self, part: str, batch: int, speeds: list[Speed], bounds: dict[float, float]) -> None:
        """``bounds``: bytes of a model's weights -> tokens a second that reading them allows."""
        print(f"  batch {batch}: prompts of {self.args.prompt} tokens, {self.args.tokens} new ones, "
              f"{self.args.rounds} rounds")
        print(f"  {'':34}{'tokens/s':>10}{'ratio':>7}{'lowest':>8}{'highest':>8}{'decoding':>10}{'of bound':>10}"
              f"{'same text':>11}")
        for speed in speeds:
            ratios, decode = speed.ratios(speeds[0]), statistics.median(speed.decode)
            share = f"{decode / bounds[speed.weight_bytes]:10.0%}" if speed.weight_bytes in bounds else f"{'':10}"
            print(f"  {speed.name:34}{statistics.median(speed.whole):10,.0f}{statistics.median(ratios):7.2f}"
                  f"{ratios[0]:8.2f}{ratios[-1]:8.2f}{decode:10,.0f}{share}{statistics.mean(speed.same):11.0%}",
                  flush=True)
        for num_bytes, bound in sorted(bounds.items()):
            print(f"  reading {num_bytes / 1e6:.0f} MB a token: {bound * num_bytes / 1e9:.1f} GB/s, at most "
                  f"{bound:.0f} tokens/s")
        self.found.setdefault(part, {})[batch] = {"engines": as_json(speeds), "bounds": bounds}

    def first(self) -> None:
        makers = self.makers(list(self.args.against))
        engines = [make(1) for make in makers.values()]
        try:
            firsts, rate = first_tokens(engines, self.material, self.args.rounds, self.args.tokens)
        finally:
            for engine in engines:
                engine.close()
        bound = 2 * self.material.num_weights * FIRST_TURN / rate
        print(f"  first token behind {FIRST_TURN} tokens: 2 N tokens at {rate / 1e9:.0f} GFLOP/s are "
              f"{1000 * bound:.0f} ms")
        for first in firsts:
            fresh = [1000 * s for s in first.fresh]
            line = f"  {first.name:34}{spread(fresh, 0)} ms, {statistics.median(fresh) / 1000 / bound:.2f} of that"
            if first.next_turn:
                again = [1000 * s for s in first.next_turn]
                line += f"; next turn of {NEXT_TURN} tokens {spread(again, 0)} ms"
            print(line, flush=True)
        self.found["first"] = {"bound_s": bound, "engines": [vars(first) for first in firsts]}
        for first in firsts:
            if not first.next_turn:
                continue
            fresh_s, next_s = statistics.median(first.fresh), statistics.median(first.next_turn)
            self.goal(f"{first.name}: first token after {fresh_s / bound:.2f} of the arithmetic (at most {FIRST_GOAL})",
                      fresh_s <= FIRST_GOAL * bound)
            self.goal(f"{first.name}: next turn in {next_s / fresh_s:.2f} of the first (at most {NEXT_GOAL})",
                      next_s <= NEXT_GOAL * fresh_s)

    # -- a whole studio ---------------------------------------------------------------------------------------

    def server(self) -> None:
        with self.studio() as studio:
            client = serve(studio, self.material)
            sizes: dict[int, list[Crowd]] = {clients: [] for clients in self.args.clients}
            for number in range(self.args.rounds):
                for at, clients in enumerate(sizes):
                    sizes[clients].append(crowd(studio, client, self.material, clients, self.args.prompt,
                                                self.args.tokens, number * len(sizes) + at + 1))
        print(f"  prompts of {self.args.prompt} tokens, {self.args.tokens} new ones, {self.args.rounds} rounds; ms\n"
              f"  {'clients':>7}{'tokens/s':>10}{'ratio':>7}{'first p50':>10}{'p95':>8}{'gap p50':>10}{'p95':>8}"
              f"{'longest':>9}{'/ median':>10}{'inference':>11}{'web':>7}")
        alone, found = merged(next(iter(sizes.values()))), {}
        for clients, rounds in sizes.items():
            one, starved = merged(rounds), statistics.median(r.starved for r in rounds)
            print(as_row(one, alone, starved), flush=True)
            found[clients] = {"rounds": [vars(r) for r in rounds]}
            self.goal(f"{clients} clients: all {one.whole} of {clients * len(rounds)} answers whole",
                      one.whole == clients * len(rounds))
            self.goal(f"{clients} clients: the longest gap is {starved:.1f} medians (under {STARVED_GOAL})",
                      starved < STARVED_GOAL)
        self.found["server"] = found

    def training(self) -> None:
        share = EngineOptions.from_environment(Path("/")).share
        with self.studio(threads=None, STUDIO_INFERENCE_SHARE=f"{share:g}") as studio:
            client = serve(studio, self.material)
            found = beside_training(studio, client, self.material, self.args.chats, self.args.rounds,
                                    self.args.seconds)
        slower = found.slower
        print(f"  training without and with {self.args.chats} chats, tokens/s in turn: "
              + ", ".join(f"{a:,.0f} {b:,.0f}" for a, b in zip(found.without, found.beside))
              + f"; the chats made {spread(found.chats, 0)} tokens/s")
        middle = statistics.median(slower)
        self.found["training"] = {**vars(found), "share": share}
        self.goal(f"the training is slower by {middle:.1%} ({slower[0]:.1%} to {slower[-1]:.1%}), {middle / share:.2f} "
                  f"of the share of {share:.0%}", middle <= share)

    @contextlib.contextmanager
    def studio(self, **options: Any) -> Iterator[Studio]:
        with tempfile.TemporaryDirectory(prefix="serve-studio-") as directory:
            studio = Studio(Path(directory), STUDIO_API_CONCURRENCY="0", **options)
            try:
                studio.start()
                yield studio
            finally:
                studio.close()

    def gpu(self) -> None:
        if not torch.cuda.is_available():
            print("  gpu is left out: PyTorch sees no CUDA device on this machine.")
            return

        def clock() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        print(f"  {torch.cuda.get_device_name()}, bfloat16, by the clock")
        makers = self.available({
            "hf": lambda _: HuggingFace(self.material, clock, "cuda", "bfloat16"),
            "bf16": lambda _: Ours(self.material, clock, "bf16", False, "cuda"),
            "bf16-compiled": lambda _: Ours(self.material, clock, "bf16", True, "cuda")})
        for batch in self.args.batch:
            speeds = self.race(makers, batch)
            num_bytes = speeds[0].weight_bytes
            bounds = {num_bytes: bandwidth(num_bytes, "cuda", clock) / num_bytes} if batch == 1 else {}
            self.report_speed("gpu", batch, speeds, bounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--against", nargs="+", choices=AGAINST, default=AGAINST, help="the first one is ratio 1")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new ones")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", choices=sorted(MODELS), default="26M")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 100], help="the first is ratio 1")
    parser.add_argument("--chats", type=int, default=4, help="beside a training")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part beside a training")
    parser.add_argument("--quick", action="store_true",
                        help="two rounds, batches and crowds of 1 and 8, short parts: a look, no measurement")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.batch, args.clients, args.seconds = 2, [1, 8], [1, 8], 4.0
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="serve-") as place:
        material = make_material(Path(place) / "model", args.model)
        print(f"{args.model}: {material.num_weights:,} random weights; torch {torch.__version__}, one thread")
        bench = Bench(args, material)
        for part in args.only:
            print(f"{part}", flush=True)
            getattr(bench, part)()
    if args.out is not None:
        args.out.write_text(json.dumps(bench.found | {"missed": bench.missed}, indent=1) + "\n")
    return 1 if bench.missed else 0


if __name__ == "__main__":
    sys.exit(main())
