"""GGUF, the one file that llama.cpp, ollama and LM Studio read: shape, tokenizer, chat template and weights.

The file is a function of model and name alone: no time and no place stands in it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minimind.errors import CheckpointError
from minimind.formats.gguf_shape import Part, architecture_of, parts_of, shape_keys
from minimind.formats.gguf_words import words_of
from minimind.presets import ModelConfig
from minimind.run_dir import fsync_dir
from minimind.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

#: how many bits a weight has, and what the format calls a file of that kind; vectors and routers are float32 in all
QUANTIZATIONS = {"f32": 0, "f16": 1, "q8_0": 7}
#: q8_0: that many weights share a scale
BLOCK = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Stored:
    part: Part
    kind: str  # of QUANTIZATIONS

    @property
    def bytes(self) -> int:
        count = int(np.prod(self.part.shape))
        return count // BLOCK * (BLOCK + 2) if self.kind == "q8_0" else count * (4 if self.kind == "f32" else 2)

    def encode(self, tensor: Tensor) -> np.ndarray:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import quantize

        if self.kind == "q8_0":
            return quantize(tensor.contiguous().numpy(), GGMLQuantizationType.Q8_0)
        if self.kind == "f32":
            return tensor.contiguous().numpy()
        halved = tensor.to(torch.float16)
        if not bool(torch.isfinite(halved).all()):
            raise CheckpointError(f"{self.part.sources[0]} has values that float16 cannot hold (beyond 65,504, or not "
                                  "finite).", field="quantization", hint="Choose f32.")
        return halved.contiguous().numpy()


def plan(config: ModelConfig, architecture: str, quantization: str) -> list[_Stored]:
    """Tensors of the file in order, each in the type that it gets. (A row that is no whole number of blocks stays in
    16 bits, as llama.cpp's own converter has it.)"""
    stored = []
    for part in parts_of(config, architecture):
        kind = "f32" if len(part.shape) == 1 or part.name.endswith("ffn_gate_inp.weight") else quantization
        stored.append(_Stored(part, "f16" if kind == "q8_0" and part.shape[-1] % BLOCK else kind))
    return stored


def size_of_weights(config: ModelConfig, quantization: str) -> int:
    """Bytes of the tensors; the tokenizer comes to some hundred kilobytes more. Raises ``CheckpointError``."""
    return sum(stored.bytes for stored in plan(config, architecture_of(config), quantization))


def save_gguf(path: Path | str, config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Tokenizer,
              quantization: str = "f16", *, name: str = "", languages: Sequence[str] = (),
              words: Mapping[str, object] | None = None, progress: Progress | None = None) -> Path:
    """Write the file; whole or not at all. One tensor at a time is in memory beside ``weights``.

    ``weights``: by Hugging Face's names, one matrix for each expert. ``words``: other keys than the tokenizer's
    (``gguf_words.words_of``), for who speaks to the model in ids alone. ``progress(done, total)``: bytes. Raises
    ``CheckpointError`` where llama.cpp computes something else, or cuts text in another way, and for a weight that
    float16 cannot hold.
    """
    from gguf import GGUFWriter

    path = Path(path)
    architecture = architecture_of(config)
    stored = plan(config, architecture, quantization)
    words = words_of(tokenizer, config.vocab_size) if words is None else words
    writer = GGUFWriter(None, architecture)
    _describe(writer, config, quantization, name or path.stem, languages)
    for key, value in shape_keys(config, architecture).items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in words.items():
        _add(writer, f"tokenizer.{key}", value)
    for one in stored:
        _announce(writer, one)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        writer.write_header_to_file(aside)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        total, done = sum(one.bytes for one in stored), 0
        for one in stored:
            data = one.encode(one.part.build(weights))
            assert data.nbytes == one.bytes, one.part.name
            writer.write_padding(file, file.tell())
            file.write(memoryview(data).cast("B"))  # numpy's tofile would not say why a write failed
            done += one.bytes
            if progress is not None:
                progress(done, total)
        writer.write_padding(file, file.tell())
        file.flush()
        os.fsync(file.fileno())
        writer.close()
        os.replace(aside, path)
    finally:
        for opened in writer.fout or ():
            opened.close()
        aside.unlink(missing_ok=True)
    fsync_dir(path.parent)
    return path


def _describe(writer: GGUFWriter, config: ModelConfig, quantization: str, name: str, languages: Sequence[str]) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(config.num_parameters()))
    writer.add_tags(["minimind", "text-generation"])
    if languages:
        writer.add_languages(list(languages))
    writer.add_file_type(QUANTIZATIONS[quantization])
    writer.add_quantization_version(2)


def size_label(parameters: int) -> str:
    """``26M``, ``1.5B``."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.0f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}K"


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # a list without entries has no type
        writer.add_array(key, value)


def _announce(writer: GGUFWriter, one: _Stored) -> None:
    from gguf.constants import GGMLQuantizationType

    shape = one.part.shape
    if one.kind == "q8_0":
        kind, dtype = GGMLQuantizationType.Q8_0, np.dtype(np.uint8)
        shape = (*shape[:-1], shape[-1] // BLOCK * (BLOCK + 2))
    else:
        kind, dtype = (GGMLQuantizationType.F32, np.dtype(np.float32)) if one.kind == "f32" else (
            GGMLQuantizationType.F16, np.dtype(np.float16))
    writer.add_tensor_info(one.part.name, shape, dtype, one.bytes, raw_dtype=kind)
