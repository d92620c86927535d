"""A trainer without torch that keeps the file contract of a run directory: starts in a moment, does as told.

``FAKE_TRAINER`` holds JSON: ``steps`` (20), ``step_s`` (0.02), ``save_every`` (5), ``crash_at`` (step at which it
kills itself), ``deaf`` (ignores control and SIGTERM), ``fail`` (an error class to end with), ``lose_word``
(kills itself between the rename of its first checkpoint and the word of it), ``save_fails`` (a pause cannot be
saved the first time).
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
from minimind.lifeline import die_with_parent
from minimind.manifest import Manifest, newest_valid
from minimind.run_dir import RunDir, write_json


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--out")
    parser.add_argument("--attempt", type=int)
    args, _ = parser.parse_known_args()
    wants = {"steps": 20, "step_s": 0.02, "save_every": 5} | json.loads(os.environ.get("FAKE_TRAINER", "{}"))
    if wants.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run, attempt = RunDir(args.out), RunDir(args.out).attempt(args.attempt)
    events = EventWriter(attempt.events, args.attempt)
    write_json(run.resolved, {"total_steps": wants["steps"]})
    base, _ = newest_valid(run)
    step = Manifest.read(base).step if base else 0
    events.write("state", {"resumed_from_step": step}, step=step, tokens=step * 10)
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
            return 0
        step += 1
        time.sleep(wants["step_s"])
        events.write("metrics", {"loss": 5.0 / step, "lr": 0.1, "tokens_per_s": 100.0}, step=step, tokens=step * 10)
        if step == wants.get("crash_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step % wants["save_every"] == 0:
            last = save(run, args, step, events, quiet=bool(wants.get("lose_word")))
            if wants.get("lose_word") and args.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    last = save(run, args, step, events)
    attempt.write_result("completed", step, str(last))
    return 0


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
