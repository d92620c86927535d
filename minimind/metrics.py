"""What a training says: events for programs, lines for people, and Weights & Biases for those who ask for it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from minimind.errors import ConfigError
from minimind.events import EventWriter, NullEventWriter

PROGRESS_EVERY_S = 0.5  # between two events of one phase
CONSOLE_EVERY_S = 2.0
PULSE_EVERY_S = 10.0  # between two signs of life where steps are not reported
#: keys of ``metrics`` that depend on the machine and the moment; everything else in it a resumed run repeats exactly
TIMING_KEYS = ("tokens_per_s", "mfu", "data_wait_share", "memory_peak_bytes")


class NullWandb:
    def log(self, values: dict, step: int) -> None:
        return

    def close(self) -> None:
        return


class Wandb:
    """Weights & Biases. Its variables win over our options: ``dir`` is passed only without ``WANDB_DIR``."""

    def __init__(self, config: dict, run_dir: Path, project: str | None, name: str | None):
        wandb = import_wandb()
        theirs = {"dir": ("WANDB_DIR", str(run_dir)), "resume": ("WANDB_RESUME", "allow")}
        options = {key: value for key, (variable, value) in theirs.items() if not os.environ.get(variable)}
        try:
            self._run = wandb.init(project=os.environ.get("WANDB_PROJECT") or project or "minimind",
                                   name=os.environ.get("WANDB_NAME") or name or run_dir.name, config=config, **options)
        except wandb.errors.Error as error:
            raise ConfigError([_wandb_problem(str(error).splitlines()[0])]) from error

    def log(self, values: dict, step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def import_wandb() -> Any:
    """The package, slow to import and wanted by few; raises ``ConfigError`` where it is missing."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError([_wandb_problem(f"the package wandb cannot be imported: {error}")]) from error
    return wandb


def _wandb_problem(why: str) -> dict:
    return {"field": "use_wandb", "message": f"Weights & Biases cannot be used: {why.rstrip('.')}.",
            "hint": "Log in with 'wandb login' or WANDB_API_KEY, set WANDB_MODE=offline, or leave out --use_wandb."}


class Reporter:
    """Rank 0's voice. Other ranks have one that is silent."""

    def __init__(self, events: EventWriter | NullEventWriter, *, log: Path | None = None, talks: bool = True):
        self.events = events
        self.wandb: Wandb | NullWandb = NullWandb()
        self.step = 0
        self.tokens = 0
        self._talks = talks
        self._log = open(log, "a", encoding="utf-8") if log else None
        self._phase = ""
        self._phase_at = 0.0
        self._line_at = 0.0
        self._event_at = 0.0

    def event(self, type: str, data: dict) -> None:
        self._event_at = time.monotonic()
        self.events.write(type, data, step=self.step, tokens=self.tokens)

    def say(self, text: str) -> None:
        """A line on the terminal and in the attempt's log. Where that cannot be written (a full disk, a terminal that
        is gone) nothing is said: training does not depend on a reader."""
        if self._talks:
            with contextlib.suppress(OSError):
                print(text, flush=True)
        if self._log:
            with contextlib.suppress(OSError):
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._log.flush()

    def log(self, message: str) -> None:
        self.say(message)
        self.event("log", {"message": message})

    def warn(self, message: str, **data: Any) -> None:
        self.say(f"warning: {message}")
        self.event("warning", {"message": message, **data})

    def phase(self, phase: str, done: float = 0, total: float | None = None, unit: str = "",
              message: str | None = None) -> None:
        """Progress of a phase; repeated calls are thinned out."""
        now = time.monotonic()
        if phase == self._phase and done != total and now - self._phase_at < PROGRESS_EVERY_S:
            return
        if message and phase != self._phase:
            self.say(message)
        self._phase, self._phase_at = phase, now
        data = {"phase": phase, "done": done, "total": total, "unit": unit}
        self.event("phase", data | ({"message": message} if message else {}))

    def pulse(self, total_steps: int) -> None:
        """A step that is not reported (``log_interval``) is a sign of life all the same: whoever watches would take a
        long silence for a hang."""
        if time.monotonic() - self._event_at >= PULSE_EVERY_S:
            self.phase("train", self.step, total_steps, "steps")

    def metrics(self, values: dict, total_steps: int, *, last: bool = False) -> None:
        self.event("metrics", values)
        self.wandb.log(values, self.step)
        now = time.monotonic()
        if last or now - self._line_at >= CONSOLE_EVERY_S:
            self._line_at = now
            loss = "not finite" if values["loss"] is None else f"{values['loss']:.4f}"
            self.say(f"step {self.step}/{total_steps}  loss {loss}  lr {values['lr']:.2e}  "
                     f"{values['tokens_per_s']:,.0f} tokens/s")

    def close(self) -> None:
        self.events.close()
        self.wandb.close()
        if self._log:
            with contextlib.suppress(OSError):
                self._log.close()


def silent() -> Reporter:
    return Reporter(NullEventWriter(), talks=False)


def send_output_to(path: Path) -> None:
    """From here on stdout and stderr of this process, its libraries included, go to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
