"""The one training loop. A stage brings rows and prompts; everything else is the same for all of them.

A step (minimind/step.py) is an optimizer step over one *window* of ``rows_per_step`` rows: micro-steps on every rank,
gradients averaged over the real target tokens of the whole window and all ranks, clipped, applied. What a step
computes depends on the step's number and the weights alone, so a resumed run is the uninterrupted one, bit for bit.

On a GPU the loop is one step ahead: while a step is computed, the next one is handed to the GPU, and its numbers are
reported when they have arrived. Whatever looks at the weights (a save, an evaluation, a sample, the end) waits first.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import minimind
from minimind import lora
from minimind import resolve as resolution
from minimind.checkpoint import (
    SaveFailed,
    apply_retention,
    load_learnt,
    load_training_state,
    save_checkpoint,
    set_random_state,
)
from minimind.config import LoraConfig, TrainConfig
from minimind.control import Wish
from minimind.data.packing import Rows
from minimind.data.sampler import Sampler, Window
from minimind.distributed import World
from minimind.errors import MiniMindError
from minimind.evaluation import HeldOut, Patience
from minimind.manifest import Manifest
from minimind.metrics import Reporter
from minimind.model import MiniMindForCausalLM
from minimind.objectives import Objective
from minimind.optim import Optimizer, learning_rate_at
from minimind.presets import ModelConfig
from minimind.rehearsal import Rehearsal
from minimind.run_dir import RunDir
from minimind.samples import Samples
from minimind.save_points import reached
from minimind.speed import Meter, matmul_peak
from minimind.step import Numbers, Outcome, Stepper
from minimind.stopping import Stopper, agreed, refuse_superseded
from minimind.tokenizer import Tokenizer

MAX_SKIPPED_STEPS = 10  # in a row, before a run whose numbers are not finite is given up
SAVE_EVERY_S = 600.0  # without --save_interval
SLOW_S = 1.0  # a save or evaluation that takes longer is shown as a phase


class DivergedError(MiniMindError):
    """Training cannot go on: losses or gradients stay not finite."""

    code = "NAN"


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended. ``checkpoint``: of the step, or the last one there is."""

    status: str  # completed | paused | stopped
    step: int
    checkpoint: Path | None


@dataclass(frozen=True)
class Step:
    """A step that was handed to the device. What the ranks agreed on is known; its numbers may be on their way."""

    window: Window
    learning_rate: float
    numbers: Numbers
    tokens: int  # of this step
    all_tokens: int  # of the run up to here
    wish: Wish
    save_due: bool  # by the clock
    sample_due: bool  # somebody asked


