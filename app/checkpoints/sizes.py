"""How large an export will be, told before it is made: from the manifest, without a tensor."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from app.core.models import Checkpoint
from minimind.errors import CheckpointError
from minimind.manifest import Manifest
from minimind.presets import ModelConfig

#: bytes of a weight; q8_0: 32 of them and a scale of 16 bits are 34
BYTES_OF = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
ADAPTER_FILE, TOKENIZER_FILE = "adapter_model.safetensors", "tokenizer.json"


def export_bytes(row: Checkpoint) -> dict[str, int]:
    """Bytes by format, with what stands behind a colon for those that store weights in several ways: ``pth``,
    ``hf:float32``, ``gguf:q8_0``. Empty where the files cannot be read by this process."""
    try:
        return _read(row.path)
    except (CheckpointError, OSError, RecursionError, KeyError, TypeError, ValueError):
        return {}


@lru_cache(maxsize=5000)  # a checkpoint never changes; one that cannot be read is tried again
def _read(path: str) -> dict[str, int]:
    manifest = Manifest.read(Path(path))
    weights = ModelConfig.from_dict(manifest.model).num_parameters()
    words = manifest.files.get(TOKENIZER_FILE, {}).get("bytes", 0)
    is_adapter = manifest.adapter is not None
    folder = "merged" if is_adapter else "hf"
    sizes = {f"{folder}:{dtype}": weights * BYTES_OF[dtype] + words for dtype in ("float32", "bfloat16", "float16")}
    # the vocabulary stands in the file twice: as llama.cpp reads it, and whole
    sizes |= {f"gguf:{kind}": weights * BYTES_OF[kind] + 2 * words for kind in ("f32", "f16", "q8_0")}
    sizes["pth"] = weights * BYTES_OF["float16"]
    if is_adapter:
        adapter = manifest.files[ADAPTER_FILE]["bytes"]
        sizes |= {"peft": adapter, "minimind_lora": adapter / 2}
    return {name: round(size) for name, size in sizes.items()}
