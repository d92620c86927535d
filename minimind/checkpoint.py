"""Checkpoints: written aside, hashed, renamed into place; read only after their hashes were compared.

Order of a save (all ranks take part): directory aside -> every rank writes and fsyncs its files -> all agree that it
worked -> rank 0 writes the manifest -> rename -> fsync of the parent. A kill at any moment leaves either no
checkpoint or a whole one; what was written aside is removed by the next attempt.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minimind.distributed import World
from minimind.errors import CheckpointError
from minimind.formats.hf_config import hf_config
from minimind.formats.huggingface import read_safetensors
from minimind.formats.tensors import check_fit, cleaned
from minimind.manifest import MANIFEST_FILE, Manifest, in_order
from minimind.model import MiniMindForCausalLM
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir, fsync_dir, read_json, write_json
from minimind.tokenizer import Tokenizer

WEIGHTS_FILE, OPTIMIZER_FILE, TRAINER_FILE, CONFIG_FILE = ("model.safetensors", "optimizer.pt", "trainer.json",
                                                           "config.json")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: free space must exceed the expected size by this factor
SPACE_FACTOR = 1.2
#: all checkpoints of a run are kept while they fit in this many bytes
KEEP_ALL_BYTES = 2 << 30


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
                    trainer: dict, tokenizer: Tokenizer) -> Path:
    """Write one checkpoint; every rank calls this at the same step. Raises ``SaveFailed`` on all ranks or none."""
    final = run_dir.checkpoint(manifest.step, manifest.attempt)
    aside = run_dir.checkpoints / f".tmp-{final.name}"
    problem = ""
    if world.is_main:
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _check_space(run_dir, model, optimizer)
        except OSError as error:
            problem = _sentence(error)
        except SaveFailed as error:
            problem = str(error)
    if world.all_true(not problem):
        try:
            if world.is_main:
                _write_main(aside, model, optimizer, trainer, tokenizer, manifest)
            torch.save(random_state(world.device), aside / f"rng-rank{world.rank}.pt")
            _fsync(aside / f"rng-rank{world.rank}.pt")
        except (OSError, RuntimeError, SafetensorError) as error:
            problem = _sentence(error)
        if world.all_true(not problem) and world.is_main:
            try:
                manifest.seal(aside)
                fsync_dir(aside)
                _replace(aside, final)
            except OSError as error:
                problem = _sentence(error)
    if not world.all_true(not problem):
        if world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise SaveFailed(problem or "Another rank could not write its part of the checkpoint.")
    return final


def _write_main(aside: Path, model: MiniMindForCausalLM, optimizer: dict, trainer: dict, tokenizer: Tokenizer,
                manifest: Manifest) -> None:
    save_weights(model.named_weights(), aside / WEIGHTS_FILE)
    torch.save(optimizer, aside / OPTIMIZER_FILE)
    tokenizer.save(aside)
    for path in aside.iterdir():
        _fsync(path)
    write_json(aside / TRAINER_FILE, trainer)
    write_json(aside / CONFIG_FILE, hf_config(model.config, tokenizer))


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """``weights``: ``named_weights()`` of a model. The file is a function of them alone: in order, no metadata."""
    save_file({name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}, path)


def _replace(aside: Path, final: Path) -> None:
    """Rename into place. The same step of the same attempt can exist already (saved, then asked to pause)."""
    if final.exists():
        old = final.with_name(f".tmp-old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        aside.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        aside.rename(final)
    fsync_dir(final.parent)


def _check_space(run_dir: RunDir, model: MiniMindForCausalLM, optimizer: dict) -> None:
    expected = sum(p.numel() * p.element_size() for p in model.parameters())
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


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL_DISK or "No space left" in str(error):
        return "The disk is full: the checkpoint could not be written."
    return f"The checkpoint could not be written: {error}."


def remove_leftovers(run_dir: RunDir) -> None:
    """What killed attempts were writing. Only the attempt that holds the run calls this."""
    if run_dir.checkpoints.is_dir():
        for path in run_dir.checkpoints.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)


def apply_retention(run_dir: RunDir, total_steps: int, keep: int) -> list[Path]:
    """Delete what need not be kept; returns what was deleted.

    Everything stays while it fits in 2 GB. Then: the last two, the best by evaluation loss, and the first
    checkpoint of each ``1 / keep`` of the run. A file ``NAME.pin`` beside a checkpoint protects it.
    """
    found: list[tuple[Path, Manifest]] = []
    for path in in_order(run_dir.checkpoint_dirs()):
        try:
            found.append((path, Manifest.read(path)))
        except CheckpointError:
            continue  # not a checkpoint; nothing that resume would use either
    if sum(m.bytes for _, m in found) <= KEEP_ALL_BYTES:
        return []
    kept = {path for path, _ in found[:2]}
    evaluated = [(m.eval_loss, path) for path, m in found if m.eval_loss is not None]
    if evaluated:
        kept.add(min(evaluated)[1])
    if keep:
        milestones: dict[int, Path] = {}
        for path, manifest in found:  # newest first: the earliest of each share is written last
            milestones[(manifest.step - 1) * keep // max(1, total_steps)] = path
        kept |= set(milestones.values())
    deleted = [path for path, _ in found if path not in kept and not path.with_name(f"{path.name}.pin").exists()]
    for path in deleted:
        path.joinpath(MANIFEST_FILE).unlink(missing_ok=True)  # from here on it is not a checkpoint
        shutil.rmtree(path, ignore_errors=True)
    return deleted


def load_weights(model: MiniMindForCausalLM, directory: Path) -> None:
    """Raises ``CheckpointError`` where the file is missing, or names the first tensor that does not fit the model."""
    weights = cleaned(read_safetensors(directory / WEIGHTS_FILE), model.config.tie_word_embeddings)
    check_fit(weights, model.config, directory / WEIGHTS_FILE)
    model.load_weights(weights)


def load_training_state(directory: Path, world: World) -> tuple[dict, dict, dict | None]:
    """``(optimizer state, trainer.json, this rank's random state)``; the last is None for another world size."""
    optimizer = torch.load(directory / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    trainer = read_json(directory / TRAINER_FILE)
    if not isinstance(trainer, dict):
        raise CheckpointError(f"{directory} has no readable {TRAINER_FILE}.", hint="Use another checkpoint.")
    path = directory / f"rng-rank{world.rank}.pt"
    rng = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    return optimizer, trainer, rng


def load_model(directory: Path | str, device: str | torch.device = "cpu") -> tuple[MiniMindForCausalLM, Tokenizer]:
    """A verified checkpoint's model in float32 and its tokenizer. Raises ``CheckpointError``."""
    directory = Path(directory)
    manifest = Manifest.read(directory)
    manifest.verify(directory)
    with torch.device("meta"):
        model = MiniMindForCausalLM(ModelConfig.from_dict(manifest.model))
    model.to_empty(device="cpu")
    load_weights(model, directory)
    return model.to(device), Tokenizer.load(directory)
