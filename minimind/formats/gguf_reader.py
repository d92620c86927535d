"""Models out of GGUF files: those of the architectures that compute what ours do, with their tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from minimind.errors import CheckpointError
from minimind.formats.gguf_file import GgufFile
from minimind.formats.gguf_shape import parts_of, shape_from
from minimind.formats.gguf_words import tokenizer_from
from minimind.presets import ModelConfig
from minimind.tokenizer import Tokenizer

SUFFIX = ".gguf"


def read_gguf(path: Path, progress: Callable[[int, int], None] | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights, float32, by Hugging Face's names. ``progress(done, total)``: bytes. Raises
    ``CheckpointError``."""
    with GgufFile(path) as file:
        config = shape_from(file.keys, {name: entry.shape for name, entry in file.tensors.items()}, path)
        parts = parts_of(config, file.keys["general.architecture"])
        unknown = set(file.tensors) - {part.name for part in parts}
        if unknown:
            raise CheckpointError(f"{path} has a tensor that the model does not know: {min(unknown)[:100]!r}.",
                                  hint="It belongs to a model of another shape or kind.")
        weights: dict[str, Tensor] = {}
        done, total = 0, sum(entry.bytes for entry in file.tensors.values())
        for part in parts:
            if part.name not in file.tensors:
                raise CheckpointError(f"{path} lacks the tensor {part.name}.", hint="Copy or download the file again.")
            if file.tensors[part.name].shape != part.shape:
                raise CheckpointError(f"{part.name} in {path} has the shape {list(file.tensors[part.name].shape)}, and "
                                      f"the model needs {list(part.shape)}.",
                                      hint="It belongs to a model of another shape or kind.")
            weights.update(part.take(file.tensor(part.name)))
            done += file.tensors[part.name].bytes
            if progress is not None:
                progress(done, total)
    return config, weights


def open_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a directory or of a GGUF file. Raises ``DataError`` or ``CheckpointError``."""
    path = Path(path)
    if path.suffix != SUFFIX or not path.is_file():
        return Tokenizer.load(path)
    with GgufFile(path) as file:
        files = tokenizer_from(file.keys, path)
    with tempfile.TemporaryDirectory(prefix="minimind-gguf-") as scratch:
        for name, text in files.items():
            (Path(scratch) / name).write_text(text, encoding="utf-8")
        return Tokenizer.load(scratch)
