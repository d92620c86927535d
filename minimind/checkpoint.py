"""Checkpoints: written aside, hashed, renamed into place; read only after their hashes were compared.

Order of a save (all ranks take part): directory aside -> every rank writes and fsyncs its files -> all agree that it
worked -> rank 0 writes the manifest -> rename -> fsync of the parent. A kill at any moment leaves either no
checkpoint or a whole one; what was written aside is removed by the next attempt. A checkpoint never changes once it
is there: the same step of the same attempt is not written twice.

Of a model with adapters (minimind/lora.py) the adapters alone are saved; what they stand on lies once in the run.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minimind.distributed import World
from minimind.errors import CheckpointError
from minimind.formats.adapters import BASE_PLACE, merged_checkpoint, read_adapter
from minimind.formats.hf_config import hf_config
from minimind.formats.huggingface import read_safetensors
from minimind.formats.peft import ADAPTER_FILE, read_peft, save_peft
from minimind.formats.tensors import check_fit, cleaned
from minimind.lora import adapter_weights, check_adapter, load_adapter, merged
from minimind.manifest import Manifest, damage_of, in_order, sha256_of
from minimind.model import MiniMindForCausalLM
from minimind.presets import ModelConfig
from minimind.retention import KEEP_ALL_BYTES, Saved, leftovers, remove, remove_all, superfluous
from minimind.run_dir import RunDir, fsync_dir, put_aside, read_json, write_json
from minimind.save_points import reached
from minimind.tokenizer import Tokenizer

WEIGHTS_FILE, OPTIMIZER_FILE, TRAINER_FILE, CONFIG_FILE = ("model.safetensors", "optimizer.pt", "trainer.json",
                                                           "config.json")
#: what the objective keeps (``Objective.state``), where it keeps anything
OBJECTIVE_FILE = "objective.safetensors"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: free space must exceed the expected size by this factor
SPACE_FACTOR = 1.2
#: less than this left after a failed write: the disk is why, whatever the writer says
NOTHING_FREE_BYTES = 1 << 20


class SaveFailed(Exception):
    """A checkpoint could not be written; the message is a sentence for the user. Training can go on."""


def random_state(device: torch.device) -> dict:
    """State of every generator of this rank, in types that ``torch.load(weights_only=True)`` reads."""
    version, numbers, gauss = random.getstate()
    state = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def save_checkpoint(run_dir: RunDir, world: World, manifest: Manifest, model: MiniMindForCausalLM, optimizer: dict,
                    trainer: dict, tokenizer: Tokenizer, objective: dict[str, Tensor] | None = None) -> Path:
    """Write one checkpoint; every rank calls this at the same step. Raises ``SaveFailed`` on all ranks or none.

    ``objective``: what the objective needs to go on, if anything.
    """
    final = run_dir.checkpoint(manifest.step, manifest.attempt)
    is_there = world.is_main and _is_whole(final)
    if not world.all_true(not is_there):  # training is repeatable: the same attempt was here before with these weights
        if world.is_main:
            manifest.files = Manifest.read(final).files
        return final
    aside = run_dir.checkpoints / f".tmp-{final.name}"
    problem = _begin(run_dir, aside, manifest.attempt, model, optimizer) if world.is_main else ""
    if world.all_true(not problem):
        hashes: dict[str, str] = {}
        try:
            if world.is_main:
                hashes = _write_main(aside, model, optimizer, trainer, tokenizer, objective or {})
            torch.save(random_state(world.device), aside / f"rng-rank{world.rank}.pt")
            _fsync(aside / f"rng-rank{world.rank}.pt")
        except (OSError, RuntimeError, SafetensorError) as error:
            problem = _sentence(error, aside)
        if world.all_true(not problem) and world.is_main:
            try:
                reached("before_manifest")
                manifest.seal(aside, hashes)
                fsync_dir(aside)
                reached("after_manifest")
                problem = _put_into_place(run_dir, aside, final, manifest.attempt)
            except OSError as error:
                problem = _sentence(error, aside)
    if not world.all_true(not problem):
        if world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise SaveFailed(problem or "Another rank could not write its part of the checkpoint.")
    return final


def _is_whole(final: Path) -> bool:
    try:
        return final.exists() and damage_of(final) is None
    except OSError:
        return False  # the write that follows says what is wrong, on all ranks


def _begin(run_dir: RunDir, aside: Path, attempt: int, model: MiniMindForCausalLM, optimizer: dict) -> str:
    """An empty directory to write in; what is in the way of a save, as a sentence, or nothing."""
    if _is_superseded(run_dir, attempt):
        return SUPERSEDED
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _check_space(run_dir, model, optimizer)
    except OSError as error:
        return _sentence(error, run_dir.path)
    except SaveFailed as error:
        shutil.rmtree(aside, ignore_errors=True)
        return str(error)
    return ""


def _write_main(aside: Path, model: MiniMindForCausalLM, optimizer: dict, trainer: dict,
                tokenizer: Tokenizer, objective: dict[str, Tensor]) -> dict[str, str]:
    """Rank 0's files, on the disk; the sha256 of the large ones, which are hashed while others are written."""
    with ThreadPoolExecutor(2) as pool:
        hashes: dict[str, Future[str]] = {}
        if model.adapter is None:
            name = WEIGHTS_FILE
            save_weights(model.named_weights(), aside / name)
        else:
            name = ADAPTER_FILE
            save_peft(aside, model.adapter, adapter_weights(model), BASE_PLACE)
        hashes[name] = pool.submit(sha256_of, aside / name)
        torch.save(optimizer, aside / OPTIMIZER_FILE)
        hashes[OPTIMIZER_FILE] = pool.submit(sha256_of, aside / OPTIMIZER_FILE)
        tokenizer.save(aside)
        if objective:
            save_weights(objective, aside / OBJECTIVE_FILE)
        reached("before_fsync")
        for path in aside.iterdir():
            _fsync(path)
        write_json(aside / TRAINER_FILE, trainer)
        write_json(aside / CONFIG_FILE, hf_config(model.config, tokenizer))
        reached("after_fsync")
        return {name: digest.result() for name, digest in hashes.items()}


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """``weights``: ``named_weights()`` of a model. The file is a function of them alone: in order, no metadata."""
    save_file({name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}, path)


