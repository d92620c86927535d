"""What every ``auto`` became, frozen before step 1, and what a later attempt may differ in.

``resolved.json`` lies in the run directory; an attempt that was allowed to change something writes its own into
``attempts/{n}/``. Everything here is plain data, so that rank 0 can send it to the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

from minimind.config import HARMLESS_KEYS, RunConfig, TrainConfig, spread_rows, stage_class
from minimind.errors import ConfigError, ResumeError
from minimind.presets import ModelConfig, Preset
from minimind.run_dir import AttemptDir, RunDir, read_json, write_json
from minimind.tokenizer import Tokenizer

RESOLVED_VERSION = 1
#: what must not change silently between attempts, with the words of the refusal
GUARDED = {
    "world_size": "the number of ranks", "data_fingerprint": "the training data", "device": "the kind of device",
    "dtype": "the arithmetic (dtype)", "attention": "the attention kernel", "use_compile": "torch.compile",
    "rows": "the number of training rows", "base": "the base checkpoint", "teacher": "the teacher",
}
#: options that set the number of steps
BUDGET_KEYS = ("epochs", "max_steps", "max_minutes", "batch_size", "accumulation_steps", "batch_tokens", "max_seq_len")
#: options that set the rows of an optimizer step
ROW_KEYS = ("batch_size", "accumulation_steps", "batch_tokens")
#: never acceptable: the weights would mean something else
FIXED = {"tokenizer_fingerprint": "the tokenizer", "model": "the shape of the model"}
#: options that set the shape of adapters, which are the weights of their run
ADAPTER_KEYS = ("lora_rank", "lora_targets")
#: seconds of expected training from which torch.compile is worth its start. It takes about half a minute on a CPU and
#: makes steps some 5 % faster, which pays back after about ten minutes; on a GPU steps gain much more.
COMPILE_PAYS_S = {"cpu": 15 * 60.0, "cuda": 3 * 60.0}
#: shorter runs are over before a measured step could tell
COMPILE_MIN_STEPS = 200


def semantic_config(config: RunConfig) -> dict:
    """The options that decide what is learnt."""
    return {k: v for k, v in config.model_dump(mode="json").items() if k not in HARMLESS_KEYS}


def fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def budget_steps(config: TrainConfig, steps_per_epoch: int, s_per_step: float | None) -> int | None:
    """Optimizer steps of the run; ``None`` while ``--max_minutes`` waits for a measured step."""
    limits = []
    if config.max_steps is not None:
        limits.append(config.max_steps)
    if config.max_minutes is not None:
        if s_per_step is None:
            return None
        limits.append(max(1, int(config.max_minutes * 60 / s_per_step)))
    return min(limits) if limits else steps_per_epoch * config.epochs


def share_rows(rows_per_step: int, batch_size: int, accumulation_steps: int, world_size: int) -> tuple[int, int]:
    """``(batch_size, accumulation_steps)`` with which ``world_size`` ranks make steps of ``rows_per_step`` rows.

    Accumulation is changed first, then the batch size. Raises ``ResumeError`` where neither divides.
    """
    if rows_per_step % (batch_size * world_size) == 0:
        return batch_size, rows_per_step // (batch_size * world_size)
    if rows_per_step % (accumulation_steps * world_size) == 0:
        return rows_per_step // (accumulation_steps * world_size), accumulation_steps
    if rows_per_step % world_size == 0:
        return rows_per_step // world_size, 1
    raise ResumeError(f"{rows_per_step} rows per optimizer step cannot be shared by {world_size} ranks.",
                      hint="Continue with a number of ranks that divides it.")


def compile_pays(device: str, expected_s: float) -> tuple[bool, str]:
    """``(whether to compile, reason)`` for a run that trains for about ``expected_s`` seconds without it."""
    least = COMPILE_PAYS_S.get(device, math.inf)
    return expected_s > least, (f"about {expected_s / 60:.3g} minutes of training; it pays from {least / 60:g} on")


def check_compile(resolved: dict, missing: str | None) -> None:
    """Raises ``ConfigError`` where the run is compiled and the machine lacks what that needs (``missing``)."""
    if resolved["use_compile"] and missing is not None:
        raise ConfigError([{"field": "use_compile", "message": f"torch.compile cannot work here: {missing} was not "
                                                               "found.",
                            "hint": "Install it (Debian and Ubuntu: apt install g++ python3-dev), or leave use_compile "
                                    "out."}])


def decide_compile(config: TrainConfig, resolved: dict, missing: str | None,
                   measure: Callable[[], float]) -> tuple[bool, str]:
    """What ``use_compile`` auto becomes, in the first attempt. ``missing``: what the machine lacks for it.
    ``measure``: seconds of one step without it, asked for only where it could matter."""
    if missing is not None:
        return False, f"{missing} was not found"
    total = resolved["total_steps"]
    if total is None:
        assert config.max_minutes is not None
        return compile_pays(resolved["device"], config.max_minutes * 60)
    if total < COMPILE_MIN_STEPS:
        return False, f"{total} steps are over before it would pay"
    return compile_pays(resolved["device"], total * measure())


def intervals(config: TrainConfig, total_steps: int) -> dict:
    """Steps between evaluations, samples and saves. 0 is never; ``save_interval`` None saves by the clock."""
    tenth = max(1, math.ceil(total_steps / 10))
    return {"save_interval": config.save_interval,
            "eval_interval": tenth if config.eval_interval is None else config.eval_interval,
            "sample_interval": tenth if config.sample_interval is None else config.sample_interval}


def resolve(config: TrainConfig, *, preset: Preset, model: dict, world_size: int, device: str, dtype: str,
            dtype_reason: str, attention: tuple[str, str], threads: int, rows: int, data_fingerprint: str,
            tokenizer_fingerprint: str, base_weights: str | None, teacher_weights: str | None, old: dict | None,
            allow_changes: bool) -> dict:
    """Everything that is decided now, except ``total_steps`` and ``use_compile`` where they wait for a measured step.

    ``old``: what the run has used so far. Rows per optimizer step never change with the number of ranks, threads
    of a rank stay what they were (sums are rounded by them), the number of steps stays unless options changed it.
    """
    batch_size, accumulation, rows_per_step = config.step_shape(preset, world_size)
    semantic = semantic_config(config)
    same_world = old is not None and old["world_size"] == world_size
    rows_kept = old is not None and all(old["config"].get(k) == semantic[k] for k in ROW_KEYS)
    if rows_kept and not same_world and allow_changes:
        rows_per_step = old["rows_per_step"]
        if config.batch_tokens is None:
            batch_size, accumulation = share_rows(rows_per_step, old["batch_size"], old["accumulation_steps"],
                                                  world_size)
        else:
            batch_size, accumulation = spread_rows(rows_per_step, config.batch_size or preset.batch_size, world_size)
    elif rows_kept and same_world:
        batch_size, accumulation, rows_per_step = old["batch_size"], old["accumulation_steps"], old["rows_per_step"]
    elif rows_kept:  # another number of ranks, which will be refused
        batch_size, accumulation = old["batch_size"], old["accumulation_steps"]
    steps_per_epoch = -(-rows // rows_per_step)
    budget_kept = old is not None and all(old["config"].get(k) == semantic[k] for k in BUDGET_KEYS) and (
        old["data_fingerprint"] == data_fingerprint or config.max_minutes is not None or config.max_steps is not None)
    total = old["total_steps"] if old is not None and budget_kept else budget_steps(config, steps_per_epoch, None)
    compiled, compile_reason = config.use_compile, "asked for"
    if compiled is None and old is not None:
        compiled, compile_reason = old["use_compile"], old.get("compile_reason", "as before")
    return {
        "version": RESOLVED_VERSION, "stage": config.stage_name, "config": semantic, "preset": preset.name,
        "model": model, "parameters": ModelConfig.from_dict(model).num_parameters(),
        "max_seq_len": config.max_seq_len or preset.max_seq_len, "batch_size": batch_size,
        "accumulation_steps": accumulation, "rows_per_step": rows_per_step, "rows": rows,
        "steps_per_epoch": steps_per_epoch, "total_steps": total,
        "learning_rate": config.learning_rate or preset.learning_rate[config.stage_name],
        "dtype": dtype, "dtype_reason": dtype_reason, "attention": attention[0], "attention_reason": attention[1],
        "use_compile": compiled, "compile_reason": compile_reason, "device": device, "world_size": world_size,
        "threads_per_rank": old["threads_per_rank"] if old is not None and same_world else threads,
        "data_fingerprint": data_fingerprint, "tokenizer_fingerprint": tokenizer_fingerprint, "base": base_weights,
        "teacher": teacher_weights,
    }


def of_tokenizer(config: RunConfig, made: Path) -> dict:
    """As ``resolve``, for the stage that has neither weights nor steps. ``made``: the tokenizer's directory."""
    tokenizer = Tokenizer.load(made)
    return {"version": RESOLVED_VERSION, "stage": config.stage_name, "config": semantic_config(config),
            "vocab_size": tokenizer.vocab_size, "tokenizer_fingerprint": tokenizer.fingerprint, "device": "cpu",
            "world_size": 1, "total_steps": None}


