"""The one training loop. A stage brings rows and prompts; everything else is the same for all of them.

A step is an optimizer step over one *window* of ``rows_per_step`` rows: micro-steps on every rank, gradients
averaged over the real target tokens of the whole window and all ranks, clipped, applied. What a step computes
depends on the step's number and the weights alone, so a resumed run is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import minimind
from minimind import resolve as resolution
from minimind.attention import Segments
from minimind.checkpoint import (
    SaveFailed,
    apply_retention,
    load_training_state,
    load_weights,
    random_state,
    save_checkpoint,
    set_random_state,
)
from minimind.config import TrainConfig
from minimind.control import Wish
from minimind.data.packing import IGNORE, Rows
from minimind.data.sampler import Sampler, Window, micro_batches
from minimind.distributed import World
from minimind.errors import MiniMindError
from minimind.evaluation import HeldOut
from minimind.manifest import Manifest
from minimind.metrics import Reporter
from minimind.model import MiniMindForCausalLM
from minimind.optim import Optimizer, learning_rate_at
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir
from minimind.samples import Samples
from minimind.stopping import Stopper, StopRequested, agreed, refuse_superseded
from minimind.tokenizer import Tokenizer

MAX_SKIPPED_STEPS = 10  # in a row, before a run whose numbers are not finite is given up
SAVE_EVERY_S = 600.0  # without --save_interval
MEASURE_S = 3.0  # of throwaway steps for --max_minutes
MEASURE_STEPS = (3, 20)
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


@dataclass
class Step:
    """What one window came to, equal on all ranks. ``loss`` in nats per target token."""

    loss: float
    grad_norm: float
    wish: Wish
    save_due: bool
    finite: bool


class Trainer:
    """Owns the model, the optimizer and the position in the data."""

    def __init__(self, config: TrainConfig, resolved: dict, *, run_dir: RunDir, attempt: int, world: World,
                 reporter: Reporter, stopper: Stopper, tokenizer: Tokenizer, train_rows: Rows,
                 held_out: HeldOut | None, samples: Samples, lineage: dict):
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
        self.sampler = Sampler(len(train_rows), resolved["rows_per_step"], config.seed)
        self.dtype = getattr(torch, resolved["dtype"])

        self.model = MiniMindForCausalLM(ModelConfig.from_dict(resolved["model"])).to(world.device)
        if config.use_compile:
            for layer in self.model.model.layers:
                layer.mlp.compile(dynamic=True)
        self.optimizer = Optimizer(self.model, config.optimizer, weight_decay=config.weight_decay,
                                   beta2=config.adam_beta2)
        self.scaler = self._new_scaler()
        self.parallel: torch.nn.Module = self.model
        if world.is_parallel:
            self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)

        self.step = 0
        self.tokens = 0
        self.loss: float | None = None
        self.eval_loss: float | None = None  # of this very step
        self.skipped = 0  # steps in a row whose numbers were not finite
        self.saved: Path | None = None  # the newest checkpoint of the run
        self._save_s = self._eval_s = 0.0
        self._saved_at = time.monotonic()

    def _new_scaler(self) -> torch.amp.GradScaler | None:
        """float16 alone needs its loss scaled."""
        if self.dtype != torch.float16:
            return None
        return torch.amp.GradScaler(self.world.device.type, init_scale=2.0**14)

    # -- before step 1 ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Two throwaway backward passes: DDP regroups its gradient buckets after the first. Always, so that a
        fresh and a resumed process sum gradients in one order. Nothing of them is left."""
        for _ in range(2):
            self._nll(self.parallel, self._batch(self.rows, np.zeros(0, dtype=np.int64))).backward()
        self.optimizer.zero_grad()

    def measure(self) -> float:
        """Seconds of one step, from throwaway steps; weights, optimizer and random state are put back."""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        rng = random_state(self.world.device)
        fewest, most = MEASURE_STEPS
        times: list[float] = []
        while len(times) <= fewest or (len(times) <= most and sum(times[1:]) < MEASURE_S):
            start = time.perf_counter()
            done = self._accumulate(self.sampler.window(1 + len(times) % self.sampler.steps_per_epoch))
            self.optimizer.step(0.0, self.scaler)
            if self.scaler is not None:
                self.scaler.update()
            self.optimizer.zero_grad()
            refuse_superseded(done.wish)
            if done.wish.command != "none":
                raise StopRequested(done.wish)
            times.append(self.world.sum([time.perf_counter() - start if self.world.is_main else 0.0])[0])
        self.model.load_state_dict(weights)
        self.optimizer.forget()
        self.scaler = self._new_scaler()
        set_random_state(rng, self.world.device)
        return sum(times[1:]) / len(times[1:])  # the first one warms up

    def load(self, checkpoint: Path) -> None:
        """Continue from a verified checkpoint."""
        load_weights(self.model, checkpoint)
        optimizer, state, rng = load_training_state(checkpoint, self.world)
        self.optimizer.load_state_dict(optimizer)
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if rng is not None:
            set_random_state(rng, self.world.device)
        self.step, self.tokens = state["step"], state["tokens"]
        self.loss, self.skipped = state["loss"], state["skipped"]
        self.saved = checkpoint

    # -- the loop -----------------------------------------------------------------------------------------

    def run(self) -> Verdict:
        """Train to the last step or to a granted wish. Raises ``DivergedError``."""
        total = self.resolved["total_steps"]
        every = resolution.intervals(self.config, total)
        self._tell_position()
        self.reporter.phase("train", self.step, total, "steps", message=f"Training: {total} steps.")
        trained_s, tokens_before = 0.0, self.tokens  # since the last metrics; saves and evaluations do not count
        while self.step < total:
            window = self.sampler.window(self.step + 1)
            start = time.perf_counter()
            done = self._train(window, total)
            refuse_superseded(done.wish)
            trained_s += time.perf_counter() - start
            self.step, self.loss, self.eval_loss = window.step, done.loss, None
            self.tokens += int(self.rows.tokens[window.rows].sum())
            self._tell_position()
            last = self.step == total
            if last or self.step == 1 or self.step % self.config.log_interval == 0:
                speed = (self.tokens - tokens_before) / trained_s
                self.reporter.metrics({"loss": _finite(done.loss), "lr": self._learning_rate(self.step, total),
                                       "grad_norm": _finite(done.grad_norm), "tokens_per_s": round(speed, 1),
                                       "epoch": window.epoch}, total, last=last)
                trained_s, tokens_before = 0.0, self.tokens
            pausing = done.wish.command != "none"
            save_due = last or (self.step % every["save_interval"] == 0 if every["save_interval"] else done.save_due)
            if self.held_out and every["eval_interval"] and (
                    save_due or self.step % every["eval_interval"] == 0):
                self._evaluate()
            if every["sample_interval"] and (last or self.step % every["sample_interval"] == 0):
                self._speak()
            if last:
                return self._finish()
            if pausing and (verdict := self._grant(done.wish)):
                return verdict
            if save_due and not pausing:
                self._save_or_skip()
        return Verdict("completed", self.step, self.saved)

    def _train(self, window: Window, total: int) -> Step:
        """One optimizer step. A step whose numbers are not finite changes nothing and is counted."""
        done = self._accumulate(window)
        if done.finite:
            self.optimizer.step(self._learning_rate(window.step, total), self.scaler)
        if self.scaler is not None:
            self.scaler.update()
        self.optimizer.zero_grad()
        if done.finite:
            self.skipped = 0
        else:
            self.skipped += 1
            if self.scaler is None or self.skipped > 2:  # a scaler finds its scale by trying
                self.reporter.warn(f"Step {window.step} was skipped: its loss or gradient is not finite.")
            if self.skipped >= MAX_SKIPPED_STEPS:
                raise DivergedError(
                    f"The loss or the gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row (the last is step "
                    f"{window.step}).", hint="Start again with a smaller learning_rate, or from an earlier checkpoint.")
        return done

    def _accumulate(self, window: Window) -> Step:
        """Gradients of one window, averaged over its target tokens and clipped; equal on every rank."""
        batches = micro_batches(window.rows, self.resolved["batch_size"], self.world.rank, self.world.size)
        targets = max(1, int(self.rows.targets[window.rows].sum()))
        scale = self.world.size / targets  # DDP averages over ranks; we want the sum
        nats = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for number, rows in enumerate(batches):
            syncs = number == len(batches) - 1
            with nullcontext() if syncs or not self.world.is_parallel else self.parallel.no_sync():  # type: ignore
                nll = self._nll(self.parallel, self._batch(self.rows, rows))
                loss = nll * scale
                (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
            nats += nll.detach()
        if self.scaler is not None:
            for part in self.optimizer.parts.values():
                self.scaler.unscale_(part)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        due = self.world.is_main and time.monotonic() - self._saved_at > SAVE_EVERY_S
        # The one wait for the device in a step, and the one place where ranks agree on what comes next.
        total_nats, norms, code, signals, dues = self.world.sum([
            nats, norm, self.stopper.code() if self.world.is_main else 0, self.stopper.flag.raised, due])
        loss_mean, grad_norm = total_nats / targets, norms / self.world.size
        return Step(loss_mean, grad_norm, agreed(code, signals), dues > 0,
                    math.isfinite(loss_mean) and math.isfinite(grad_norm))

    def _batch(self, rows: Rows, numbers: np.ndarray) -> tuple[Tensor, Tensor, Segments]:
        """Rows as one stream: ids [1, N], targets [1, N], documents. No rows: one token that teaches nothing."""
        if len(numbers):
            tokens, targets, lengths = rows.read(numbers)
        else:
            tokens, targets, lengths = np.zeros(1, np.int64), np.full(1, IGNORE, np.int64), [1]
        device = self.world.device
        ids, labels = (torch.from_numpy(x)[None] for x in (tokens, targets))
        if device.type == "cuda":
            ids, labels = (x.pin_memory().to(device, non_blocking=True) for x in (ids, labels))
        return ids, labels, Segments(tuple(lengths), self.resolved["attention"])

    def _nll(self, model: torch.nn.Module, batch: tuple[Tensor, Tensor, Segments]) -> Tensor:
        """Summed cross entropy of a batch in nats."""
        ids, targets, segments = batch
        with torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return model(ids, segments=segments, targets=targets)

    def _learning_rate(self, step: int, total: int) -> float:
        warmup = round(self.config.warmup_fraction * total)
        return learning_rate_at(step, total, self.resolved["learning_rate"], warmup, self.config.min_lr_fraction)

    # -- what happens between steps -----------------------------------------------------------------------

    def _evaluate(self) -> None:
        assert self.held_out is not None
        start = time.perf_counter()
        if self._eval_s > SLOW_S:
            self.reporter.phase("eval", self.step, None, "steps")
        result = self.held_out.evaluate(lambda rows, batch: self._nll(self.model, self._batch(rows, batch)),
                                        self.world)
        self.eval_loss = result["eval_loss"]
        self.reporter.event("eval", result)
        self.reporter.wandb.log(result, self.step)
        self._eval_s = time.perf_counter() - start
        self._back_to_training(self._eval_s)

    def _speak(self) -> None:
        """Samples on rank 0; the others go on to the next collective and wait there."""
        if not self.world.is_main:
            return
        try:
            for index, (prompt, text) in enumerate(self.samples.speak(self.model)):
                self.reporter.event("sample", {"prompt": prompt, "text": text, "prompt_index": index})
        except MiniMindError as error:  # weights that are not finite: the loop has its own word on that
            self.reporter.warn(f"No sample at step {self.step}: {error.message}")

    def _finish(self) -> Verdict:
        """The last step's checkpoint must exist: a full disk is an error here."""
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
            lineage=self.lineage, versions=versions(), created_at=round(time.time(), 3))
        state = {"step": self.step, "tokens": self.tokens, "loss": _finite(self.loss), "skipped": self.skipped,
                 "scaler": self.scaler.state_dict() if self.scaler is not None else None,
                 "sampler": {"position": self.sampler.position_after(self.step), "seed": self.config.seed,
                             "rows": len(self.rows), "rows_per_step": resolved["rows_per_step"]},
                 "learning_rate": self._learning_rate(self.step, resolved["total_steps"]),
                 "total_steps": resolved["total_steps"]}
        self.saved = save_checkpoint(self.run_dir, self.world, manifest, self.model, self.optimizer.state_dict(),
                                     state, self.tokenizer)
        if self.world.is_main:
            self.reporter.event("checkpoint", {
                "path": f"checkpoints/{self.saved.name}", "bytes": manifest.bytes, "eval_loss": manifest.eval_loss,
                "loss": manifest.loss})
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