SUPERSEDED = "A later attempt has taken the run over: this one writes nothing more."


def _is_superseded(run_dir: RunDir, attempt: int) -> bool:
    return run_dir.attempt(attempt + 1).path.exists()


def _put_into_place(run_dir: RunDir, aside: Path, final: Path, attempt: int) -> str:
    """Rename; what kept it from happening, as a sentence, or nothing."""
    if _is_superseded(run_dir, attempt):  # a process that was stopped for an hour goes on as if nothing had been
        return SUPERSEDED
    if final.exists():  # it was found to be damaged, so it is no checkpoint that could be lost
        put_aside(final, "corrupt")
    aside.rename(final)
    fsync_dir(final.parent)
    reached("after_rename")
    return ""


def _check_space(run_dir: RunDir, model: MiniMindForCausalLM, optimizer: dict) -> None:
    saved = model.parameters() if model.adapter is None else adapter_weights(model).values()
    expected = sum(p.numel() * p.element_size() for p in saved)
    expected += sum(v.numel() * v.element_size() for part in optimizer.values()
                    for state in part["state"].values() for v in state.values() if isinstance(v, Tensor))
    needed = int(expected * SPACE_FACTOR) + (1 << 20)
    free = shutil.disk_usage(run_dir.checkpoints).free
    if free < needed:
        raise SaveFailed(f"The disk is almost full: a checkpoint needs {_mb(needed)} and {_mb(free)} are free in "
                         f"{run_dir.checkpoints}.")


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sentence(error: Exception, place: Path) -> str:
    is_full = isinstance(error, OSError) and error.errno in FULL_DISK or "No space left" in str(error)
    if not is_full and not isinstance(error, OSError):  # torch only says that a write has failed
        is_full = shutil.disk_usage(place).free < NOTHING_FREE_BYTES
    if is_full:
        return "The disk is full: the checkpoint could not be written."
    return f"The checkpoint could not be written: {error}."


