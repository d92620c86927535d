"""Models in the memory of the inference process, adapters over them included.

An adapter is laid over a model that is in memory (``minimind.engine.Engine.with_adapter``), so it costs its own few
numbers and is there in milliseconds; each token takes 10 to 20 % longer than with the adapter in the matrices (measured
on a CPU: 44 to 50 ms with the preset minimind-3, 4.4 to 5.0 ms with tiny-cpu).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app.core import damage
from app.core.logging import get_logger
from minimind.errors import CheckpointError, MiniMindError
from minimind.manifest import MANIFEST_FILE, Manifest

if TYPE_CHECKING:
    from minimind.engine import Engine

log = get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
#: adapters that stay beside one model in memory
ADAPTERS_PER_MODEL = 8

#: a directory and the time of its manifest
Key = tuple[str, int]
Made = TypeVar("Made")


def cores_for_inference() -> int:
    """Half of the cores: a training on the same machine keeps the other half."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // 2)


def memory_for_engines() -> int:
    """Bytes of weights kept in memory: an eighth of the machine's memory, 8 GB at most."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total // 8, 8 * 2**30)


@dataclass
class _Loaded:
    """A whole model and the adapters that were laid over it. ``weights``: sha256 of its file and its tokenizer's."""

    key: Key
    engine: Engine
    bytes: int
    weights: tuple[str, str]
    adapters: OrderedDict[Key, Engine] = field(default_factory=OrderedDict)


class EngineCache:
    """Engines by checkpoint and adapter; the least recently used model goes first, with its adapters. One alone may
    exceed ``max_bytes``."""

    def __init__(self, device: str, max_engines: int, max_bytes: int):
        self.device, self.max_engines, self.max_bytes = device, max_engines, max_bytes
        self._models: OrderedDict[Key, _Loaded] = OrderedDict()

    def has(self, path: Path, adapter: Path | None = None) -> bool:
        """Whether ``get`` is a matter of moments. Raises ``CheckpointError`` where there is no such checkpoint."""
        return self._find(path, adapter)[0] is not None

    def get(self, path: Path, adapter: Path | None = None) -> Engine:
        """The engine of a checkpoint, loaded if needed; of a lora checkpoint its own base with its adapter.
        ``adapter``: the checkpoint whose adapter is laid over it. Raises ``CheckpointError``."""
        model, over, own = self._find(path, adapter)
        if model is None:
            model = self._load(path if own is None else _guarded(lambda: _base_of(path, own), path))
        self._models.move_to_end(model.key)
        return model.engine if over is None else self._lay_over(model, over)

    def _find(self, path: Path, adapter: Path | None) -> tuple[_Loaded | None, Path | None, Manifest | None]:
        """``(model in memory that answers or None, adapter to lay over it, the manifest where that is its own)``."""
        key = _key(path)
        if adapter is not None or key in self._models:
            return self._models.get(key), adapter, None
        own = _adapter_of(path)
        if own is None:
            return None, None, None
        wanted = (own.lineage.get("base_weights"), own.tokenizer_fingerprint)  # any copy of its base will do
        return next((model for model in self._models.values() if model.weights == wanted), None), path, own

    def _load(self, path: Path) -> _Loaded:
        self._make_room(_weight_bytes(path))
        engine = _guarded(lambda: _load_engine(path, self.device), path)
        manifest = Manifest.read(path)
        weights = (manifest.files.get(WEIGHTS_FILE, {}).get("sha256", ""), manifest.tokenizer_fingerprint)
        loaded = _Loaded(_key(path), engine, engine.num_bytes(), weights)
        self._models[loaded.key] = loaded
        log.info("model_loaded", checkpoint=str(path), bytes=loaded.bytes)
        return loaded

    def _lay_over(self, model: _Loaded, adapter: Path) -> Engine:
        key, base = _key(adapter), Path(model.key[0])
        if key not in model.adapters:
            while len(model.adapters) >= ADAPTERS_PER_MODEL:
                model.adapters.popitem(last=False)
            model.adapters[key] = _guarded(lambda: model.engine.with_adapter(adapter), adapter, base)
            log.info("adapter_loaded", adapter=str(adapter), over=str(base),
                     bytes=model.adapters[key].num_bytes() - model.bytes)
        model.adapters.move_to_end(key)
        return model.adapters[key]

    def _make_room(self, num_bytes: int) -> None:
        while self._models and (len(self._models) >= self.max_engines
                                or sum(model.bytes for model in self._models.values()) + num_bytes > self.max_bytes):
            (path, _), _ = self._models.popitem(last=False)
            log.info("model_dropped", checkpoint=path)


def _key(path: Path) -> Key:
    """A manifest is written last and never changed: its time tells a rebuilt directory from the old one."""
    try:
        return str(path), (path / MANIFEST_FILE).stat().st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path.name} is not on this machine's disk any more.",
                              hint="Choose another checkpoint of the run.") from error


def _weight_bytes(path: Path) -> int:
    try:
        return (path / WEIGHTS_FILE).stat().st_size
    except OSError:
        return 0


def _adapter_of(path: Path) -> Manifest | None:
    """The manifest of a checkpoint that holds adapters alone, else None: loading says what is wrong with others."""
    try:
        manifest = Manifest.read(path)
    except CheckpointError:
        return None
    return manifest if manifest.adapter is not None else None


def _base_of(path: Path, manifest: Manifest) -> Path:
    from minimind.formats.adapters import base_of  # which imports torch

    return base_of(path, manifest)


def _load_engine(path: Path, device: str) -> Engine:
    import torch  # seconds to import: only the first request waits for it

    from minimind.engine import Engine

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores_for_inference())
    return Engine.from_checkpoint(path, device)


def _guarded(load: Callable[[], Made], path: Path, *others: Path) -> Made:
    """``load()``; whatever fails is a ``CheckpointError`` in a sentence without places on the server."""
    try:
        return load()
    except MiniMindError as error:
        damage.look_at_path(path)  # damaged ones are offered to nobody any more
        text = error.message
        for place in (path, *others, path.parent.parent / "base"):  # no business of whoever chats
            text = text.replace(f"{place}/", "").replace(str(place), place.name)
        raise CheckpointError(text, hint=error.hint) from error
    except Exception as error:
        log.exception("model_not_loaded", checkpoint=str(path))
        raise CheckpointError(f"The checkpoint {path.name} cannot be loaded: {type(error).__name__}.",
                              hint="It is damaged or not a MiniMind model; choose another one.") from error
