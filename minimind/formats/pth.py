"""Upstream MiniMind's ``.pth`` files: a flat state dict in float16, with a copy of the tied embedding.

The file says nothing of the shape beyond its tensors. Those without q/k norm are minimind2's (eps 1e-5, 8 query heads
whatever the width, two of its experts for each token besides a shared one), the others minimind-3's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from minimind.errors import CheckpointError
from minimind.formats import pth_reader
from minimind.formats.tensors import EMBEDDING, HEAD, check_sizes, cleaned
from minimind.lifeline import VARIABLE
from minimind.moe import split_experts
from minimind.presets import ModelConfig
from minimind.run_dir import fsync_dir

ROOT = Path(__file__).resolve().parents[2]
QUERY_HEADS = 8
#: experts that a token passes, by whether there is a shared one
EXPERTS_PER_TOKEN, EXPERTS_PER_TOKEN_BESIDES_SHARED = 1, 2
#: wrappers of DDP and torch.compile that some programs save with the names
WRAPPERS = re.compile(r"^module\.|(?:^|(?<=\.))_orig_mod\.")

_AGAIN = "It may be cut short: copy or download it again."
#: what pth_reader says, as a sentence about the file and what to do
PROBLEMS = {
    "objects": ("{path} holds more than tensors: it asks for {detail!r}, which was not run.",
                "Only files of plain tensors are read. If you trust it, save model.state_dict() alone with the program "
                "that made it."),
    "damaged": ("{path} is damaged or not a .pth file: {detail}.", _AGAIN),
    "memory": ("{path} asks for far more memory than a file of its size should.", _AGAIN),
    "disk": ("The tensors of {path} could not be written to the directory for temporary files: {detail}.",
             "Free some space there, or name another one in the variable TMPDIR."),
    "no_weights": ("{path} holds no weights: it is a {detail}, not a dictionary of tensors.",
                   "Save model.state_dict()."),
    "name": ("{path} has an entry with the unusable name {detail}.", _AGAIN),
    "not_a_tensor": ("{path} has the entry {detail!r}, which is not a tensor.",
                     "Save model.state_dict() alone."),
    "kind_of_tensor": ("{path} has the entry {detail!r}, which is not a plain tensor.",
                       "Quantised, sparse and complex weights cannot be trained: use the original ones."),
}


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file in their own type. Raises ``CheckpointError`` where it holds anything else."""
    with tempfile.TemporaryDirectory(prefix="minimind-pth-") as scratch:
        out = Path(scratch) / "weights.safetensors"
        answer = _read_apart(path, out)
        if "problem" in answer:
            sentence, hint = PROBLEMS[answer["problem"]]
            raise CheckpointError(sentence.format(path=path, detail=answer["detail"].rstrip(".")), hint=hint)
        weights = load_file(out)
    return _unwrapped(weights, path)


