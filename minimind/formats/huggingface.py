"""Hugging Face folders: ``config.json`` and ``model.safetensors``, whole or in shards.

Classes read and written: ``Qwen3ForCausalLM`` (arXiv:2505.09388), ``Qwen3MoeForCausalLM``, and ``LlamaForCausalLM``
for models without q/k norm (minimind2). A folder of upstream's own class, ``MiniMindForCausalLM``, is read as well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimind.errors import CheckpointError
from minimind.formats.hf_config import CONFIG_FILE, hf_config, inexpressible, read_hf_config, read_object
from minimind.formats.new_directory import new_directory
from minimind.formats.pth import read_pth, to_float16
from minimind.formats.tensors import cleaned
from minimind.moe import split_experts
from minimind.presets import ModelConfig
from minimind.run_dir import write_json
from minimind.tokenizer import Tokenizer

WEIGHTS_FILE, INDEX_FILE, PICKLE_FILE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
STACKED = (".experts.gate_up_proj", ".experts.down_proj")


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights. Raises ``CheckpointError`` where there are none."""
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    if (directory / INDEX_FILE).is_file():
        return _shards(directory)
    if (directory / PICKLE_FILE).is_file():
        return [directory / PICKLE_FILE]
    raise CheckpointError(f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}.",
                          hint="Name the folder that save_pretrained wrote, or a .pth file.")


def _shards(directory: Path) -> list[Path]:
    places = read_object(directory / INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places or not all(
            isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
            for file in places.values()):
        raise CheckpointError(f"{directory / INDEX_FILE} names no usable safetensors files.",
                              hint="Download or export the model again.")
    files = [directory / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{directory} lacks {file.name}, which its {INDEX_FILE} names.",
                                  hint="Download the missing file.")
    return files


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {str(error).splitlines()[0]}.",
                              hint="It may be cut short: download or export it again.") from None


def read_huggingface(directory: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and tensors (in the type and under the names of the file, one matrix for each expert)."""
    weights: dict[str, Tensor] = {}
    for file in weight_files(directory):
        weights |= read_pth(file) if file.name == PICKLE_FILE else read_safetensors(file)
    weights = _single_experts(weights, directory)
    config = read_hf_config(directory, weights)
    return config, cleaned(weights, config.tie_word_embeddings)


def _single_experts(weights: dict[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """One matrix for each expert, also where a file has them in one tensor, as the classes of transformers 5 do.

    (Its ``save_pretrained`` takes them apart itself; a bare ``state_dict()`` has [E, 2 I, C] and [E, C, I].)
    """
    for name, tensor in weights.items():
        if name.endswith(STACKED) and tensor.ndim != 3:
            raise CheckpointError(f"{name} in {directory} has the shape {list(tensor.shape)}, and three dimensions are "
                                  "needed: expert, output, input.", hint="Export the model again.")
    return split_experts(weights)


def save_huggingface(directory: Path | str, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer,
                     dtype: torch.dtype = torch.float32, *, beside: Callable[[Path], None] | None = None) -> Path:
    """Write a folder that ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer`` read; returns it.

    ``weights``: a state dict of ours. ``beside(directory)`` adds what else belongs there. Written aside and renamed
    into place. Raises ``CheckpointError`` where no class of Hugging Face's computes the same, for a weight that
    float16 cannot hold, and where there is something at ``directory`` already.
    """
    directory = Path(directory)
    problem = inexpressible(config)
    if problem is not None:
        raise CheckpointError(f"Hugging Face has no class for this model: {problem}.",
                              hint="Save it as a .pth file, which upstream MiniMind reads.")

    def fill(aside: Path) -> None:
        tensors = cleaned(split_experts(weights), config.tie_word_embeddings)
        tensors = to_float16(tensors) if dtype == torch.float16 else {
            name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
        save_file(dict(sorted(tensors.items())), aside / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(aside / CONFIG_FILE, hf_config(config, tokenizer, str(dtype).removeprefix("torch.")))
        write_json(aside / "generation_config.json", {
            "bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id,
            "eos_token_id": sorted({tokenizer.eos_id, tokenizer.pad_id})})
        tokenizer.save(aside)
        if beside is not None:
            beside(aside)

    return new_directory(directory, fill)
