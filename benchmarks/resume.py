"""Does killing change what is learnt? One tiny run killed at random moments, again and again, against a whole one.

    ./studio bench resume [--kills 50] [--ranks 1] [--steps 1500] [--seed 1] [--out DIR]

Every kill is SIGKILL to all ranks: while starting, in the middle of a step, of a save, of the rename. Then curve
(loss, learning rate, gradient norm of every step), evaluations, samples and the final weights' file are compared,
bit for bit. Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minimind.events import read_events  # noqa: E402
from minimind.metrics import TIMING_KEYS  # noqa: E402
from minimind.run_dir import RunDir  # noqa: E402

WORDS = "the a cat dog house river runs sleeps sees big small red blue Anna Ben lives in near with and".split()
SHAPE = ("--hidden_size", "32", "--num_hidden_layers", "2", "--num_attention_heads", "2", "--num_key_value_heads", "1",
         "--intermediate_size", "64", "--max_seq_len", "32", "--batch_size", "2", "--vocab_size", "400",
         "--device", "cpu")
STARTUP_SHARE = 0.1  # of the kills come before the first step
LONGEST_LIFE_S = 1.0  # of training before a kill
PATIENCE_S = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the two runs there; default: a temporary directory")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        return compare(args, args.out)
    with tempfile.TemporaryDirectory(prefix="resume-") as directory:
        return compare(args, Path(directory))


def compare(args: argparse.Namespace, directory: Path) -> int:
    rng = random.Random(args.seed)
    data = directory / "data.jsonl"
    data.write_text("".join(json.dumps({"text": " ".join(rng.choices(WORDS, k=rng.randint(3, 40)))}) + "\n"
                            for _ in range(200)))
    options = [*SHAPE, "--data_path", str(data), "--cache_dir", str(directory / "cache"), "--max_steps",
               str(args.steps), "--save_interval", "7", "--eval_interval", "100", "--sample_interval", "250"]
    whole, broken = directory / "whole", directory / "broken"
    started = time.perf_counter()
    if start(args.ranks, ["--out", str(whole), *options]).wait(PATIENCE_S) != 0:
        print("The uninterrupted run failed.")
        return 1
    print(f"uninterrupted: {args.steps} steps, {args.ranks} rank(s), {time.perf_counter() - started:.0f} s", flush=True)
    kills = 0
    while True:
        attempt = len(RunDir(broken).attempts()) + 1  # one killed before it made its directory leaves no number
        process = start(args.ranks, ["--out", str(broken), "--resume", "auto", *options])
        if kills >= args.kills:
            code = process.wait(PATIENCE_S)
            break
        ended = die(process, broken, attempt, rng)
        if ended:
            code = process.returncode
            break
        kills += 1
        print(f"kill {kills}: attempt {attempt} at step {last_step(broken, attempt)}", flush=True)
    same = code == 0 and report(whole, broken, args.steps)
    print(f"{kills} kills: {'no difference' if same else 'THE RUNS DIFFER'} (exit code of the last attempt {code})")
    return 0 if same else 1


def start(ranks: int, options: list[str]) -> subprocess.Popen:
    """One attempt. torchrun's ranks die with it, so killing the process kills everything."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MINIMIND_DIE_WITH_PARENT": "1"}
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    return subprocess.Popen([sys.executable, *torchrun, str(ROOT / "train.py"), "pretrain", *options], cwd=ROOT,
                            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def die(process: subprocess.Popen, run: Path, attempt: int, rng: random.Random) -> bool:
    """Kill ``process`` at a random moment; True where it ended before that."""
    if rng.random() < STARTUP_SHARE:
        wait_s = rng.uniform(0.2, 4.0)
    else:
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and not last_step(run, attempt) and time.monotonic() < deadline:
            time.sleep(0.01)
        wait_s = rng.uniform(0.0, LONGEST_LIFE_S)
    try:
        process.wait(wait_s)
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return False


def last_step(run: Path, attempt: int) -> int:
    return max((e["step"] for e, _ in read_events(RunDir(run).attempt(attempt).events) if e["type"] == "metrics"),
               default=0)


def curve(run: Path, type: str) -> dict[tuple, dict]:
    """Numbers by step; the highest attempt answers."""
    points: dict[tuple, dict] = {}
    for attempt in RunDir(run).attempts():
        for event, _ in read_events(attempt.events):
            if event["type"] == type:
                key = (event["step"], event["data"].get("prompt_index", 0))
                points[key] = {k: v for k, v in event["data"].items() if k not in TIMING_KEYS}
    return points


def report(whole: Path, broken: Path, steps: int) -> bool:
    same = True
    for type in ("metrics", "eval", "sample"):
        one, other = curve(whole, type), curve(broken, type)
        differing = sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
        print(f"{type}: {len(one)} points, {len(differing)} differ" + (f", first {differing[0]}" if differing else ""))
        same &= not differing and bool(one)
    files = [RunDir(r).checkpoint_dirs()[0] / "model.safetensors" for r in (whole, broken)]
    equal = files[0].read_bytes() == files[1].read_bytes()
    print(f"final weights at step {steps}: {'equal' if equal else 'different'}")
    left = [p.name for p in (broken / "checkpoints").glob(".*")]
    print(f"left over in the run: {left or 'nothing'}")
    return same and equal and not left


if __name__ == "__main__":
    sys.exit(main())
