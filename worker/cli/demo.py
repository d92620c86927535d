"""Train a model from nothing through the REST API, pause and resume it, and talk to it. No browser needed.

Everything happens in a data directory of its own, which is kept and named at the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from minimind.errors import MiniMindError

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_QUESTIONS = 8
#: answers that must be right, and the training time from which on they must be
REQUIRED_RIGHT, REQUIRED_FROM_MINUTES = 3, 3
#: share of the first stage's steps after which the demo pauses it
PAUSE_AT = 0.4
SEED = 42


class DemoError(MiniMindError):
    """Something that the demo shows did not work."""

    code = "DEMO"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", metavar="M", type=float, default=5.0,
                        help="training time of all stages together (default: 5)")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.minutes <= 24 * 60:
        raise DemoError(f"--minutes {args.minutes:g} is not a training time.", hint="Use a number such as 5.")
    data_dir = Path(args.data_dir) if args.data_dir else ROOT / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    data_dir = data_dir.absolute()
    os.environ["STUDIO_DATA_DIR"] = str(data_dir)
    for name in ("STUDIO_DATABASE_URL", "STUDIO_REDIS_URL"):  # the demo is complete in its own directory
        os.environ.pop(name, None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    began = time.monotonic()
    say(f"Data directory: {data_dir}")
    studio = Studio(data_dir)
    try:
        studio.start()
        right = train_and_talk(studio, args.minutes)
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130
    finally:
        studio.stop()
    say(f"\nEverything is stopped after {(time.monotonic() - began) / 60:.1f} minutes. "
        f"The run, its checkpoints and logs stay in {data_dir}\n"
        f"./studio up --data_dir {data_dir} opens them in the browser.")
    if args.minutes >= REQUIRED_FROM_MINUTES and right < REQUIRED_RIGHT:
        raise DemoError(f"Only {right} of {NUM_QUESTIONS} answers were right; {REQUIRED_RIGHT} are expected after "
                        f"{REQUIRED_FROM_MINUTES} minutes or more of training.",
                        hint="On a very slow or busy machine give it more time with --minutes.")
    return 0


class Studio:
    """``./studio up`` as a child process on a free port, and a client that is logged in to it."""

    def __init__(self, data_dir: Path):
        self.data_dir = data_dir
        self.process: subprocess.Popen | None = None
        self.client = None

    def start(self) -> None:
        from app.auth.service import create_token
        from app.core.db import transaction
        from worker.client import StudioClient
        from worker.database import migrate

        migrate()
        with transaction() as session:
            token = create_token(session, "demo")
        argv = [sys.executable, "-P", "-m", "worker.cli", "up", "--port", "0", "--no_browser"]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                                        env={**os.environ, "MINIMIND_DIE_WITH_PARENT": str(os.getpid())},
                                        start_new_session=True)
        line = self.process.stdout.readline()
        if not line.startswith("Studio ready at "):
            raise DemoError("The studio did not start; see the lines above.",
                            hint="./studio doctor checks this machine.")
        address = line.split()[-1].split("?")[0]
        say(f"Studio ready at {address}")
        self.client = StudioClient(address, token)

    def stop(self) -> None:
        if self.client is not None:
            self.client.close()
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.process.stdout.close()
        if status:
            raise DemoError(f"The studio ended with exit status {status}.",
                            hint=f"Look into {self.data_dir / 'logs'}.")


def train_and_talk(studio: Studio, minutes: float) -> int:
    """The main job; returns how many of the questions were answered rightly."""
    from minimind.data import starter

    client = studio.client
    share = starter.plan(minutes).pretrain_share
    datasets = {}
    for part in ("text", "dialogues"):
        source = {"kind": "starter", "part": part, "minutes": minutes, "seed": SEED}
        datasets[part] = client.post("/datasets", {"name": f"starter {part}", "source": source})["id"]
    for part, id in datasets.items():
        dataset = client.wait_ready("datasets", id, timeout_s=300)
        if dataset["state"] != "ready":
            raise DemoError(f"The starter {part} could not be written: {dataset['error']['message']}")
        say(f"Dataset starter {part}: {dataset['rows']:,} rows, {dataset['bytes'] / 1e6:.1f} MB")
    pipeline = client.post("/pipelines", {"name": f"demo, {minutes:g} minutes", "stages": [
        {"stage": "pretrain", "dataset_id": datasets["text"],
         "config": {"preset": "tiny-cpu", "max_minutes": round(minutes * share, 3), "seed": SEED}},
        {"stage": "sft", "dataset_id": datasets["dialogues"],
         "config": {"max_minutes": round(minutes * (1 - share), 3), "seed": SEED}},
    ]})
    runs = follow(client, pipeline["id"], minutes)
    for run in runs:
        first, last = loss_at_ends(client, run["id"])
        say(f"Loss of {run['stage']}: {first:.3f} at the start, {last:.3f} at the end "
            f"({run['progress']['step']:,} steps)")
    checkpoint = client.get(f"/runs/{runs[-1]['id']}/checkpoints")["items"]
    checkpoint = max(checkpoint, key=lambda c: (c["step"], c["created_at"]))
    say(f"Checkpoint: {checkpoint['path']}\n")
    questions = starter.questions(minutes=minutes, languages=None, seed=SEED, count=NUM_QUESTIONS)
    right = 0
    for question in questions:
        reply = client.chat(checkpoint["id"], question.text, temperature=0, max_tokens=64)
        answer = reply["choices"][0]["message"]["content"].strip()
        good = starter.is_right(question, answer)
        right += good
        shown = answer if len(answer) <= 100 else answer[:100] + " ..."
        say(f"  {'right' if good else 'wrong'}  {question.text}\n         {shown!r}"
            + ("" if good else f"  (expected {question.expected!r})"))
    say(f"{right} of {len(questions)} answers are right. "
        "No question stands in the training data; only the facts behind them do.")
    return right


def follow(client, pipeline_id: str, minutes: float) -> list[dict]:
    """Show the pipeline until it is completed; pause and resume its first long enough run once."""
    bar = ProgressBar()
    deadline = time.monotonic() + 60 * minutes * 3 + 900  # set-up, timing and saving come on top of the training
    paused_once = False
    while True:
        pipeline = client.get(f"/pipelines/{pipeline_id}")
        runs = pipeline["runs"]
        if pipeline["state"] == "completed":
            bar.end()
            break
        if pipeline["state"] in ("failed", "cancelled") or time.monotonic() > deadline:
            bar.end()
            errors = [run["error"]["message"] for run in runs if run["error"]]
            raise DemoError(f"The pipeline is {pipeline['state']}"
                            + (f": {errors[-1]}" if errors else ", which took far too long."))
        run = next((r for r in runs if r["state"] not in ("completed", "failed", "cancelled")), None)
        if run is not None:
            bar.show(run)
            progress = run["progress"]
            step, total = progress.get("step") or 0, progress.get("total_steps") or 0
            if not paused_once and run["state"] == "running" and total and PAUSE_AT * total <= step < total:
                bar.end()
                paused_once = pause_and_resume(client, run["id"])
        time.sleep(0.5)
    if not paused_once:
        raise DemoError("The training was over before it could be paused.", hint="Give it more time with --minutes.")
    return runs


def pause_and_resume(client, run_id: str) -> bool:
    """Pause, wait until it is confirmed, resume. False where the run ended before it could pause."""
    from worker.client import ApiError

    asked = time.monotonic()
    try:
        client.post(f"/runs/{run_id}/pause")
    except ApiError as error:
        if error.status == 409:
            return False
        raise
    run = client.wait(f"/runs/{run_id}", lambda r: r["state"] not in ("starting", "running", "pausing"),
                      timeout_s=120)
    if run["state"] != "paused":
        return False
    say(f"Paused at step {run['progress']['step']:,}, saved and confirmed after {time.monotonic() - asked:.1f} s; "
        "resuming ...")
    client.post(f"/runs/{run_id}/resume")
    return True


def loss_at_ends(client, run_id: str) -> tuple[float, float]:
    """The first loss of a run and the mean of its last ten (a single batch is noisy)."""
    series = client.get(f"/runs/{run_id}/metrics", keys="loss", points=5000)["series"]["loss"]
    values = [y for y in series["y"] if y is not None]
    if not values:
        raise DemoError("The run has no finite loss.", hint="Look at its log in the data directory.")
    return values[0], sum(values[-10:]) / len(values[-10:])


class ProgressBar:
    """One live line on a terminal; elsewhere a line whenever something new is to be said."""

    WIDTH = 30
    PLAIN_EVERY_S = 10.0

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self._last_key: tuple | None = None
        self._last_at = 0.0

    def show(self, run: dict) -> None:
        progress = run["progress"]
        step, total = progress.get("step") or 0, progress.get("total_steps") or 0
        phase = progress.get("phase") or ""
        parts = [f"{run['stage']:<9}", run["state"] if run["state"] != "running" else phase or "running"]
        if total:
            filled = int(self.WIDTH * min(step / total, 1))
            parts += ["█" * filled + "░" * (self.WIDTH - filled), f"{step:,}/{total:,}"]
        if progress.get("loss") is not None:
            parts.append(f"loss {progress['loss']:.3f}")
        if progress.get("tokens_per_s"):
            parts.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
        if progress.get("eta_s") is not None:
            parts.append(f"{progress['eta_s']:.0f} s left")
        text = "  ".join(parts)
        if self.live:
            print(f"\r\033[K{text[:150]}", end="", flush=True)
            return
        key = (run["id"], run["state"], phase)
        now = time.monotonic()
        if key != self._last_key or now - self._last_at > self.PLAIN_EVERY_S:
            self._last_key, self._last_at = key, now
            say(text)

    def end(self) -> None:
        if self.live:
            print(flush=True)


def say(text: str) -> None:
    print(text, flush=True)