class Trainer:
    """Owns the model, the optimizer and the position in the data."""

    def __init__(self, config: TrainConfig, resolved: dict, *, run_dir: RunDir, attempt: int, world: World,
                 reporter: Reporter, stopper: Stopper, tokenizer: Tokenizer, train_rows: Rows,
                 held_out: HeldOut | None, samples: Samples, lineage: dict, tidies: bool = True):
        self.config = config
        self.resolved = resolved
        self.run_dir = run_dir
        self.attempt = attempt
        self.world = world
        self.reporter = reporter
        self.stopper = stopper
        self.tokenizer = tokenizer
        self.rows = train_rows
        self.held_out = held_out
        self.samples = samples
        self.lineage = lineage
        self.tidies = tidies  # else whoever started us deletes the checkpoints that need not be kept
        self.sampler = Sampler(len(train_rows), resolved["rows_per_step"], config.seed, train_rows.mixture)

        self.model = MiniMindForCausalLM(ModelConfig.from_dict(resolved["model"]), config.dropout)
        if isinstance(config, LoraConfig):
            lora.attach(self.model, lora.adapter_for(config, self.model.config))
        self.model.to(world.device)
        self.model.gradient_checkpointing = config.gradient_checkpointing
        self.optimizer = Optimizer(self.model, config.optimizer, weight_decay=config.weight_decay,
                                   beta2=config.adam_beta2)
        self.stepper = Stepper(self.model, self.optimizer, world, train_rows, dtype=getattr(torch, resolved["dtype"]),
                               attention=resolved["attention"], batch_size=resolved["batch_size"],
                               grad_clip=config.grad_clip)
        self.rehearsal = Rehearsal(self.stepper, self.sampler, self._ask)
        self.patience = Patience(config.early_stop)
        self.ahead = 1 if world.device.type == "cuda" else 0  # steps whose numbers may be on their way

        self.step = 0
        self.tokens = 0
        self.loss: float | None = None
        self.eval_loss: float | None = None  # of this very step
        self.skipped = 0  # steps in a row whose numbers were not finite
        self.saved: Path | None = None  # the newest checkpoint of the run
        self._on_the_way: deque[Step] = deque()
        self._save_s = self._eval_s = 0.0
        self._saved_at = time.monotonic()
        self._seed_rank()

    def _seed_rank(self) -> None:
        """Ranks start from equal weights and draw different dropout."""
        seed = np.random.SeedSequence([self.config.seed, self.world.rank, self.step]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed >> np.uint64(1)))

    # -- before step 1 ------------------------------------------------------------------------------------

    def get_ready(self) -> None:
        """Compile, wrap the model for several ranks, and settle. Always the same, so that a fresh and a resumed
        process compute alike."""
        peak = 1.0
        if self.world.is_main:
            peak = self.world.size * matmul_peak(self.world.device, self.stepper.dtype, torch.get_num_threads())
        flops = lora.flops_per_token(self.model, self.rows.mean_piece_length)
        flops += self.stepper.objective.flops_per_token(self.rows.mean_piece_length)
        self.meter = Meter(flops, peak, self.world.device)
        self.stepper.reading = self.meter.reading
        if self.resolved["use_compile"]:
            self.reporter.say("Compiling the model: half a minute to a minute, less when it was compiled before.")
            self.model.compile_blocks()
        self.stepper.wrap()
        self.rehearsal.settle()
        if self.resolved["use_compile"]:
            self.reporter.log(f"Compiled in {self.rehearsal.warm_up():.1f} s.")

    def minimise(self, objective: Objective) -> None:
        """What to learn, said before ``get_ready``."""
        self.stepper.objective = objective

    def look_up(self) -> None:
        """Between units of work before step 1, on all ranks at once: raises ``StopRequested`` where one is to stop."""
        self.rehearsal.grant(self.world.sum(self._ask()))

    def load(self, checkpoint: Path) -> None:
        """Continue from a verified checkpoint."""
        load_learnt(self.model, checkpoint)
        optimizer, state, rng = load_training_state(checkpoint, self.world)
        self.optimizer.load_state_dict(optimizer)
        if self.stepper.scaler is not None and state["scaler"]:
            self.stepper.scaler.load_state_dict(state["scaler"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.loss, self.skipped = state["loss"], state["skipped"]
        if "patience" in state:
            self.patience.load_state_dict(state["patience"])
        self.saved = checkpoint
        if rng is not None:
            set_random_state(rng, self.world.device)
        else:  # there was no such rank
            self._seed_rank()

    # -- the loop -----------------------------------------------------------------------------------------

    def run(self) -> Verdict:
        """Train to the last step, to the end of patience or to a granted wish. Raises ``DivergedError``."""
        total = self.resolved["total_steps"]
        every = resolution.intervals(self.config, total)
        self._tell_position()
        self.reporter.phase("train", self.step, total, "steps", message=f"Training: {total} steps.")
        self.meter.skip()
        while self.step < total and not self.patience.is_over:
            done = self._train(self.sampler.window(self.step + 1))
            refuse_superseded(done.wish)
            self.step, self.tokens, self.eval_loss = done.window.step, done.all_tokens, None
            is_last = self.step == total
            pausing = done.wish.command != "none"
            save_due = is_last or (self.step % every["save_interval"] == 0 if every["save_interval"] else done.save_due)
            scheduled = bool(self.held_out and every["eval_interval"]) and (
                is_last or self.step % every["eval_interval"] == 0)
            evaluates = scheduled or bool(save_due and self.held_out and every["eval_interval"])
            speaks = done.sample_due or (bool(every["sample_interval"]) and (
                is_last or self.step % every["sample_interval"] == 0))
            looks = save_due or evaluates or speaks or pausing
            self._report(keep=0 if looks else self.ahead)
            if evaluates:
                self._evaluate()
            if scheduled and self.patience.see(self.eval_loss, self.step):
                save_due = save_due or self.config.save_best or self.config.early_stop > 0
            if speaks:
                self._speak()
            if is_last or self.patience.is_over:
                return self._finish()
            if pausing and (verdict := self._grant(done.wish)):
                return verdict
            if save_due and not pausing:
                self._save_or_skip()
            if looks:
                self.meter.skip()
        return Verdict("completed", self.step, self.saved)

    def _train(self, window: Window) -> Step:
        """Hand one optimizer step to the device."""
        learning_rate = self._learning_rate(window.step)
        numbers, asked = self.stepper.take(window, learning_rate, self._ask)
        tokens = int(self.rows.tokens[window.rows].sum())
        step = Step(window, learning_rate, numbers, tokens, self.tokens + tokens, agreed(*asked[:2]), asked[2] > 0,
                    asked[3] > 0)
        self._on_the_way.append(step)
        return step

    def _ask(self) -> list[float]:
        """What this rank says at the end of a window; the sums over all ranks decide what they do next."""
        due = self.world.is_main and time.monotonic() - self._saved_at > SAVE_EVERY_S
        code = self.stopper.code() if self.world.is_main else 0
        asked = self.world.is_main and self.stopper.wants_sample()
        return [float(code), float(self.stopper.flag.raised), float(due), float(asked)]

    def _report(self, keep: int) -> None:
        """Take in the numbers of all steps on their way but the last ``keep``."""
        while len(self._on_the_way) > keep:
            step = self._on_the_way.popleft()
            outcome = self.stepper.outcome(step.numbers, step.window)
            self.reporter.step, self.reporter.tokens = step.window.step, step.all_tokens
            self.loss = outcome.loss
            self.meter.add(step.tokens)
            self._check(outcome, step.window.step)
            total = self.resolved["total_steps"]
            last = step.window.step == total
            if last or step.window.step == 1 or step.window.step % self.config.log_interval == 0:
                self.reporter.metrics(self._metrics(step, outcome), total, last=last)
            else:
                self.reporter.pulse(total)
        self._tell_position()

    def _metrics(self, step: Step, outcome: Outcome) -> dict:
        values = {"loss": _finite(outcome.loss), "lr": step.learning_rate, "grad_norm": _finite(outcome.grad_norm),
                  "epoch": step.window.epoch, **self.meter.metrics(),
                  "learnt_share": round(int(self.rows.targets[step.window.rows].sum()) / step.tokens, 4),
                  **{name: _finite(value) for name, value in outcome.metrics.items()}}
        if outcome.balance_loss is not None:
            values |= {"balance_loss": _finite(outcome.balance_loss), "expert_load_max": outcome.expert_load_max}
        return values

    def _check(self, outcome: Outcome, step: int) -> None:
        """A step whose numbers are not finite changed nothing; count it. All ranks see the same numbers."""
        if outcome.is_finite:
            self.skipped = 0
            return
        self.skipped += 1
        scaler = self.stepper.scaler  # it finds its scale by trying: gradients that overflow are its ordinary work
        if self.config.nan_policy == "stop" and (scaler is None or not math.isfinite(outcome.loss)):
            raise DivergedError(f"Step {step} was not finite (loss {outcome.loss:g}, gradient norm "
                                f"{outcome.grad_norm:g}), and nan_policy is stop.",
                                hint="Start again with a smaller learning_rate, or from an earlier checkpoint; "
                                     "nan_policy skip leaves single steps out.")
        if scaler is None or self.skipped > 2:
            self.reporter.warn(f"Step {step} was skipped: its loss or gradient is not finite.")
        if self.skipped >= MAX_SKIPPED_STEPS:
            raise DivergedError(
                f"The loss or the gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row (the last is step "
                f"{step}).", hint="Start again with a smaller learning_rate, or from an earlier checkpoint.")

    def _learning_rate(self, step: int) -> float:
        total = self.resolved["total_steps"]
        warmup = round(self.config.warmup_fraction * total)
        return learning_rate_at(step, total, self.resolved["learning_rate"], warmup, self.config.min_lr_fraction)

    # -- what happens between steps -----------------------------------------------------------------------

    def _evaluate(self) -> None:
        assert self.held_out is not None
        start = time.perf_counter()
        if self._eval_s > SLOW_S:
            self.reporter.phase("eval", self.step, None, "steps")
        with self.stepper.resting():
            result = self.held_out.evaluate(
                lambda rows, batch: self.stepper.losses(self.model, self.stepper.batch(batch, rows)),
                self.stepper.objective, self.world)
        self.eval_loss = result["eval_loss"]
        self.reporter.event("eval", result)
        self.reporter.wandb.log(result, self.step)
        self._eval_s = time.perf_counter() - start
        self._back_to_training(self._eval_s)

    def _speak(self) -> None:
        """Samples on rank 0; the others go on to the next collective and wait there."""
        if not self.world.is_main:
            return
        self.stopper.spoken()
        try:
            with self.stepper.resting():
                for index, (prompt, text) in enumerate(self.samples.speak(self.model)):
                    self.reporter.event("sample", {"prompt": prompt, "text": text, "prompt_index": index})
        except MiniMindError as error:  # weights that are not finite: the loop has its own word on that
            self.reporter.warn(f"No sample at step {self.step}: {error.message}")

    def _finish(self) -> Verdict:
        """The last step's checkpoint must exist: a full disk is an error here."""
        if self.step < self.resolved["total_steps"]:
            self.reporter.log(f"Stopped early: the last {self.patience.stale} evaluations were not better than "
                              f"{self.patience.best or math.nan:.4f} at step {self.patience.best_step}.")
        self.reporter.phase("save", self.step, self.step, "steps")
        self._save()
        return Verdict("completed", self.step, self.saved)

    def _grant(self, wish: Wish) -> Verdict | None:
        """Save if asked and leave; ``None`` where a pause cannot be saved and training goes on."""
        status = "paused" if wish.command == "pause" else "stopped"
        if wish.command == "stop" and not wish.save:
            return Verdict(status, self.step, self.saved)
        self.reporter.phase("save", self.step, self.resolved["total_steps"], "steps")
        try:
            self._save()
        except SaveFailed as failure:
            if wish.command == "stop":
                self.reporter.warn(f"{failure} The run ends without it.", code="save_failed")
                return Verdict(status, self.step, self.saved)
            self.reporter.warn(f"{failure} The run was not paused and goes on.", code="save_failed")
            self.stopper.answered()
            self._back_to_training(math.inf)
            return None
        return Verdict(status, self.step, self.saved)

    def _save_or_skip(self) -> None:
        if self._save_s > SLOW_S:
            self.reporter.phase("save", self.step, self.resolved["total_steps"], "steps")
        try:
            self._save()
        except SaveFailed as failure:
            self.reporter.warn(f"{failure} This checkpoint was skipped; training goes on.", code="save_skipped")
            self._saved_at = time.monotonic()
        self._back_to_training(self._save_s)

    def _save(self) -> None:
        """Raises ``SaveFailed``."""
        start = time.perf_counter()
        resolved = self.resolved
        manifest = Manifest(
            stage=resolved["stage"], step=self.step, tokens=self.tokens, attempt=self.attempt,
            world_size=self.world.size, loss=_finite(self.loss), eval_loss=_finite(self.eval_loss),
            model=resolved["model"], config_fingerprint=resolution.fingerprint(resolved["config"]),
            data_fingerprint=resolved["data_fingerprint"], tokenizer_fingerprint=resolved["tokenizer_fingerprint"],
            lineage=self.lineage, versions=versions(), created_at=round(time.time(), 3),
            adapter=self.model.adapter.as_dict() if self.model.adapter is not None else None)
        state = {"step": self.step, "tokens": self.tokens, "loss": _finite(self.loss), "skipped": self.skipped,
                 "scaler": self.stepper.scaler.state_dict() if self.stepper.scaler is not None else None,
                 "patience": self.patience.state_dict(),
                 "sampler": {"position": self.sampler.position_after(self.step), "seed": self.config.seed,
                             "rows": len(self.rows), "rows_per_step": resolved["rows_per_step"]},
                 "learning_rate": self._learning_rate(self.step),
                 "total_steps": resolved["total_steps"]}
        self.saved = save_checkpoint(self.run_dir, self.world, manifest, self.model, self.optimizer.state_dict(),
                                     state, self.tokenizer, self.stepper.objective.state())
        if self.world.is_main:
            reached("before_word")
            self.reporter.event("checkpoint", {
                "path": f"checkpoints/{self.saved.name}", "bytes": manifest.bytes, "eval_loss": manifest.eval_loss,
                "loss": manifest.loss, "best": self.patience.best_step == self.step,
                "save_s": round(time.perf_counter() - start, 3)})
        if self.world.is_main and self.tidies:
            for path in apply_retention(self.run_dir, resolved["total_steps"], self.config.keep):
                self.reporter.log(f"Deleted {path.name} to keep within the space for checkpoints.")
        self._saved_at = time.monotonic()
        self._save_s = time.perf_counter() - start

    def _back_to_training(self, took_s: float) -> None:
        if took_s > SLOW_S:
            self.reporter.phase("train", self.step, self.resolved["total_steps"], "steps")

    def _tell_position(self) -> None:
        self.reporter.step, self.reporter.tokens = self.step, self.tokens


def _finite(value: Any) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) else None


def versions() -> dict:
    import platform

    return {"python": platform.python_version(), "torch": torch.__version__, "minimind": minimind.__version__}
