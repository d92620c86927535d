"""One door for adapters of any kind: a run or checkpoint of the stage lora, a ``peft`` folder, upstream's ``.pth``.

Also where a lora run keeps the base that its adapters stand on: ``RUN/base`` is a whole checkpoint, made before step
1 of hard links (copies, where the file system knows none), so that a run does not depend on what becomes of its base.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minimind.config import ADAPTABLE
from minimind.errors import CheckpointError
from minimind.formats.hf_config import CONFIG_FILE, hf_config
from minimind.formats.huggingface import WEIGHTS_FILE, read_safetensors
from minimind.formats.peft import ADAPTER_CONFIG_FILE, ADAPTER_FILE, read_peft
from minimind.formats.pth import read_pth, to_float16, write_pickle
from minimind.formats.tensors import to_float32
from minimind.lora import A, AdapterConfig, B, check_adapter, merged
from minimind.manifest import MANIFEST_FILE, Manifest, in_run
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir, fsync_dir, write_json
from minimind.tokenizer import Tokenizer

#: ``RunDir.base``, as seen from a checkpoint of the run
BASE_PLACE = "../../base"
#: what upstream attaches adapters to: its linear layers that are square
UPSTREAM_TARGETS = ("q_proj", "o_proj")
UPSTREAM_RANK = 16
_UPSTREAM_NAME = re.compile(r"(model\.layers\.\d{1,9}\.(?:self_attn|mlp)\.(\w+_proj))\.lora\.([AB])\.weight")


def read_adapter(path: Path | str) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """An adapter and its weights, float32. Raises ``CheckpointError`` that names the file and what is wrong."""
    path = in_run(Path(path))
    if not path.exists():
        raise CheckpointError(f"There is no adapter {path}.", hint="Check the path.")
    if path.is_file():
        return read_upstream(path)
    if (path / MANIFEST_FILE).exists():
        manifest = Manifest.read(path)
        manifest.verify(path)
        if manifest.adapter is None:
            raise CheckpointError(f"{path} is a whole model, and an adapter is needed.",
                                  hint="Name a checkpoint of the stage lora.")
    elif not (path / ADAPTER_CONFIG_FILE).exists():
        raise CheckpointError(f"{path} is no adapter: it has no {MANIFEST_FILE} and no {ADAPTER_CONFIG_FILE}.",
                              hint="Name a run or checkpoint of the stage lora, a peft folder or upstream's .pth.")
    return read_peft(path)


def read_upstream(path: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Upstream MiniMind's file: y = W x + B A x without a scale, so alpha is the rank."""
    if path.suffix != ".pth":
        raise CheckpointError(f"{path} is not a .pth file.",
                              hint="Of a peft adapter, name the folder that holds its adapter_config.json.")
    weights, targets, ranks = {}, set(), set()
    for name, tensor in to_float32(read_pth(path), path).items():
        found = _UPSTREAM_NAME.fullmatch(name)
        if found is None or found[2] not in ADAPTABLE or tensor.ndim != 2:
            raise CheckpointError(f"{path} has the tensor {name}, which is none of an adapter.",
                                  hint="Name a file that upstream's train_lora.py has written.")
        weights[found[1] + (A if found[3] == "A" else B)] = tensor
        targets.add(found[2])
        ranks.add(tensor.shape[0 if found[3] == "A" else 1])
    if len(ranks) != 1 or 0 in ranks:
        raise CheckpointError(f"{path} has matrices of the ranks {sorted(ranks)}.", hint="All of them have one rank.")
    [rank] = ranks
    return AdapterConfig(rank, float(rank), 0.0, tuple(n for n in ADAPTABLE if n in targets)), weights


