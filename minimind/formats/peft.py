"""Adapters as Hugging Face's ``peft`` keeps them: ``adapter_config.json`` and ``adapter_model.safetensors``.

Checkpoints of the stage lora have these two files, so ``PeftModel.from_pretrained(base, checkpoint)`` reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from minimind.config import ADAPTABLE
from minimind.errors import CheckpointError
from minimind.formats.hf_config import read_object
from minimind.formats.huggingface import read_safetensors
from minimind.formats.pth import WRAPPERS, read_pth
from minimind.formats.tensors import to_float32
from minimind.lora import A, AdapterConfig, B
from minimind.run_dir import write_json

ADAPTER_FILE, ADAPTER_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
MOST_RANK = 1 << 16
#: key of adapter_config.json, the values under which an adapter is A and B alone, what others would mean
REFUSED: tuple[tuple[str, tuple, str], ...] = (
    ("use_dora", (False, None), "DoRA, which learns the length of the weights' columns too"),
    ("rank_pattern", ({}, None), "ranks that differ from layer to layer"),
    ("alpha_pattern", ({}, None), "alphas that differ from layer to layer"),
    ("bias", ("none", None), "biases that were learnt too"),
    ("lora_bias", (False, None), "biases in the adapters"),
    ("modules_to_save", ([], None), "whole layers that were learnt too"),
    ("trainable_token_indices", ([], {}, None), "rows of the embedding that were learnt too"),
    ("target_parameters", ([], None), "adapters beside tensors that are no linear layers"),
    ("layers_to_transform", ([], None), "adapters in some blocks alone"),
    ("layer_replication", ([], None), "blocks that are used several times"),
    ("fan_in_fan_out", (False, None), "transposed weights"),
    ("use_qalora", (False, None), "QALoRA"),
    ("use_bdlora", (False, None), "block-diagonal adapters"),
    ("arrow_config", (None,), "a router between adapters"),
    ("alora_invocation_tokens", ([], None), "adapters that wait for a token"),
    ("velora_config", (None,), "VeLoRA"),
    ("monteclora_config", (None,), "MonteCLoRA"),
    ("kasa_config", (None,), "KaSA"),
)
#: beginnings that change the base's own weights: an adapter made so does not fit the base as it is
REFUSED_BEGINNINGS = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: also without the outer ``model.`` (peft round a model without its head), and with the adapter's name behind A or B
#: (the state dict of a ``PeftModel``, which ``save_pretrained`` takes it out of)
_NAME = re.compile(r"(?:model\.)?(layers\.\d{1,9}\.(?:self_attn|mlp)\.(\w+_proj))\.lora_([AB])(?:\.\w+)?\.weight")


def save_peft(directory: Path, adapter: AdapterConfig, weights: Mapping[str, Tensor], base: str) -> None:
    """Write the two files into ``directory``, which is there. ``base``: what to say of the model that belongs below.

    The file of the weights is a function of them alone.
    """
    tensors = {f"{PREFIX}{name}.weight": weights[name].detach().cpu().contiguous() for name in sorted(weights)}
    save_file(tensors, directory / ADAPTER_FILE, metadata={"format": "pt"})
    alpha = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    write_json(directory / ADAPTER_CONFIG_FILE, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": adapter.rank,
        "lora_alpha": alpha, "lora_dropout": adapter.dropout, "target_modules": list(adapter.targets), "bias": "none",
        "fan_in_fan_out": False, "use_dora": False, "use_rslora": False, "modules_to_save": None, "rank_pattern": {},
        "alpha_pattern": {}, "init_lora_weights": True, "inference_mode": True})


def read_peft(directory: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """The adapter in a folder, float32. Raises ``CheckpointError`` naming the first thing that is no plain LoRA."""
    path = directory / ADAPTER_CONFIG_FILE
    raw = read_object(path)
    _refuse(raw, path)
    rank, alpha, dropout = (_number(raw, name, path) for name in ("r", "lora_alpha", "lora_dropout"))
    if type(rank) is not int or not 1 <= rank <= MOST_RANK or alpha <= 0 or not 0 <= dropout < 1:
        raise CheckpointError(f"{path} says r is {rank!r}, lora_alpha {alpha!r} and lora_dropout {dropout!r}, which "
                              "cannot be.", hint="Export the adapter again.")
    if raw.get("use_rslora"):  # alpha / sqrt(r) (arXiv:2312.03732): the same scale in other words
        alpha *= math.sqrt(rank)
    weights, targets = _weights(directory)
    return AdapterConfig(rank, float(alpha), float(dropout), targets), weights


def _refuse(raw: dict, path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} says peft_type is {raw.get('peft_type')!r}.",
                              hint="Adapters of the type LORA can be read.")
    for name, allowed, meaning in REFUSED:
        if raw.get(name) not in allowed:
            raise CheckpointError(f"{path} says {name} is {raw[name]!r}: {meaning}.",
                                  hint="Plain LoRA can be read. Merge the adapter with peft (merge_and_unload) and "
                                       "import the whole model.")
    beginning = raw.get("init_lora_weights")
    if isinstance(beginning, str) and beginning.lower().startswith(REFUSED_BEGINNINGS):
        raise CheckpointError(f"{path} says init_lora_weights is {beginning!r}: it stands on a changed base.",
                              hint="Convert it with peft (save_pretrained with path_initial_model_for_weight_"
                                   "conversion), or merge it and import the whole model.")


def _number(raw: dict, name: str, path: Path) -> float | int:
    value = raw.get(name, {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}[name])
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{path} says {name} is {value!r}, which must be a number.",
                              hint="Export the adapter again.")
    return value


def _weights(directory: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights under our names, and the matrices beside which they stand."""
    file = directory / ADAPTER_FILE
    if not file.is_file() and (directory / PICKLE_FILE).is_file():
        file = directory / PICKLE_FILE
    if not file.is_file():
        raise CheckpointError(f"{directory} has an {ADAPTER_CONFIG_FILE} and no {ADAPTER_FILE}.",
                              hint="Copy or download the folder again.")
    given = read_pth(file) if file.name == PICKLE_FILE else read_safetensors(file)
    weights, targets = {}, set()
    for name, tensor in to_float32(given, file).items():
        found = _NAME.fullmatch(WRAPPERS.sub("", name).removeprefix(PREFIX))
        if found is None or found[2] not in ADAPTABLE:
            raise CheckpointError(f"{file} has the tensor {name}, beside which our models have no adapter.",
                                  hint=f"Adapters can stand beside {', '.join(ADAPTABLE)} of every block.")
        ours = f"model.{found[1]}" + (A if found[3] == "A" else B)
        if ours in weights:
            raise CheckpointError(f"{file} has two tensors for {ours}: it holds several adapters.",
                                  hint="Save one of them: save_pretrained(..., selected_adapters=[NAME]).")
        weights[ours] = tensor
        targets.add(found[2])
    if not weights:
        raise CheckpointError(f"{file} has no tensors.", hint="Export the adapter again.")
    return weights, tuple(name for name in ADAPTABLE if name in targets)
