"""One process with two threads against two ranks of one thread: the same rows in every step, by the clock."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from minimind.events import read_events
from minimind.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 4  # first steps of a run, which warm up
#: name -> options, rows of a step
RUNS = {
    "tiny-cpu": (["--preset", "tiny-cpu", "--max_steps", "60"], 4),
    "S": (["--vocab_size", "6400", "--hidden_size", "256", "--num_hidden_layers", "4", "--num_attention_heads", "8",
           "--num_key_value_heads", "4", "--max_seq_len", "256", "--max_steps", "14"], 16),
    "M": (["--vocab_size", "6400", "--hidden_size", "512", "--num_hidden_layers", "8", "--num_attention_heads", "8",
           "--num_key_value_heads", "2", "--max_seq_len", "340", "--max_steps", "10"], 4),
}


def compare_cores(data: Path, place: Path, rounds: int) -> int:
    print(f"{'':10}{'1 x 2 threads':>15}{'2 ranks x 1':>13}{'ratio':>8}  ratios of the rounds")
    for name, (options, rows) in RUNS.items():
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for ranks in speeds:
                speeds[ranks].append(speed(data, place, ranks, [*options, "--batch_size", str(rows // ranks)]))
        ratios = [b / a for a, b in zip(speeds[1], speeds[2])]
        print(f"{name:10}{statistics.median(speeds[1]):15,.0f}{statistics.median(speeds[2]):13,.0f}"
              f"{statistics.median(ratios):8.2f}  {' '.join(f'{r:.2f}' for r in ratios)}", flush=True)
    return 0


def speed(data: Path, place: Path, ranks: int, options: list[str]) -> float:
    """Tokens per second, the median of the steps of a run."""
    run = place / "run"
    shutil.rmtree(run, ignore_errors=True)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    subprocess.run([sys.executable, *torchrun, str(ROOT / "train.py"), "pretrain", "--data_path", str(data), "--out",
                    str(run), "--cache_dir", str(place / "cache"), "--device", "cpu", "--eval_interval", "0",
                    "--sample_interval", "0", "--no_use_compile", *options],
                   env={**os.environ, "OMP_NUM_THREADS": str(2 // ranks)}, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    found = [e["data"]["tokens_per_s"] for e, _ in read_events(RunDir(run).attempt(1).events) if e["type"] == "metrics"]
    return statistics.median(found[SKIPPED:])
