"""One door for weights of any kind: a checkpoint of ours, a Hugging Face folder, a ``.pth`` or ``.gguf`` file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minimind.errors import CheckpointError
from minimind.formats.adapters import base_of, merged_checkpoint
from minimind.formats.gguf_reader import SUFFIX, read_gguf
from minimind.formats.hf_config import CONFIG_FILE
from minimind.formats.huggingface import WEIGHTS_FILE, read_huggingface, read_safetensors, weight_files
from minimind.formats.peft import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from minimind.formats.pth import infer_config, read_pth
from minimind.formats.tensors import check_fit, cleaned, not_finite, to_float32
from minimind.manifest import MANIFEST_FILE, Manifest, in_run
from minimind.presets import ModelConfig
from minimind.tokenizer import TOKENIZER_FILE

PICKLES = (".pth", ".pt", ".bin")
MERGE_FIRST = "Merge them first: python -m minimind.adapter merge ADAPTER OUT --base BASE, and start from OUT."


@dataclass(frozen=True)
class Source:
    """``weights``: float32, by Hugging Face's names, exactly the tensors of ``config`` (tensors.tensor_shapes)."""

    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer_dir: Path | None  # of a GGUF file, the file (gguf_reader.open_tokenizer)
    format: str  # checkpoint, huggingface, pth, gguf
    warnings: tuple[str, ...] = ()


def format_of(path: Path) -> str:
    """Raises ``CheckpointError`` where there is nothing of a kind that can be read."""
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint {path}.", hint="Check the path.")
    if path.is_file():
        if path.suffix == SUFFIX:
            return "gguf"
        if path.suffix not in PICKLES:
            raise CheckpointError(f"{path} is neither a .pth nor a .gguf file.",
                                  hint="Of a Hugging Face model, name the folder that holds its config.json.")
        return "pth"
    if (path / MANIFEST_FILE).exists():
        return "checkpoint"
    if (path / ADAPTER_CONFIG_FILE).exists():
        raise CheckpointError(f"{path} is an adapter, which is a model only together with its base.",
                              hint=MERGE_FIRST)
    if (path / CONFIG_FILE).exists():
        return "huggingface"
    raise CheckpointError(f"{path} is neither a checkpoint nor a Hugging Face folder: it has no {MANIFEST_FILE} and no "
                          f"{CONFIG_FILE}.",
                          hint="Name a run, a directory like checkpoints/step-00000100-a1, a Hugging Face folder, a "
                               ".pth or a .gguf file.")


def files_of(path: Path) -> list[Path]:
    """Files that hold the weights."""
    kind = format_of(path)
    if kind == "huggingface":
        return weight_files(path)
    if kind == "checkpoint" and (manifest := Manifest.read(path)).adapter is not None:
        return [base_of(path, manifest) / WEIGHTS_FILE, path / ADAPTER_FILE]
    return [path if kind in ("pth", "gguf") else path / WEIGHTS_FILE]


def load_weights_from(path: Path | str, progress: Callable[[int, int], None] | None = None) -> Source:
    """Read and check weights; of a lora run or checkpoint, its base's with the adapters merged into them.

    ``progress(done, total)``: bytes, of a GGUF file, whose numbers take long to unpack. Raises
    ``CheckpointError`` that names the file, the first thing wrong and what to do.
    """
    path = in_run(Path(path))
    kind = format_of(path)
    if kind == "pth":
        weights = to_float32(read_pth(path), path)
        config = infer_config(weights, path)
        weights = cleaned(weights, config.tie_word_embeddings)
    elif kind == "gguf":
        config, weights = read_gguf(path, progress)
    elif kind == "huggingface":
        config, weights = read_huggingface(path)
        weights = to_float32(weights, path)
    else:
        manifest = Manifest.read(path)
        manifest.verify(path)
        config = ModelConfig.from_dict(manifest.model)
        weights = (to_float32(read_safetensors(path / WEIGHTS_FILE), path) if manifest.adapter is None else
                   merged_checkpoint(path, manifest))
    check_fit(weights, config, path)
    has_tokenizer = kind == "gguf" or kind != "pth" and (path / TOKENIZER_FILE).is_file()
    tokenizer = path if has_tokenizer else None
    return Source(config, weights, tokenizer, kind, tuple(not_finite(weights, path)))
