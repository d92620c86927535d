"""A checkpoint for other programs: one function for the command line and for the studio's worker."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from minimind.errors import CheckpointError, class_of_words
from minimind.formats.adapter_files import write_peft
from minimind.formats.adapters import BASE_PLACE, read_adapter, save_upstream
from minimind.formats.card import write_card
from minimind.formats.commands import commands
from minimind.formats.gguf import Progress, save_gguf
from minimind.formats.gguf_reader import open_tokenizer
from minimind.formats.huggingface import save_huggingface
from minimind.formats.new_directory import refuse_existing
from minimind.formats.ollama import modelfile
from minimind.formats.origins import Story
from minimind.formats.pth import save_pth
from minimind.formats.source import load_weights_from
from minimind.lora import check_adapter, merged
from minimind.presets import ModelConfig

FORMATS = ("hf", "gguf", "pth", "merged", "peft", "minimind_lora")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Wanted:
    """``merged`` is ``hf`` of an adapter; ``peft`` and ``minimind_lora`` are the adapter alone. ``base``: another model
    than the adapter's own. ``tokenizer``: where the weights come without one. ``base_name``: what ``peft`` calls the
    model below."""

    format: Literal["hf", "gguf", "pth", "merged", "peft", "minimind_lora"]
    quantization: str = "f16"  # gguf
    dtype: str = "float32"  # hf, merged
    base: Path | None = None
    tokenizer: Path | None = None
    base_name: str = BASE_PLACE
    story: Story = field(default_factory=Story)


@dataclass(frozen=True)
class Made:
    """``commands``: ``[{tool, text}]``, ready to copy. ``modelfile``: ollama's, of a GGUF file."""

    path: Path
    commands: list[dict[str, str]]
    modelfile: str | None = None


def slug(text: str) -> str:
    """A name that every file system and shell takes; may be empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60]


def suffix_of(format: str) -> str:
    """What the name of the file ends with; of a folder nothing."""
    return {"gguf": ".gguf", "pth": ".pth", "minimind_lora": ".pth"}.get(format, "")


def write_export(directory: Path, name: str, checkpoint: Path, wanted: Wanted,
                 progress: Progress | None = None) -> Made:
    """Write ``directory/name`` with the format's ending; whole or not at all. ``checkpoint``: whatever
    ``source.load_weights_from`` or ``adapters.read_adapter`` reads. Raises ``CheckpointError``, ``DataError`` and
    ``OSError``, of a full disk with ENOSPC."""
    target = directory / f"{name}{suffix_of(wanted.format)}"
    refuse_existing(target)
    try:
        return _write(target, checkpoint, wanted, progress or (lambda done, total: None))
    except (SafetensorError, RuntimeError) as error:  # of libraries that keep the system's error to themselves
        if class_of_words(str(error)) == "DISK_FULL" or "iostream error" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
        raise


def _write(target: Path, checkpoint: Path, wanted: Wanted, progress: Progress) -> Made:
    said = commands(wanted.format, target.name)
    if wanted.format == "peft":
        return Made(write_peft(target, *read_adapter(checkpoint), wanted.base_name), said)
    if wanted.format == "minimind_lora":
        return Made(save_upstream(target, *read_adapter(checkpoint)), said)
    config, weights, place = _whole(checkpoint, wanted)
    if wanted.format == "pth":
        return Made(save_pth(target, config, weights), said)
    if place is None:
        raise CheckpointError(f"There is no tokenizer with the weights {checkpoint}.", field="tokenizer",
                              hint="Name the tokenizer that they were trained with: --tokenizer DIR.")
    tokenizer = open_tokenizer(place)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(f"The tokenizer has {tokenizer.vocab_size} entries, and the model knows "
                              f"{config.vocab_size}.", field="tokenizer",
                              hint="Name the tokenizer that the model was trained with.")
    if wanted.format == "gguf":
        save_gguf(target, config, weights, tokenizer, wanted.quantization, name=target.stem,
                  languages=wanted.story.languages, progress=progress)
        return Made(target, said, modelfile(target.name, tokenizer, config.max_position_embeddings))
    save_huggingface(target, config, weights, tokenizer, getattr(torch, wanted.dtype),
                     beside=lambda aside: write_card(aside, target.name, config, tokenizer, wanted.story))
    return Made(target, said)


def _whole(checkpoint: Path, wanted: Wanted) -> tuple[ModelConfig, dict[str, Tensor], Path | None]:
    """Shape, weights and tokenizer of a model; of an adapter with its own or another base, with the adapter in the
    matrices."""
    source = load_weights_from(checkpoint if wanted.base is None else wanted.base)
    place = wanted.tokenizer or source.tokenizer_dir
    if wanted.base is None:
        return source.config, source.weights, place
    adapter, weights = read_adapter(checkpoint)
    check_adapter(weights, adapter, source.config, checkpoint)
    return source.config, merged(source.weights, adapter, weights), place