def previous(run_dir: RunDir, attempt: int | None = None) -> dict | None:
    """What the newest attempt (before ``attempt``) ran with, or ``None`` where there was none yet."""
    for earlier in reversed(run_dir.attempts()):
        if (attempt is None or earlier.number < attempt) and (found := _read(earlier.resolved)) is not None:
            return found
    return _read(run_dir.resolved)


def _read(path: object) -> dict | None:
    value = read_json(path)  # type: ignore[arg-type]
    return value if isinstance(value, dict) and value.get("version") == RESOLVED_VERSION else None


def differences(old: dict, new: dict) -> list[str]:
    """Sentences' middles: what is not as it was, options first."""
    found = []
    before, now = _with_defaults(old), _with_defaults(new)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            found.append(f"{key} was {before.get(key)} and is {now.get(key)} now")
    for key, words in GUARDED.items():
        if old.get(key) != new.get(key):
            if key == "rows" and old.get("data_fingerprint") != new.get("data_fingerprint"):
                continue  # follows from the data
            found.append(f"{words} changed" if key in ("data_fingerprint", "base", "teacher") else
                         f"{words} was {old.get(key)} and is {new.get(key)} now")
    return found


def _with_defaults(resolved: dict) -> dict:
    """The options of a resolution; those that an older version of the program did not have were at their defaults."""
    fields = stage_class(resolved["stage"]).model_fields
    defaults = {name: info.default for name, info in fields.items() if name not in HARMLESS_KEYS}
    return defaults | {k: v for k, v in resolved.get("config", {}).items() if k not in HARMLESS_KEYS}


