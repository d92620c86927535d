"""Adapters for other programs, adapters of other programs as a run of ours, and models made of base and adapter."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minimind.errors import CheckpointError
from minimind.formats.adapters import BASE_PLACE, keep_base, read_adapter
from minimind.formats.base import open_base
from minimind.formats.gguf_reader import open_tokenizer
from minimind.formats.hf_config import CONFIG_FILE, hf_config
from minimind.formats.huggingface import save_huggingface
from minimind.formats.new_directory import new_directory, refuse_existing
from minimind.formats.peft import save_peft
from minimind.formats.source import load_weights_from
from minimind.lora import AdapterConfig, check_adapter, merged
from minimind.manifest import MANIFEST_FILE, Manifest
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir, write_json
from minimind.tokenizer import Tokenizer


def write_peft(directory: Path | str, adapter: AdapterConfig, weights: Mapping[str, Tensor],
               base: str = BASE_PLACE) -> Path:
    """A folder that ``PeftModel.from_pretrained(model, directory)`` reads; ``base``: the model's name in it. Whole or
    not at all. Raises ``CheckpointError`` where there is something already."""
    return new_directory(Path(directory), lambda aside: save_peft(aside, adapter, weights, base))


def write_merged(directory: Path | str, adapter: Path | str, base: Path | str | None = None, *,
                 tokenizer: Path | str | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face folder of ``base`` with ``adapter`` in its matrices. ``base``: whatever
    ``source.load_weights_from`` reads; of a lora run or checkpoint its own, if none is given. Raises
    ``CheckpointError``."""
    if base is None:
        if Path(adapter).exists() and not is_ours(Path(adapter)):
            raise CheckpointError(f"{adapter} comes without the model that it changes.",
                                  field="base", hint="Name the model that it was trained on: --base BASE.")
        source = load_weights_from(adapter)
        weights = source.weights
    else:
        source = load_weights_from(base)
        what, small = read_adapter(adapter)
        check_adapter(small, what, source.config, adapter)
        weights = merged(source.weights, what, small)
    directory_of_tokenizer = tokenizer or source.tokenizer_dir
    if directory_of_tokenizer is None:
        raise CheckpointError(f"There is no tokenizer with the weights {base}.", field="tokenizer",
                              hint="Name the tokenizer that they were trained with: --tokenizer DIR.")
    return save_huggingface(directory, source.config, weights, _words(directory_of_tokenizer, source.config), dtype)


def _words(directory: Path | str, model: ModelConfig) -> Tokenizer:
    """The tokenizer in ``directory``. Raises ``CheckpointError`` where it has more entries than the model knows."""
    tokenizer = open_tokenizer(directory)
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(f"The tokenizer {directory} has {tokenizer.vocab_size} entries, and the model knows "
                              f"{model.vocab_size}.", field="tokenizer",
                              hint="Name the tokenizer that the model was trained with.")
    return tokenizer


def is_ours(path: Path) -> bool:
    """Whether this is a run or a checkpoint, which has its base beside it."""
    return RunDir(path).checkpoints.is_dir() or (path / MANIFEST_FILE).exists()


def import_adapter(run: Path | str, adapter: Path | str, base: Path | str, *,
                   tokenizer: Path | str | None = None) -> Path:
    """Make the run directory ``run`` of an adapter and the model that it belongs to, with one checkpoint, as the stage
    lora leaves it: to chat with, and to start from. Returns the checkpoint. Raises ``CheckpointError``."""
    run_dir = RunDir(run)
    refuse_existing(run_dir.path)
    what, weights = read_adapter(adapter)
    run_dir.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=run_dir.path.parent) as cache:
        found = open_base(Path(base), Path(cache))
        model = ModelConfig.from_dict(found.manifest.model)
        check_adapter(weights, what, model, adapter)
        if tokenizer is None and not found.has_tokenizer:
            raise CheckpointError(f"There is no usable tokenizer with the weights {base}.", field="tokenizer",
                                  hint="Name the tokenizer that they were trained with: --tokenizer DIR.")
        words = _words(tokenizer or found.path, model)
        manifest = Manifest(
            stage="import", step=0, tokens=0, attempt=0, world_size=1, loss=None, eval_loss=None,
            model=model.as_dict(), config_fingerprint="", data_fingerprint="", tokenizer_fingerprint=words.fingerprint,
            lineage={"base": str(base), "base_weights": keep_base(run_dir, found.path, words), "adapter": str(adapter)},
            versions={}, created_at=round(time.time(), 3), adapter=what.as_dict())

    def fill(aside: Path) -> None:
        save_peft(aside, what, weights, BASE_PLACE)
        words.save(aside)
        write_json(aside / CONFIG_FILE, hf_config(model, words))
        manifest.seal(aside)

    return new_directory(run_dir.checkpoint(0, 0), fill)
