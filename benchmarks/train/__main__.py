"""How fast does the core train, beside what one would use instead?

    ./studio bench train --data FILE [FILE ...] [--shape S M] [--rounds 7] [--against hf ours compiled trl trl_packing]
                         [--tokenizer DIR] [--minutes 1] [--cores]

One thread, CPU seconds, all contestants in turn in one process, medians of the rounds. Compared are *real* tokens a
second (padding is not counted), so the fill of padded rows stands beside every ratio. Utilisation is
``tokens/s * (6 N + 6 L h c) / rate of float32 products``, both measured in the same rounds. Before that the loss and
the gradients of the same documents are compared; after it (``--minutes``) what loss each one reaches in equal CPU time.
``--cores`` compares one process with two threads with two ranks of one, by the clock. trl is no part of the
studio: ``pip install -r requirements-dev.txt``. Without --data the starter corpus is used, which is not real text.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.train.contestants import Contestant, HuggingFace, Ours, Trl, contestants, matmul_rate  # noqa: E402
from benchmarks.train.cores import compare_cores  # noqa: E402
from benchmarks.train.documents import SHAPES, Documents, Shape, token_stream  # noqa: E402
from minimind.data import starter  # noqa: E402

AGAINST = ("hf", "ours", "compiled", "trl", "trl_packing")
WARM_UP_STEPS, STEPS = 2, 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="jsonl or txt files with real text")
    parser.add_argument("--tokenizer", type=Path, help="default: 6,400 entries learnt from the data")
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES, reverse=True))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", nargs="+", choices=AGAINST, default=AGAINST[:3], help="default: hf ours compiled")
    parser.add_argument("--minutes", type=float, default=0.0, help="CPU time for the loss that each one reaches")
    parser.add_argument("--cores", action="store_true", help="two threads against two ranks, instead of all that")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        paths = args.data or [starter.write("text", Path(place) / "starter.jsonl", minutes=30)]
        if not args.data:
            print("The starter corpus is made, not found: give --data for figures that mean something.")
        if args.cores:
            return compare_cores(paths[0], Path(place), args.rounds)
        stream, tokenizer = token_stream(paths, args.tokenizer)
        tokenizer.save(Path(place) / "tokenizer")
        print(f"{len(stream):,} tokens of text; torch {torch.__version__}, one thread\n")
        for name in args.shape:
            documents = Documents(stream, SHAPES[name], tokenizer)
            run_shape(SHAPES[name], documents, args, str(Path(place) / "tokenizer" / "tokenizer.json"))
    return 0


def run_shape(shape: Shape, documents: Documents, args: argparse.Namespace, tokenizer_file: str) -> None:
    model, median = shape.model, statistics.median(documents.lengths.tolist())
    flops = model.flops_per_token(documents.mean_length)
    print(f"{shape.name}: {model.num_parameters():,} parameters, {shape.batch_size} x {shape.seq_len}; documents of "
          f"{median:.0f} tokens (median), fill {documents.fill(shape.seq_len):.2f} when padded, "
          f"{flops / 1e6:.1f} MFLOP a token")
    compare_numbers(shape, documents)
    racers = list(contestants(list(args.against), shape, documents, tokenizer_file))
    for racer in racers:
        start = time.perf_counter()
        racer.train(WARM_UP_STEPS)
        if "compiled" in racer.name:
            print(f"  compiling took {time.perf_counter() - start:.0f} s by the clock (not in the figures below)")
    race(racers, flops, args.rounds)
    if args.minutes:
        race_to_loss(shape, documents, args, tokenizer_file)
    print()


def compare_numbers(shape: Shape, documents: Documents) -> None:
    """The same documents, packed here and padded there, with the same weights."""
    theirs = HuggingFace(shape, documents)
    ours = Ours(shape, documents, weights={k: v.clone() for k, v in theirs.model.state_dict().items()})
    batch = documents.reader().take(shape.batch_size)
    losses = theirs.gradients(batch), ours.gradients(batch)
    named = dict(ours.model.named_parameters())
    worst = max(((p.grad - named[name].grad).norm() / p.grad.norm()).item()
                for name, p in theirs.model.named_parameters())
    print(f"  same documents, same weights: loss {losses[1]:.6f}, differs by {abs(losses[0] - losses[1]):.1e}; "
          f"gradients by at most {worst:.1e} of their norm")


def race(racers: list[Contestant], flops: float, rounds: int) -> None:
    speeds: dict[str, list[float]] = {racer.name: [] for racer in racers}
    rates: list[float] = []
    for _ in range(rounds):
        rates.append(matmul_rate())
        for racer in racers:
            tokens, seconds = racer.train(STEPS)
            speeds[racer.name].append(tokens / seconds)
        rates.append(matmul_rate())
    rate = statistics.median(rates)
    print(f"  float32 products: {rate / 1e9:.0f} GFLOP/s")
    first = speeds[racers[0].name]
    print(f"  {'':24}{'real tokens/s':>14}{'ratio':>8}{'lowest':>8}{'highest':>8}{'utilisation':>13}")
    for name, values in speeds.items():
        ratios = sorted(a / b for a, b in zip(values, first))
        print(f"  {name:24}{statistics.median(values):14,.0f}{statistics.median(ratios):8.2f}{ratios[0]:8.2f}"
              f"{ratios[-1]:8.2f}{statistics.median(values) * flops / rate:13.1%}")


def race_to_loss(shape: Shape, documents: Documents, args: argparse.Namespace, tokenizer_file: str) -> None:
    """From the same start, equal CPU time for each; loss on documents that nobody trained on."""
    torch.manual_seed(0)
    theirs = HuggingFace(shape, documents)
    weights = {k: v.clone() for k, v in theirs.model.state_dict().items()}
    racers: dict[str, Contestant] = {"hf": theirs, "ours": Ours(shape, documents, weights=weights),
                                     "compiled": Ours(shape, documents, compiled=True, weights=weights)}
    racers = {name: racer for name, racer in racers.items() if name in args.against}
    alone = [Trl(shape, documents, packing=name == "trl_packing", tokenizer_file=tokenizer_file, weights=weights)
             for name in args.against if name.startswith("trl")]
    spent, seen = dict.fromkeys(racers, 0.0), dict.fromkeys(racers, 0)
    start, limit = theirs.mean_loss(documents.held_out), args.minutes * 60
    while any(s < limit for s in spent.values()):
        for name, racer in racers.items():
            if spent[name] < limit:
                tokens, seconds = racer.train(1)
                spent[name] += seconds
                seen[name] += tokens
    print(f"  loss on held-out documents after {args.minutes:g} CPU minutes each (from {start:.3f}):")
    for name, racer in racers.items():
        print(f"  {racer.name:24}{racer.mean_loss(documents.held_out):8.3f}  {seen[name]:,} tokens")
    for trl in alone:
        tokens, _ = trl.train_for(limit)
        print(f"  {trl.name:24}{trl.mean_loss(documents.held_out):8.3f}  {tokens:,} tokens", flush=True)


if __name__ == "__main__":
    sys.exit(main())