def check_same(old: dict, new: dict, *, allow_changes: bool) -> list[str]:
    """The differences, once they are allowed. Raises ``ResumeError`` where they are not."""
    fixed = [words for key, words in FIXED.items() if _fixed_value(old, key) != _fixed_value(new, key)]
    if old["config"].get("optimizer") != new["config"].get("optimizer"):  # its moments would mean nothing
        fixed.append("the optimizer")
    if any(old["config"].get(key) != new["config"].get(key) for key in ADAPTER_KEYS):
        fixed.append("the shape of the adapters")
    if fixed:
        raise ResumeError(f"This run cannot be continued: {fixed[0]} is not the one it was started with.",
                          hint="Start a new run, with this one's checkpoint as --from_weight if the shape fits.")
    found = differences(old, new)
    if found and not allow_changes:
        raise ResumeError(f"This run cannot be continued as it was: {'; '.join(found)}.",
                          hint="Add --allow_changes (resume with allow_changes) to accept this; the result will no "
                               "longer be the one of an uninterrupted run.")
    return found


def _fixed_value(resolved: dict, key: str) -> object:
    """A model's shape is compared with all its fields: an older version of the program knew fewer."""
    value = resolved.get(key)
    return ModelConfig.from_dict(value) if key == "model" and value else value


def freeze(run_dir: RunDir, attempt: AttemptDir, resolved: dict, changed: bool) -> None:
    """Write ``resolved`` where it belongs: once into the run, and into the attempt where it differs."""
    if _read(run_dir.resolved) is None:
        write_json(run_dir.resolved, resolved)
    elif changed:
        write_json(attempt.resolved, resolved)


def check_positions(max_seq_len: int, max_positions: int) -> None:
    if max_seq_len > max_positions:
        raise ConfigError([{"field": "max_seq_len", "message": f"max_seq_len {max_seq_len} is longer than the model's "
                                                               f"{max_positions} positions.",
                            "hint": f"Choose at most {max_positions}."}])
