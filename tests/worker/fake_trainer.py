"""A trainer without torch that keeps the file contract of a run directory: starts in a moment, does as told.

``FAKE_TRAINER`` holds JSON: ``steps`` (20), ``step_s`` (0.02), ``save_every`` (5), ``crash_at`` (step at which it
kills itself), ``deaf`` (ignores control and SIGTERM), ``fail`` (an error class to end with), ``lose_word``
(kills itself between the rename of its first checkpoint and the word of it), ``save_fails`` (a pause cannot be
saved the first time), ``signal`` (what ``crash_at`` dies of, SIGKILL), ``exit`` (an exit status at ``crash_at``
instead), ``last_words`` (into its log before that), ``hang_at`` (a step at which it does nothing more), ``hang_in`` (a
phase in which it does not), ``linger_s`` (before it leaves, its result written), ``only`` (the attempts that all of
this is for). Under torchrun only rank 0 trains; ``bad_rank`` is the one that crashes, and rank 0 loses it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from minimind.control import read_control
from minimind.events import EventWriter
from minimind.lifeline import die_as_told
from minimind.manifest import Manifest, newest_valid
from minimind.metrics import send_output_to
from minimind.run_dir import AttemptDir, RunDir, write_json
from minimind.stacks import show_when_asked

DEFAULTS = {"steps": 20, "step_s": 0.02, "save_every": 5, "bad_rank": 0, "signal": "SIGKILL"}
KEPT = ("steps", "step_s", "save_every")


def main() -> int:
    die_as_told(always=True)
    show_when_asked()
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--out")
    parser.add_argument("--attempt", type=int)
    args, _ = parser.parse_known_args()
    wants = DEFAULTS | json.loads(os.environ.get("FAKE_TRAINER", "{}"))
    if args.attempt not in wants.get("only", [args.attempt]):
        wants = DEFAULTS | {key: wants[key] for key in KEPT}
    if wants.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank = int(os.environ.get("RANK", "0"))
    run, attempt = RunDir(args.out), RunDir(args.out).attempt(args.attempt)
    send_output_to(attempt.log(rank))
    return follow(attempt, wants, rank) if rank else lead(args, run, attempt, wants)


def lead(args: argparse.Namespace, run: RunDir, attempt: AttemptDir, wants: dict) -> int:
    """What rank 0 does."""
    events = EventWriter(attempt.events, args.attempt)
    write_json(run.resolved, {"total_steps": wants["steps"]})
    base, _ = newest_valid(run)
    step = Manifest.read(base).step if base else 0
    events.write("state", {"resumed_from_step": step}, step=step, tokens=step * 10)
    if wants.get("hang_in"):
        events.write("phase", {"phase": wants["hang_in"], "done": 1, "total": 2, "unit": "rows"})
        hang(events, wants["hang_in"])
    events.write("phase", {"phase": "train", "done": step, "total": wants["steps"], "unit": "steps"})
    events.write("state", {"status": "ready", "resumed_from_step": step}, step=step)
    if wants.get("fail"):
        attempt.write_result("failed", step, None, {"class": wants["fail"], "message": "It is wrong.", "hint": None})
        return 2
    last, ignored = base, 0
    while step < wants["steps"]:
        wish = read_control(attempt.control)
        if not wants.get("deaf") and wish.command != "none" and wish.id > ignored:
            if wish.command == "pause" and wants.get("save_fails"):
                events.write("warning", {"code": "save_failed", "message": "The disk is full."}, step=step)
                wants["save_fails"], ignored = False, wish.id
                continue
            if wish.save and step:
                last = save(run, args, step, events)
            status = "paused" if wish.command == "pause" else "stopped"
            attempt.write_result(status, step, str(last) if last else None)
            time.sleep(wants.get("linger_s", 0))
            return 0
        step += 1
        time.sleep(wants["step_s"])
        events.write("metrics", {"loss": 5.0 / step, "lr": 0.1, "tokens_per_s": 100.0}, step=step, tokens=step * 10)
        if step == wants.get("hang_at"):
            hang(events, "train", step)
        if step == wants.get("crash_at"):
            if wants["bad_rank"]:
                return lose(attempt, step)
            crash(wants)
        if step % wants["save_every"] == 0:
            last = save(run, args, step, events, quiet=bool(wants.get("lose_word")))
            if wants.get("lose_word") and args.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    last = save(run, args, step, events)
    attempt.write_result("completed", step, str(last))
    time.sleep(wants.get("linger_s", 0))
    return 0


def follow(attempt: AttemptDir, wants: dict, rank: int) -> int:
    """What every other rank does: wait for the end, or crash when rank 0 has come to that step."""
    print(f"rank {rank} follows", flush=True)
    while attempt.read_result() is None:
        if rank == wants["bad_rank"] and wants.get("crash_at"):
            words = attempt.events.read_bytes() if attempt.events.exists() else b""
            if f'"step":{wants["crash_at"]},'.encode() in words:
                crash(wants)
        time.sleep(0.02)
    return 0


def crash(wants: dict) -> None:
    if wants.get("last_words"):
        print(wants["last_words"], file=sys.stderr, flush=True)
    if "exit" in wants:
        os._exit(wants["exit"])
    number = signal.Signals[wants["signal"]]
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(60)


def lose(attempt: AttemptDir, step: int) -> int:
    """What rank 0 of a real training sees when another rank is killed."""
    time.sleep(0.3)
    attempt.write_result("failed", step, None, {"class": "NCCL", "message": "The ranks lost each other.", "hint": None})
    return 1


def hang(events: EventWriter, phase: str, step: int = 0) -> None:
    """Says things, but gets nowhere."""
    while True:
        time.sleep(0.5)
        events.write("phase", {"phase": phase, "done": 1, "total": 2, "unit": "rows"}, step=step)
        events.write("warning", {"message": "Waiting."}, step=step)


def save(run: RunDir, args: argparse.Namespace, step: int, events: EventWriter, *, quiet: bool = False) -> Path:
    path = run.checkpoint(step, args.attempt)
    if not path.exists():
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"weights")
        Manifest(stage=args.stage, step=step, tokens=step * 10, attempt=args.attempt, world_size=1, loss=5.0 / step,
                 eval_loss=None, model={}, config_fingerprint="", data_fingerprint="", tokenizer_fingerprint="t",
                 lineage={}, versions={}, created_at=time.time()).seal(path)
        if not quiet:
            events.write("checkpoint", {"path": f"checkpoints/{path.name}", "bytes": 7}, step=step, tokens=step * 10)
    return path


if __name__ == "__main__":
    sys.exit(main())
