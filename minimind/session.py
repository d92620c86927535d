"""One rank's life, from the run directory to the exit code; every way out leaves a verdict in ``result.json``."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from minimind import lora
from minimind import resolve as resolution
from minimind.attention import choose_kernel
from minimind.checkpoint import FULL_DISK, SaveFailed, load_weights, remove_leftovers
from minimind.cli import Command
from minimind.config import LoraConfig, TrainConfig
from minimind.control import ControlReader
from minimind.data.mixture import Source, fingerprint
from minimind.device import choose_device, choose_dtype, make_repeatable, missing_for_compile
from minimind.distributed import World, threads_per_rank
from minimind.errors import USER_ERROR, ConfigError, DiskFullError, MiniMindError, class_of_words
from minimind.evaluation import HeldOut
from minimind.events import EventWriter
from minimind.job import CRASH, Job, job_of, open_job
from minimind.manifest import Manifest
from minimind.metrics import Reporter, Wandb, import_wandb, send_output_to, silent
from minimind.prepare import Materials, Prepared
from minimind.presets import PRESETS
from minimind.run_dir import AttemptDir, RunDir
from minimind.samples import Samples
from minimind.stages.base import Setup, Stage
from minimind.stages.distill import Distill
from minimind.stages.dpo import Dpo
from minimind.stages.lora import Lora, stand_on
from minimind.stages.pretrain import Pretrain
from minimind.stages.report import in_words
from minimind.stages.sft import Sft
from minimind.stages.tokenizer import run as make_tokenizer
from minimind.stopping import SignalFlag, Stopper, StopRequested, Superseded
from minimind.tokenizer import Tokenizer
from minimind.trainer import Trainer, Verdict

TRAINING_STAGES: dict[str, Stage] = {s.name: s for s in (Pretrain(), Sft(), Lora(), Dpo(), Distill())}
OTHER_RANK_WAIT_S = 2.0
#: what the system says of a path that cannot be what it was given for
BAD_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
             errno.ENAMETOOLONG)


class Session:
    def __init__(self, command: Command):
        self.command = command
        self.flag = SignalFlag().install()
        self.world = World()
        self.reporter = silent()
        self.job: Job | None = None
        self.has_begun = False  # to train

    def run(self) -> int:
        try:
            self.world = World.from_environment()
            self._open()
            assert self.job is not None
            if self.job.finished:
                return self._already_completed(self.job)
            verdict = self._train(self.job) if isinstance(self.job.config, TrainConfig) else \
                self._make_tokenizer(self.job)
            return self._end(self.job, verdict)
        except StopRequested as stop:
            return self._stopped_early(stop)
        except Superseded as error:
            self._complain(str(error))
            return USER_ERROR
        except MiniMindError as error:
            return self._failed(error.as_dict(), USER_ERROR, str(error))
        except SaveFailed as error:
            return self._failed(DiskFullError(str(error), hint="Free some space and resume.").as_dict(),
                                USER_ERROR, str(error))
        except OSError as error:
            if error.errno in BAD_PLACE and error.filename and not self.has_begun and self.command.attempt is None:
                wrong = ConfigError([{"field": "", "message": f"{error.filename} cannot be used: {error.strerror}.",
                                      "hint": "Choose another place."}])
                return self._failed(wrong.as_dict(), USER_ERROR, str(wrong))
            if error.errno not in FULL_DISK:
                return self._crashed(error)
            return self._failed(DiskFullError("The disk is full.", hint="Free some space and resume.").as_dict(),
                                USER_ERROR, "The disk is full.")
        except Exception as error:
            return self._crashed(error)
        finally:
            self.reporter.close()
            self.world.close()
            if self.job is not None and self.job.lock is not None:
                self.job.lock.release()

    # -- before training ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Rank 0 finds the run and tells the others."""
        if not self.world.is_main:
            message = self.world.hear("job")
            if message.get("error"):
                sys.exit(USER_ERROR)
            self.job = job_of(message, self.command)
            if self.job.external:
                send_output_to(self.job.attempt.log(self.world.rank))
            elif not self.job.finished:
                self._note(f"Rank {self.world.rank} of {self.world.size}.")
            return
        if self.command.attempt is not None and self.command.out is not None:
            send_output_to(self.command.out / "attempts" / str(self.command.attempt) / "logs" / "rank0.log")
        try:
            self.job = job = open_job(self.command)
        except MiniMindError as error:
            self.world.tell("job", {"error": error.message})
            raise
        self.world.tell("job", job.as_dict())
        if job.finished:
            return
        self.reporter = Reporter(EventWriter(job.attempt.events, job.attempt.number),
                                 log=None if job.external else job.attempt.log(0))
        if job.resume_from is not None:
            manifest = Manifest.read(job.resume_from)
            self.reporter.step, self.reporter.tokens = manifest.step, manifest.tokens
        self.reporter.event("state", {"resumed_from_step": self.reporter.step})
        self.reporter.say(f"Run directory: {job.run_dir.path}")
        if job.resume_from is not None:
            self.reporter.log(f"Resuming from step {self.reporter.step} ({job.resume_from.name}).")
        for note in job.notes:
            self.reporter.warn(note)
        remove_leftovers(job.run_dir)

    def _stopper(self, job: Job) -> Stopper:
        if not self.world.is_main:
            return Stopper(self.flag, None)
        return Stopper(self.flag, ControlReader(job.attempt.control), job.run_dir.attempt(job.attempt.number + 1).path)

    def _prepare(self, job: Job, stopper: Stopper, device: torch.device) -> Prepared:
        """Rank 0 prepares data and tokenizer, however long it takes; the others wait for its word."""
        if not self.world.is_main:
            message = self.world.hear("prepared")
            if "prepared" not in message:
                sys.exit(int(message["exit"]))
            return Prepared(**message["prepared"])
        exit_code = CRASH
        try:
            materials = Materials(job.config, job.cache_dir, self.reporter, stopper,
                                  has_gpu=device.type == "cuda", resume_from=job.resume_from)
            prepared = materials.prepare()
            if isinstance(job.config, LoraConfig):
                prepared = stand_on(job.config, job.run_dir, prepared, job.resume_from)
            self.world.tell("prepared", {"prepared": prepared.as_dict()})
            return prepared
        except StopRequested:
            exit_code = 0
            raise
        except MiniMindError:
            exit_code = USER_ERROR
            raise
        finally:
            if self.world.heard("prepared") is None:
                self.world.tell("prepared", {"exit": exit_code})

    def _make_tokenizer(self, job: Job) -> Verdict:
        if self.world.is_main:
            materials = Materials(job.config, job.cache_dir, self.reporter, self._stopper(job), has_gpu=False)
            made = make_tokenizer(materials, job.run_dir, self.reporter)
            resolution.freeze(job.run_dir, job.attempt, resolution.of_tokenizer(job.config, made), changed=False)
        return Verdict("completed", 0, None)

    # -- training -----------------------------------------------------------------------------------------

    def _train(self, job: Job) -> Verdict:
        config = job.config
        assert isinstance(config, TrainConfig)
        device = choose_device(config.device, self.world.local_rank)
        dtype, dtype_reason = choose_dtype(config.dtype, device)
        choose_kernel(config.attention, device, dtype)  # says now what is missing
        make_repeatable(device)
        self._warn_about_options(config)
        if config.use_wandb and self.world.is_main:
            import_wandb()  # its absence is better said now than after the data is prepared
        stopper = self._stopper(job)
        prepared = self._prepare(job, stopper, device)
        self.world.connect(device)
        self.reporter.phase("compile", message="Building the model.")

        stage = TRAINING_STAGES[config.stage_name]
        tokenizer = Tokenizer.load(prepared.tokenizer)
        sources = [Source.open(described) for described in prepared.sources]
        preset = PRESETS[prepared.preset]
        max_seq_len = config.max_seq_len or preset.max_seq_len
        resolution.check_positions(max_seq_len, prepared.model["max_position_embeddings"])
        data = stage.data(sources, max_seq_len, config.eval_fraction)
        self.reporter.say(line := in_words(data.report))
        self.reporter.event("log", {"message": line, "data": data.report})
        for warning in data.warnings:
            self.reporter.warn(warning)

        old = resolution.previous(job.run_dir, job.attempt.number)
        resolved = resolution.resolve(
            config, preset=preset, model=prepared.model, world_size=self.world.size, device=device.type,
            dtype=str(dtype).removeprefix("torch."), dtype_reason=dtype_reason,
            attention=choose_kernel(config.attention, device, dtype, prepared.model["head_dim"],
                                    before=old and old.get("attention")),
            threads=threads_per_rank(self.world, external=job.external), rows=len(data.train),
            data_fingerprint=fingerprint(sources), tokenizer_fingerprint=tokenizer.fingerprint,
            base_weights=prepared.base_weights, teacher_weights=prepared.teacher_weights, old=old,
            allow_changes=job.allow_changes)
        changes = resolution.check_same(old, resolved, allow_changes=job.allow_changes) if old else []
        missing = missing_for_compile(device)
        resolution.check_compile(resolved, missing)
        for change in changes:
            self.reporter.warn(f"Continuing although {change}.")
        torch.set_num_threads(resolved["threads_per_rank"])
        torch.manual_seed(config.seed)

        lineage = {"base": prepared.base, "base_weights": prepared.base_weights, "world": prepared.world}
        held_out = HeldOut(data.held_out, tokenizer, resolved["batch_size"], config.seed) if data.held_out else None
        if (config.early_stop or config.save_best) and (held_out is None or config.eval_interval == 0):
            self.reporter.warn("Nothing is evaluated, so early_stop and save_best have no effect: hold more documents "
                               "out (eval_fraction), and leave eval_interval above 0.")
        trainer = Trainer(config, resolved, run_dir=job.run_dir, attempt=job.attempt.number, world=self.world,
                          reporter=self.reporter, stopper=stopper, tokenizer=tokenizer, train_rows=data.train,
                          held_out=held_out, samples=Samples(stage, tokenizer, prepared.languages), lineage=lineage,
                          tidies=not job.external)
        if trainer.model.adapter is not None:
            load_weights(trainer.model, job.run_dir.base)
            self.reporter.log(lora.in_words(trainer.model))
        elif prepared.base and job.resume_from is None:
            load_weights(trainer.model, Path(prepared.base))
        trainer.minimise(stage.objective(Setup(config, trainer, sources, data, prepared, job.cache_dir,
                                               job.resume_from)))
        if resolved["use_compile"] is None:
            compiled, reason = resolution.decide_compile(config, resolved, missing, trainer.rehearsal.glance)
            resolved |= {"use_compile": compiled, "compile_reason": reason}
        trainer.get_ready()
        if resolved["total_steps"] is None:
            s_per_step = trainer.rehearsal.measure()
            resolved["total_steps"] = resolution.budget_steps(config, resolved["steps_per_epoch"], s_per_step)
            resolved["s_per_step"] = s_per_step
            self.reporter.log(f"A step takes {s_per_step:.3f} s: {config.max_minutes:g} minutes are "
                              f"{resolved['total_steps']} steps.")
        if job.resume_from is not None:
            trainer.load(job.resume_from)
        if self.world.is_main:
            resolution.freeze(job.run_dir, job.attempt, resolved, changed=bool(changes))
            if config.use_wandb:
                self.reporter.wandb = Wandb(resolved["config"], job.run_dir.path, config.wandb_project,
                                            config.wandb_run_name)
            self._describe(config, resolved)
        self.reporter.event("state", {"status": "ready", "resumed_from_step": trainer.step})
        self.has_begun = True
        return trainer.run()

    def _warn_about_options(self, config: TrainConfig) -> None:
        if config.wandb_project and not config.use_wandb:
            self.reporter.warn("--wandb_project has no effect without --use_wandb.")

    def _describe(self, config: TrainConfig, resolved: dict) -> None:
        self.reporter.log(
            f"{resolved['parameters']:,} parameters ({resolved['preset']}), {resolved['rows']:,} rows of "
            f"{resolved['max_seq_len'] * config.row_sequences} tokens, {resolved['rows_per_step']} rows a step, "
            f"{resolved['total_steps']} steps, {resolved['device']} x {resolved['world_size']} with "
            f"{resolved['threads_per_rank']} threads, "
            f"{resolved['dtype']} ({resolved['dtype_reason']}), attention {resolved['attention']} "
            f"({resolved['attention_reason']}), {'compiled' if resolved['use_compile'] else 'not compiled'} "
            f"({resolved['compile_reason']}).")

    # -- ways out -----------------------------------------------------------------------------------------

    def _already_completed(self, job: Job) -> int:
        if self.world.is_main:
            print(f"The run {job.run_dir.path} is completed; there is nothing to resume.", flush=True)
            if job.external:
                step = Manifest.read(job.resume_from).step if job.resume_from else 0
                job.attempt.write_result("completed", step, str(job.resume_from) if job.resume_from else None)
        return 0

    def _end(self, job: Job, verdict: Verdict) -> int:
        if self.world.is_main:
            self._verdict(job, verdict.status, verdict.step, verdict.checkpoint)
        return 0

    def _verdict(self, job: Job, status: str, step: int, checkpoint: Path | None) -> None:
        self.reporter.event("state", {"status": status})
        words = {"completed": "Completed", "paused": "Paused", "stopped": "Stopped"}[status]
        self.reporter.say(f"{words} at step {step}." + (f" Checkpoint: {checkpoint}" if checkpoint else ""))
        if status == "paused" and not job.external:
            self.reporter.say(f"Continue with: {job.resume_command(self.world.size)}")
        job.attempt.write_result(status, step, str(checkpoint) if checkpoint else None)

    def _stopped_early(self, stop: StopRequested) -> int:
        """A wish before step 1: nothing new to save."""
        assert self.job is not None
        if self.world.is_main:
            status = "paused" if stop.wish.command == "pause" else "stopped"
            self._verdict(self.job, status, self.reporter.step, self.job.resume_from)
        return 0

    def _failed(self, error: dict, code: int, sentence: str) -> int:
        """Leave the verdict and the sentence. ``error``: class, message, hint."""
        if not self.world.is_main:
            self.world.tell(f"error-{self.world.rank}", {"error": error})
            self._complain(sentence)
            return code
        self.reporter.event("error", error)
        self._complain(sentence)
        attempt = self._attempt_for_verdict()
        if attempt is not None:
            checkpoint = self._newest_name()
            attempt.write_result("failed", self.reporter.step, checkpoint, error)
        return code

    def _complain(self, text: str) -> None:
        """To stderr and the rank's log, both of which may be on a full disk: the verdict is still to be written."""
        with contextlib.suppress(OSError):
            print(f"error: {text}", file=sys.stderr, flush=True)
        self._note(f"error: {text}")

    def _note(self, text: str) -> None:
        """Into this rank's log. (A job runner's ranks print there anyway.)"""
        if self.job is None or self.job.external:
            return
        with contextlib.suppress(OSError), open(self.job.attempt.log(self.world.rank), "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _attempt_for_verdict(self) -> AttemptDir | None:
        """The attempt's directory, also where the job could not be opened but a runner made one."""
        if self.job is not None:
            return self.job.attempt
        if self.command.attempt is not None and self.command.out is not None:
            attempt = RunDir(self.command.out).attempt(self.command.attempt)
            return attempt if attempt.path.is_dir() else None
        return None

    def _newest_name(self) -> str | None:
        if self.job is None:
            return None
        paths = self.job.run_dir.checkpoint_dirs()
        return str(paths[0]) if paths else None

    def _crashed(self, error: Exception) -> int:
        """A crash, by its class; another rank's own words are better than our broken connection to it."""
        self._complain(traceback.format_exc())
        found = _classify(error)
        if self.world.is_main and self.world.is_parallel and found["class"] == "NCCL":
            time.sleep(OTHER_RANK_WAIT_S)  # a dying rank may still say why
            for rank in range(1, self.world.size):
                message = self.world.heard(f"error-{rank}")
                if message is not None and message["error"]["class"] != "NCCL":
                    found = message["error"]
        return self._failed(found, CRASH, found["message"])


def _classify(error: Exception) -> dict:
    """Class, message and hint of an exception that is nobody's mistake."""
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    said = class_of_words(f"{type(error).__name__}: {error}") if isinstance(error, (RuntimeError, OSError)) else None
    if isinstance(error, torch.OutOfMemoryError) or said == "OOM_CUDA":
        return {"class": "OOM_CUDA", "message": "The GPU ran out of memory.",
                "hint": "Use a smaller batch_size with more accumulation_steps, or a smaller max_seq_len."}
    if isinstance(error, MemoryError) or said == "OOM_HOST":
        return {"class": "OOM_HOST", "message": "The machine ran out of memory.",
                "hint": "Use a smaller batch_size with more accumulation_steps, or a smaller model."}
    if isinstance(error, torch.AcceleratorError) or said == "GPU":
        return {"class": "GPU", "message": f"The GPU reported an error ({text}).", "hint": "Try another GPU."}
    lost = isinstance(error, RuntimeError) and "timed out" in str(error).lower()
    if isinstance(error, (dist.DistError, ConnectionError)) or said == "NCCL" or lost:
        return {"class": "NCCL", "message": f"The ranks lost each other ({text}).",
                "hint": "A rank ended or hung; its log says why. The run can be resumed."}
    return {"class": "UNKNOWN", "message": f"Training crashed ({text}).", "hint": "The log of the attempt says more."}
