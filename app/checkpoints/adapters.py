"""Which adapter goes with which model: told from their manifests alone, without a tensor."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.core.models import Checkpoint
from minimind.errors import CheckpointError
from minimind.manifest import Manifest

#: ``Checkpoint.stage`` of those that hold adapters in place of weights
STAGE = "lora"
#: what decides the shapes of the matrices that adapters stand beside, and what it is called
SHAPE = {"num_hidden_layers": "layers", "hidden_size": "channels", "num_attention_heads": "query heads",
         "num_key_value_heads": "key heads", "head_dim": "channels a head", "intermediate_size": "channels in the MLP",
         "num_experts": "experts"}


@dataclass(frozen=True)
class Facts:
    """``shape``: the values of ``SHAPE``. ``tokenizer``: its fingerprint."""

    shape: tuple[int, ...]
    tokenizer: str
    is_adapter: bool

    @property
    def key(self) -> str:
        """Equal for models and adapters that go together."""
        return hashlib.sha256(json.dumps([self.shape, self.tokenizer]).encode()).hexdigest()[:16]


def facts_of(row: Checkpoint) -> Facts | None:
    """None where its files cannot be read by this process: they may lie on another machine."""
    try:
        return _read(row.path)
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=5000)  # a checkpoint never changes; one that cannot be read is tried again
def _read(path: str) -> Facts:
    manifest = Manifest.read(Path(path))
    return Facts(tuple(int(manifest.model[name]) for name in SHAPE), manifest.tokenizer_fingerprint,
                 manifest.adapter is not None)


def misfit(base: Checkpoint, adapter: Checkpoint) -> str | None:
    """Why the adapter cannot be laid over the base, as a sentence; None where it can, or where nobody knows here."""
    over, small = facts_of(base), facts_of(adapter)
    if small is not None and not small.is_adapter:
        return f"The checkpoint {adapter.id} is a whole model and no adapter: name one of the stage lora behind the +."
    if over is None or small is None:
        return None
    for word, has, needs in zip(SHAPE.values(), over.shape, small.shape, strict=True):
        if has != needs:
            return (f"The adapter {adapter.id} does not fit the model {base.id}: it was trained on a model with "
                    f"{needs} {word}, and this one has {has}.")
    if over.tokenizer != small.tokenizer:
        return (f"The adapter {adapter.id} does not fit the model {base.id}: it was trained with another tokenizer, so "
                "that a token means something else to it.")
    return None