def remove_leftovers(run_dir: RunDir) -> None:
    """What killed attempts were writing or deleting. Only the attempt that holds the run calls this."""
    remove_all(leftovers(run_dir.checkpoints))


def apply_retention(run_dir: RunDir, total_steps: int, keep: int) -> list[Path]:
    """Delete what need not be kept (``minimind.retention``); returns what was deleted.

    For a training without a runner, which deletes only what its database knows. A file ``NAME.pin`` beside a
    checkpoint protects it.
    """
    found: list[Saved] = []
    for path in in_order(run_dir.checkpoint_dirs()):
        try:
            manifest = Manifest.read(path)
        except CheckpointError:
            continue  # not a checkpoint; nothing that resume would use either
        found.append(Saved(path, manifest.step, manifest.attempt, manifest.bytes, manifest.eval_loss))
    deleted = [s.path for s in superfluous(found, total_steps, keep, keep_all_bytes=KEEP_ALL_BYTES)
               if not s.path.with_name(f"{s.path.name}.pin").exists()]
    for path in deleted:
        remove(path)
    return deleted


def load_weights(model: MiniMindForCausalLM, directory: Path) -> None:
    """A whole model's. Raises ``CheckpointError`` where the file is missing, or names the first tensor that does not
    fit the model."""
    weights = cleaned(read_safetensors(directory / WEIGHTS_FILE), model.config.tie_word_embeddings)
    check_fit(weights, model.config, directory / WEIGHTS_FILE)
    model.load_weights(weights)


def load_learnt(model: MiniMindForCausalLM, directory: Path) -> None:
    """What a checkpoint of this model's training holds: the adapters of one that carries them, else the weights."""
    if model.adapter is None:
        load_weights(model, directory)
    else:
        load_adapter(model, read_peft(directory)[1], directory / ADAPTER_FILE)


def load_training_state(directory: Path, world: World) -> tuple[dict, dict, dict | None]:
    """``(optimizer state, trainer.json, this rank's random state)``; the last is None for another world size."""
    optimizer = torch.load(directory / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    trainer = read_json(directory / TRAINER_FILE)
    if not isinstance(trainer, dict):
        raise CheckpointError(f"{directory} has no readable {TRAINER_FILE}.", hint="Use another checkpoint.")
    path = directory / f"rng-rank{world.rank}.pt"
    rng = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    return optimizer, trainer, rng


def load_model(directory: Path | str, device: str | torch.device = "cpu",
               adapter: Path | str | None = None) -> tuple[MiniMindForCausalLM, Tokenizer]:
    """A verified checkpoint's model in float32 and its tokenizer. A lora checkpoint is its base with its adapters in
    the matrices; ``adapter`` (whatever ``formats.adapters.read_adapter`` knows) goes into them on top.

    Raises ``CheckpointError``.
    """
    directory = Path(directory)
    manifest = Manifest.read(directory)
    manifest.verify(directory)
    config = ModelConfig.from_dict(manifest.model)
    if manifest.adapter is None:
        weights, place = cleaned(read_safetensors(directory / WEIGHTS_FILE), config.tie_word_embeddings), WEIGHTS_FILE
    else:
        weights, place = merged_checkpoint(directory, manifest), ADAPTER_FILE
    check_fit(weights, config, directory / place)
    if adapter is not None:
        what, small = read_adapter(adapter)
        check_adapter(small, what, config, adapter)
        weights = merged(weights, what, small)
    model = MiniMindForCausalLM.unfilled(config, "cpu")
    model.load_weights(weights)
    return model.to(device), Tokenizer.load(directory)