def _read_apart(path: Path, out: Path) -> dict:
    """Have ``pth_reader`` write the tensors to ``out``, in a process of its own; its answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
                   VARIABLE: str(os.getpid())}
    command = [sys.executable, "-P", "-m", "minimind.formats.pth_reader", str(path.absolute()), str(out)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60 + 4 * pth_reader.cpu_seconds(path.stat().st_size))
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise CheckpointError(f"{path} could not be read within the limits of a file of its size.",
                              hint=_AGAIN) from None


def _unwrapped(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {name: WRAPPERS.sub("", name) for name in weights}
    if len(set(names.values())) != len(names):
        raise CheckpointError(f"{path} has the same tensor with and without a wrapper's prefix (module., _orig_mod.).",
                              hint="Save model.state_dict() of the bare model.")
    return {names[name]: tensor for name, tensor in weights.items()}


def infer_config(weights: dict[str, Tensor], path: Path) -> ModelConfig:
    """The shape that the tensors have, by upstream's conventions. Raises ``CheckpointError``."""
    _refuse_others(weights, path)
    first = "model.layers.0"
    vocab_size, hidden_size = _shape(weights, EMBEDDING, path)
    query_rows, _ = _shape(weights, f"{first}.self_attn.q_proj.weight", path)
    key_rows, _ = _shape(weights, f"{first}.self_attn.k_proj.weight", path)
    qk_norm = f"{first}.self_attn.q_norm.weight" in weights
    head_dim = weights[f"{first}.self_attn.q_norm.weight"].numel() if qk_norm else query_rows // QUERY_HEADS
    if not head_dim or query_rows % head_dim or key_rows % head_dim:
        raise CheckpointError(f"{path} has {query_rows} query and {key_rows} key channels, which are not whole heads "
                              f"of {head_dim}.", hint="Upstream's models without q/k norm have 8 query heads; others "
                                                      "can be read from a Hugging Face folder, which says how many.")
    layers = {int(found[1]) for name in weights if (found := re.match(r"model\.layers\.(\d{1,9})\.", name))}
    is_moe = f"{first}.mlp.gate.weight" in weights
    experts = _shape(weights, f"{first}.mlp.gate.weight", path)[0] if is_moe else 0
    shared = len({found[1] for name in weights
                  if (found := re.match(r"model\.layers\.0\.mlp\.shared_experts\.(\d+)\.", name))})
    mlp = f"{first}.mlp.experts.0" if is_moe else f"{first}.mlp"
    chosen = (EXPERTS_PER_TOKEN_BESIDES_SHARED if shared else EXPERTS_PER_TOKEN) if is_moe else 1
    config = ModelConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, num_hidden_layers=max(layers) + 1,
        num_attention_heads=query_rows // head_dim, num_key_value_heads=key_rows // head_dim, head_dim=head_dim,
        intermediate_size=_shape(weights, f"{mlp}.gate_proj.weight", path)[0], rms_norm_eps=1e-6 if qk_norm else 1e-5,
        qk_norm=qk_norm, num_experts=experts, num_experts_per_tok=min(chosen, max(1, experts)),
        num_shared_experts=shared,
        tie_word_embeddings=HEAD not in weights or torch.equal(weights[HEAD], weights[EMBEDDING]))
    check_sizes(config, path)
    return config


def _refuse_others(weights: dict[str, Tensor], path: Path) -> None:
    kinds = (("lora", "a LoRA adapter, which changes a model and is none",
              "Merge it into its base first: python -m minimind.adapter merge."),
             ("tok_embeddings", "weights of MiniMind 1, whose parts are arranged in another way",
              "Use a model of minimind2 or minimind-3."),
             ("vision_", "a vision model", "Use the language model that it was made from."))
    for word, what, hint in kinds:
        if any(word in name for name in weights):
            raise CheckpointError(f"{path} holds {what}.", hint=hint)


def _shape(weights: dict[str, Tensor], name: str, path: Path) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    if name not in weights:
        raise CheckpointError(f"{path} lacks the tensor {name}.",
                              hint="The file is not whole, or not of a model like MiniMind's.")
    if weights[name].ndim != 2 or not weights[name].numel():
        raise CheckpointError(f"{name} in {path} has the shape {list(weights[name].shape)}, and a matrix is needed.",
                              hint="The file is damaged, or of another kind of model.")
    return weights[name].shape[0], weights[name].shape[1]


def save_pth(path: Path | str, config: ModelConfig, weights: dict[str, Tensor]) -> Path:
    """Write upstream's file; whole or not at all. ``weights``: a state dict of ours.

    Raises ``CheckpointError`` for a weight that float16 cannot hold.
    """
    tensors = to_float16(cleaned(split_experts(weights), config.tie_word_embeddings))
    if config.tie_word_embeddings:
        tensors[HEAD] = tensors[EMBEDDING]
    return write_pickle(Path(path), tensors)


def to_float16(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Raises ``CheckpointError`` for a weight that float16 cannot hold."""
    tensors = {}
    for name, tensor in weights.items():
        tensors[name] = tensor.detach().to("cpu", torch.float16).contiguous()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise CheckpointError(f"{name} has values that float16 cannot hold (beyond 65,504, or not finite).",
                                  hint="Save a Hugging Face folder in float32.")
    return tensors


def write_pickle(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(aside, "wb") as file:
            torch.save(tensors, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_dir(path.parent)
    return path