def save_upstream(path: Path | str, adapter: AdapterConfig, weights: Mapping[str, Tensor]) -> Path:
    """Write upstream's file in float16, alpha / r multiplied into B; whole or not at all.

    Raises ``CheckpointError`` where its program has no place for a matrix, or float16 none for a number.
    """
    others = [name for name in adapter.targets if name not in UPSTREAM_TARGETS]
    if others:
        raise CheckpointError(f"Upstream has adapters beside {' and '.join(UPSTREAM_TARGETS)} alone, and this one "
                              f"stands beside {', '.join(others)} too.",
                              hint="Export it for peft, or merge it into its base.")
    tensors = {}
    for name, tensor in weights.items():
        layer, side = (name.removesuffix(A), "A") if name.endswith(A) else (name.removesuffix(B), "B")
        if side == "B" and weights[layer + A].shape[1] != tensor.shape[0]:
            raise CheckpointError(f"{layer} turns {weights[layer + A].shape[1]} channels into {tensor.shape[0]}, and "
                                  "upstream has adapters beside square matrices alone.",
                                  hint="Export it for peft, or merge it into its base.")
        tensors[f"{layer}.lora.{side}.weight"] = tensor * adapter.scale if side == "B" else tensor
    for target in UPSTREAM_TARGETS:  # its program asks for both: zeros change nothing
        for name, tensor in list(tensors.items()):
            other = re.sub(r"\.\w+_proj\.", f".{target}.", name)
            tensors.setdefault(other, torch.zeros_like(tensor))
    return write_pickle(Path(path), to_float16(tensors))


# -- the base of a run ---------------------------------------------------------------------------------------------


def keep_base(run_dir: RunDir, base: Path, tokenizer: Tokenizer) -> str:
    """Make the checkpoint ``base`` the run's own, with ``tokenizer``, unless it is there; sha256 of its weights."""
    target = run_dir.base
    manifest = Manifest.read(base)
    weights = manifest.files[WEIGHTS_FILE]["sha256"]
    if _weights_in(target) == weights:
        return weights
    aside = target.with_name(f".{target.name}.tmp")
    for leftover in (aside, target):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _fill(aside, base, manifest, tokenizer)
        aside.rename(target)
        fsync_dir(run_dir.path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return weights


def _fill(directory: Path, base: Path, manifest: Manifest, tokenizer: Tokenizer) -> None:
    """What a checkpoint has that nobody continues, on the disk."""
    try:
        os.link(base / WEIGHTS_FILE, directory / WEIGHTS_FILE)
    except OSError:  # another file system, or one without links
        shutil.copyfile(base / WEIGHTS_FILE, directory / WEIGHTS_FILE)
    write_json(directory / CONFIG_FILE, hf_config(ModelConfig.from_dict(manifest.model), tokenizer))
    tokenizer.save(directory)
    for file in directory.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened)
    replace(manifest, tokenizer_fingerprint=tokenizer.fingerprint, files={}).seal(
        directory, {WEIGHTS_FILE: manifest.files[WEIGHTS_FILE]["sha256"]})


def _weights_in(directory: Path) -> str | None:
    """sha256 of the weights of a whole checkpoint, else None."""
    try:
        manifest = Manifest.read(directory)
        manifest.verify(directory)
    except CheckpointError:
        return None
    return manifest.files[WEIGHTS_FILE]["sha256"]


def base_of(checkpoint: Path, manifest: Manifest) -> Path:
    """The verified base that the adapters of a checkpoint stand on. Raises ``CheckpointError``."""
    return check_base(RunDir(checkpoint.absolute().parent.parent).base, checkpoint,
                      manifest.lineage.get("base_weights"))


def check_base(base: Path, checkpoint: Path, weights: str | None) -> Path:
    """``base`` where it is whole and holds the weights of this sha256. Raises ``CheckpointError``."""
    if not (base / MANIFEST_FILE).exists():
        raise CheckpointError(f"{checkpoint} is an adapter whose base is gone: there is no {base}.",
                              hint="Put the base checkpoint there again, or lay the adapter over another copy of it.")
    found = _weights_in(base)
    if found is None:
        raise CheckpointError(f"The base {base} of the adapter {checkpoint} is damaged.",
                              hint="Put an undamaged copy of the base checkpoint there.")
    if found != weights:
        raise CheckpointError(f"{checkpoint} is an adapter for other weights than those in {base}.",
                              hint="Put the base there that the run was started from.")
    return base


def merged_checkpoint(checkpoint: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Weights of a verified lora checkpoint's base, float32, with the adapters in them. Raises ``CheckpointError``."""
    adapter, weights = read_peft(checkpoint)
    check_adapter(weights, adapter, ModelConfig.from_dict(manifest.model), checkpoint / ADAPTER_FILE)
    base = base_of(checkpoint, manifest) / WEIGHTS_FILE
    return merged(to_float32(read_safetensors(base), base), adapter, weights)
