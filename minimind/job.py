"""One start of a stage: find the run directory, decide what to continue, prepare, train, leave a verdict.

Rank 0 alone touches the run directory before training; the other ranks hear from it what it found.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.cli import Command
from minimind.config import HARMLESS_KEYS, RunConfig, parse_config
from minimind.data.mix_option import absolute_mix
from minimind.errors import CheckpointError, ConfigError, ResumeError
from minimind.manifest import MANIFEST_FILE, Manifest, newest_valid
from minimind.resolve import previous
from minimind.run_dir import LOCK_FILE, LOCK_PATIENCE_S, AttemptDir, RunDir, RunLock, read_json, write_json

#: options that name a file or directory
PLACES = ("data_path", "tokenizer", "from_weight", "teacher_weight")
CRASH = 1


@dataclass
class Job:
    """What is to be done. ``finished``: the run is completed already and nothing will be."""

    config: RunConfig
    run_dir: RunDir
    attempt: AttemptDir
    cache_dir: Path
    external: bool
    allow_changes: bool
    resume_from: Path | None = None
    finished: bool = False
    notes: tuple[str, ...] = ()
    lock: RunLock | None = None
    #: options of this start that the next one needs as well
    kept_options: tuple[str, ...] = ()

    def resume_command(self, world_size: int) -> str:
        start = "python" if world_size == 1 else f"torchrun --nproc_per_node {world_size}"
        words = ("train.py", self.config.stage_name, "--out", str(self.run_dir.path), "--resume", "auto")
        return f"{start} {shlex.join((*words, *self.kept_options))}"

    def as_dict(self) -> dict:
        """What the other ranks need to know."""
        return {"config": self.config.model_dump(mode="json"), "out": str(self.run_dir.path),
                "attempt": self.attempt.number, "cache_dir": str(self.cache_dir),
                "resume_from": str(self.resume_from) if self.resume_from else None, "finished": self.finished}


def open_job(command: Command) -> Job:
    """Find or make the run directory and the attempt. Raises ``ConfigError`` or ``ResumeError``."""
    external = command.attempt is not None
    if not external:
        command.values = {k: _absolute(v) if k in PLACES else v for k, v in command.values.items()}
        if command.values.get("data_mix"):
            with contextlib.suppress(ValueError):  # the configuration says what is wrong with it
                command.values["data_mix"] = absolute_mix(command.values["data_mix"])
    run_dir, checkpoint = _find_run(command)
    known = read_json(run_dir.config)
    is_new = not isinstance(known, dict)
    if not is_new:
        config = _known_config(command, known, run_dir)
    elif external:
        raise ResumeError(f"{run_dir.path} has no run.json.", hint="The job runner writes it before the start.")
    else:
        config = parse_config(command.stage, command.values)
        run_dir.path.mkdir(parents=True, exist_ok=True)
    lock = _locked(run_dir, external)
    if is_new:
        write_json(run_dir.config, {**config.model_dump(mode="json"), "stage": command.stage})
    cache_dir = (command.cache_dir or _default_cache(command, run_dir)).absolute()
    finished = _completed(run_dir, command.attempt) if checkpoint is None else None
    damaged: list[str] = []
    if finished is not None:
        checkpoint = Path(finished["checkpoint"]) if finished["checkpoint"] else None
    elif checkpoint is None:
        checkpoint, damaged = newest_valid(run_dir)
    else:
        Manifest.read(checkpoint).verify(checkpoint)
    if finished is not None and not external:
        attempt = run_dir.attempts()[-1]
    else:
        attempt = run_dir.make_attempt(command.attempt)
    notes = tuple(f"{sentence} Continuing from an older one." if checkpoint else
                  f"{sentence} Starting from step 0." for sentence in damaged)
    return Job(config, run_dir, attempt, cache_dir, external, command.allow_changes, checkpoint,
               finished is not None, notes, lock, _kept_options(command, run_dir, cache_dir))


def _absolute(place: Any) -> Any:
    """A run is continued from wherever one stands then."""
    return str(Path(place).absolute()) if isinstance(place, str) and place != "none" else place


def _default_cache(command: Command, run_dir: RunDir) -> Path:
    """Beside the directory that holds the runs; a run that lies elsewhere shares that of the present directory."""
    parent = run_dir.path.parent
    if parent in (command.save_dir.absolute(), run_dir.path.parent.parent / "runs"):
        return parent.parent / "cache"
    return command.save_dir.absolute().parent / "cache"


def _locked(run_dir: RunDir, external: bool) -> RunLock:
    """Raises ``ResumeError`` where another process trains the run. (A job runner has its own fence: it takes the lock
    where it can, so that others see it.)"""
    lock = RunLock(run_dir.path)
    if not lock.take(0.0 if external else LOCK_PATIENCE_S) and not external:
        raise ResumeError(f"The run {run_dir.path} is being trained by process {lock.holder() or 'unknown'} now.",
                          field="out", hint="Stop that one first (Ctrl-C saves), or choose another --out.")
    return lock


def _kept_options(command: Command, run_dir: RunDir, cache_dir: Path) -> tuple[str, ...]:
    """What stands in no file of the run and cannot be told from its place: the cache, and options given now that
    change nothing learnt."""
    runs = run_dir.path.parent
    found_again = runs.name == "runs" and cache_dir == runs.parent / "cache"
    kept = () if found_again else ("--cache_dir", str(cache_dir))
    if command.resume is None:
        return kept  # the rest stands in run.json
    return kept + tuple(word for key, value in command.values.items() if key in HARMLESS_KEYS
                        for word in (f"--{key}", str(value)))


def _find_run(command: Command) -> tuple[RunDir, Path | None]:
    """``(run directory, the checkpoint that was named)``."""
    if command.resume not in (None, "auto"):
        given = Path(str(command.resume)).absolute()
        if not given.is_dir():
            raise ResumeError(f"There is no run or checkpoint {given}.", field="resume", hint="Check --resume.")
        checkpoint = given if (given / MANIFEST_FILE).exists() else None
        run_dir = RunDir(given.parent.parent if checkpoint else given)
        if not run_dir.config.exists():
            raise ResumeError(f"{given} is neither a run directory nor a checkpoint in one.", field="resume",
                              hint="A run directory has a run.json.")
        if command.out is not None and command.out.absolute() != run_dir.path:
            raise ResumeError(f"--resume names the run {run_dir.path} and --out {command.out.absolute()}.",
                              field="resume", hint="Give one of them.")
        return run_dir, checkpoint
    if command.out is not None:
        run_dir = RunDir(command.out)
        if run_dir.path.is_file():
            raise ConfigError([{"field": "out", "message": f"{run_dir.path} is a file.",
                                "hint": "Choose a directory."}])
        if command.resume is None and _has_files(run_dir.path) and not _forget_failed_start(run_dir):
            raise ResumeError(f"{run_dir.path} is not empty.", field="out",
                              hint="Add --resume auto to continue the run in it, or choose another --out.")
        if command.resume == "auto" and _has_files(run_dir.path) and not run_dir.config.exists():
            raise ResumeError(f"{run_dir.path} is not empty and is not a run: it has no run.json.", field="out",
                              hint="Choose another --out.")
        return run_dir, None
    if command.resume == "auto" and (found := _newest_unfinished(command)) is not None:
        return found, None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path, number = command.save_dir / f"{command.stage}-{stamp}", 1
    while path.exists():
        number += 1
        path = command.save_dir / f"{command.stage}-{stamp}-{number}"
    return RunDir(path), None


def _has_files(path: Path) -> bool:
    """What a start that was killed at once can leave does not count."""
    ours = re.compile(rf"{re.escape(LOCK_FILE)}|\.run\.json\..*\.tmp")
    return path.is_dir() and any(not ours.fullmatch(p.name) for p in path.iterdir())


def _forget_failed_start(run_dir: RunDir) -> bool:
    """Remove a run that a mistake ended before its first step, so that the corrected command can have its place;
    False where there is anything else in the directory."""
    names = {run_dir.config.name, "attempts", LOCK_FILE, run_dir.base.name}
    results = [attempt.read_result() for attempt in run_dir.attempts()]
    if {p.name for p in run_dir.path.iterdir()} - names or not results or RunLock(run_dir.path).is_taken() \
            or not all(r is not None and r["status"] == "failed" and r["step"] == 0 for r in results):
        return False
    shutil.rmtree(run_dir.path / "attempts")
    shutil.rmtree(run_dir.base, ignore_errors=True)
    run_dir.config.unlink(missing_ok=True)
    return True


def _newest_unfinished(command: Command) -> RunDir | None:
    if not command.save_dir.is_dir():
        return None
    runs = []
    for path in command.save_dir.iterdir():
        config = read_json(path / "run.json")
        if isinstance(config, dict) and config.get("stage") == command.stage \
                and _completed(RunDir(path), hashes=False) is None and not _failed_at_once(RunDir(path)) \
                and not RunLock(path).is_taken():
            runs.append(((path / "run.json").stat().st_mtime, path))
    return RunDir(max(runs)[1]) if runs else None


def _failed_at_once(run_dir: RunDir) -> bool:
    """Whether the run ended with an error before its first checkpoint (a mistyped path, say): there is nothing in it
    to continue, and it must not hide the run before it."""
    attempts = run_dir.attempts()
    result = attempts[-1].read_result() if attempts else None
    return result is not None and result["status"] == "failed" \
        and not any(run_dir.checkpoints.glob(f"*/{MANIFEST_FILE}"))


def _completed(run_dir: RunDir, before: int | None = None, *, hashes: bool = True) -> dict | None:
    """The result of a completed run whose last checkpoint is whole, else ``None`` (attempt ``before`` is the one
    that asks)."""
    for attempt in reversed(run_dir.attempts()):
        if before is not None and attempt.number >= before:
            continue
        result = attempt.read_result()
        if result is None:
            continue
        if result["status"] != "completed":
            return None
        checkpoint = result["checkpoint"]
        return result if checkpoint is None or _is_whole(Path(checkpoint), hashes) else None
    return None


def _is_whole(checkpoint: Path, hashes: bool) -> bool:
    try:
        Manifest.read(checkpoint).verify(checkpoint, hashes=hashes)
    except CheckpointError:
        return False
    return True


def _known_config(command: Command, known: dict, run_dir: RunDir) -> RunConfig:
    """The run's configuration, with changes that its last attempt was allowed, and the options that were given now;
    refuses what would change what is learnt."""
    stage = str(known.pop("stage", command.stage))
    if stage != command.stage:
        raise ResumeError(f"This run is of the stage {stage}, not {command.stage}.", field="stage",
                          hint=f"Resume it with: python train.py {stage} --resume ...")
    last = previous(run_dir)
    known |= last["config"] if last is not None else {}
    before = parse_config(stage, known)
    now = parse_config(stage, {**known, **command.values})
    changed = [f"{key} was {getattr(before, key)} and is {getattr(now, key)} now" for key in command.values
               if getattr(before, key) != getattr(now, key) and key not in HARMLESS_KEYS]
    if changed and not command.allow_changes:
        raise ResumeError(f"This run cannot be continued as it was: {'; '.join(changed)}.",
                          hint="Leave these options out, or add --allow_changes.")
    return now


def job_of(message: dict, command: Command) -> Job:
    """The job as another rank hears of it."""
    run_dir = RunDir(message["out"])
    config = parse_config(command.stage, message["config"])
    return Job(config, run_dir, run_dir.attempt(message["attempt"]), Path(message["cache_dir"]),
               command.attempt is not None, command.allow_changes,
               Path(message["resume_from"]) if message["resume_from"] else None, message["finished"])


def run_command(command: Command) -> int:
    """Do what the command line says; returns the exit code. Errors of the user end as one sentence on stderr."""
    try:
        from minimind.session import Session  # imports torch
    except ImportError as error:
        print(f"PyTorch cannot be imported: {error}. Run pip install -r requirements.txt.", file=sys.stderr)
        return CRASH
    try:
        return Session(command).run()
    except Exception:
        traceback.print_exc()
        return CRASH

