"""Models in the memory of the inference process, adapters over them included.

An adapter is laid over a model that is in memory (``minimind.engine.Engine.with_adapter``), so it costs its own few
numbers and is there in milliseconds; each token takes longer than with the adapter in the matrices.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.core import damage
from app.core.collector import leave_alone_what_is_here
from app.core.logging import get_logger
from minimind.errors import CheckpointError, MiniMindError
from minimind.manifest import MANIFEST_FILE, Manifest
from worker.priority import DEFAULT_SHARE, usable_cores

if TYPE_CHECKING:
    from minimind.engine import Engine
    from worker.llama import LlamaEngine

log = get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
#: adapters that stay beside one model in memory
ADAPTERS_PER_MODEL = 8

#: a directory and the time of its manifest; of a model that is in llama.cpp, LLAMA behind them
Key = tuple[str, int] | tuple[str, int, str]
LLAMA = "llama"
Made = TypeVar("Made")


def cores_for_inference() -> int:
    """Half of the cores: a training on the same machine keeps the other half."""
    return max(1, usable_cores() // 2)


def memory_for_engines() -> int:
    """Bytes of weights kept in memory: an eighth of the machine's memory, 8 GB at most."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total // 8, 8 * 2**30)


@dataclass(frozen=True)
class EngineOptions:
    """How models are kept. ``compile``: ``auto`` does it for models that gain by it, once they are used and a C++
    compiler is there."""

    device: str = "cpu"
    max_engines: int = 4
    max_bytes: int = field(default_factory=memory_for_engines)
    weights: str = "fp32"  #: fp32, bf16 or int8
    compile: str = "auto"  #: auto, on or off
    context_factor: float = 1.0  #: YaRN
    prefix_bytes: int = 256 * 2**20  #: of each model, for beginnings that were read before
    cache_bytes: int | None = None  #: of each model, for what it reads and writes at a time
    share: float = DEFAULT_SHARE  #: of a core that a training wants too
    engine: str = "own"  #: own, or llama: llama.cpp for what it can do

    @classmethod
    def from_environment(cls, data_dir: Path) -> EngineOptions:
        """From the variables STUDIO_INFERENCE_*. Raises ``ValueError`` that names a wrong one."""
        def number(name: str, default: float) -> float:
            text = os.environ.get(f"STUDIO_INFERENCE_{name}", str(default))
            try:
                return float(text)
            except ValueError:
                raise ValueError(f"STUDIO_INFERENCE_{name} is {text!r}; it must be a number.") from None

        def choice(name: str, *known: str) -> str:
            text = os.environ.get(f"STUDIO_INFERENCE_{name}", known[0])
            if text not in known:
                raise ValueError(f"STUDIO_INFERENCE_{name} is {text!r}; it must be one of {', '.join(known)}.")
            return text

        engine, device = choice("ENGINE", "own", "llama"), os.environ.get("STUDIO_INFERENCE_DEVICE", "cpu")
        factor = number("CONTEXT_FACTOR", 1.0)
        if engine == "llama":
            _check_llama(device, factor)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(data_dir / "cache" / "inductor"))
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes that stay
        return cls(device=device, max_engines=int(number("MODELS", 4)),
                   max_bytes=int(number("MEMORY_GB", memory_for_engines() / 2**30) * 2**30),
                   weights=choice("WEIGHTS", "fp32", "bf16", "int8"), compile=choice("COMPILE", "auto", "on", "off"),
                   context_factor=factor, engine=engine, prefix_bytes=int(number("PREFIX_MB", 256) * 2**20),
                   cache_bytes=int(number("CACHE_GB", memory_for_engines() / 2**30) * 2**30),
                   share=number("SHARE", DEFAULT_SHARE))


def _check_llama(device: str, context_factor: float) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise ValueError("STUDIO_INFERENCE_ENGINE is 'llama', and xllamacpp, which is llama.cpp, is not installed. "
                         f"Install it ('{sys.executable} -m pip install xllamacpp'), or unset the variable.")
    if device != "cpu" or context_factor != 1:
        raise ValueError("STUDIO_INFERENCE_ENGINE is 'llama', which answers on the CPU and with each model's own "
                         "context. Unset STUDIO_INFERENCE_DEVICE and STUDIO_INFERENCE_CONTEXT_FACTOR, or the engine.")


#: weights from which on compiling is worth a minute of one core, and tokens after which a model counts as used
COMPILE_FROM_BYTES, COMPILE_AFTER_TOKENS = 40 * 2**20, 400


@dataclass
class _Loaded:
    """A whole model and the adapters that were laid over it. ``weights``: sha256 of its file and its tokenizer's."""

    key: Key
    engine: Engine | LlamaEngine
    bytes: int
    weights: tuple[str, str]
    adapters: OrderedDict[Key, Engine] = field(default_factory=OrderedDict)
    is_compiling: bool = False

    @property
    def is_compiled(self) -> bool:
        return LLAMA not in self.key and self.engine.decoder.is_compiled


class EngineCache:
    """Engines by checkpoint and adapter; the least recently used model goes first, with its adapters. One alone may
    exceed ``max_bytes``."""

    def __init__(self, options: EngineOptions):
        self.options = options
        self._models: OrderedDict[Key, _Loaded] = OrderedDict()
        self._own_only: set[Key] = set()  # what llama.cpp cannot do
        self._lock = threading.RLock()  # has and get are called by two threads

    def in_memory(self) -> list[dict[str, Any]]:
        """What there is: place, bytes, whose arithmetic, and whether its step is compiled."""
        with self._lock:
            return [{"checkpoint": Path(path).name, "path": path, "bytes": model.bytes, "weights": self.options.weights,
                     "engine": LLAMA if LLAMA in model.key else "own", "compiled": model.is_compiled,
                     "adapters": len(model.adapters)} for (path, *_), model in self._models.items()]

    def drop(self, engine: Engine | LlamaEngine) -> None:
        """Forget a model of which an engine failed."""
        with self._lock:
            for key, model in list(self._models.items()):
                if engine is model.engine or engine in model.adapters.values():
                    del self._models[key]

    def has(self, path: Path, adapter: Path | None = None, *, needs_own: bool = True) -> bool:
        """Whether ``get`` is a matter of moments. Raises ``CheckpointError`` where there is no such checkpoint."""
        with self._lock:
            if not needs_own and (key := self._llama_key(path, adapter)) is not None:
                return key in self._models
            return self._find(path, adapter)[0] is not None

    def get(self, path: Path, adapter: Path | None = None, *, needs_own: bool = True) -> Engine | LlamaEngine:
        """The engine of a checkpoint, loaded if needed; of a lora checkpoint its own base with its adapter.
        ``adapter``: the checkpoint whose adapter is laid over it; ``needs_own``: not llama.cpp, also where that is
        wanted for what it can do. Raises ``CheckpointError``."""
        if not needs_own and (key := self._llama_key(path, adapter)) is not None:
            if (found := self._in_llama(path, key)) is not None:
                return found
        with self._lock:
            model, over, own = self._find(path, adapter)
        if model is None:
            model = self._load(path if own is None else _guarded(lambda: _base_of(path, own), path))
        with self._lock:
            if model.key in self._models:
                self._models.move_to_end(model.key)
            self._compile_if_used(model)
            return model.engine if over is None else self._lay_over(model, over)

    def _llama_key(self, path: Path, adapter: Path | None) -> Key | None:
        """Of the model in llama.cpp; None where it is not to be there. Raises ``CheckpointError``."""
        if self.options.engine != LLAMA or adapter is not None:
            return None
        key = (*_key(path), LLAMA)
        return None if key in self._own_only else key

    def _in_llama(self, path: Path, key: Key) -> LlamaEngine | None:
        """Loaded if needed; None where llama.cpp cannot: the own engine answers then, or says what is damaged."""
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key].engine
        is_adapter = _adapter_of(path) is not None
        try:
            if not is_adapter:
                with self._lock:
                    self._make_room(_weight_bytes(path))
            engine = None if is_adapter else _load_llama(path, self.options)
        except OSError as error:  # a full disk, say: another time
            log.warning("model_not_in_llama", checkpoint=str(path), error=str(error))
            return None
        with self._lock:
            if engine is None:
                self._own_only.add(key)
                return None
            self._make_room(engine.num_bytes())  # with what it reads and writes, which is known only now
            self._models[key] = _Loaded(key, engine, engine.num_bytes(), ("", ""))
        log.info("model_loaded", checkpoint=str(path), bytes=engine.num_bytes(), engine=LLAMA)
        return engine

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
        with self._lock:
            self._make_room(_weight_bytes(path))
        engine = _guarded(lambda: _load_engine(path, self.options), path)
        manifest = Manifest.read(path)
        weights = (manifest.files.get(WEIGHTS_FILE, {}).get("sha256", ""), manifest.tokenizer_fingerprint)
        loaded = _Loaded(_key(path), engine, engine.num_bytes(), weights)
        with self._lock:
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

    def _compile_if_used(self, model: _Loaded) -> None:
        """Compile a model's step beside its work; the compiler's disk cache makes the next time quick."""
        decoder, wish = model.engine.decoder, self.options.compile
        if model.is_compiling or wish == "off" or not decoder.can_compile:
            return
        if wish == "auto" and (model.bytes < COMPILE_FROM_BYTES or decoder.tokens_seen < COMPILE_AFTER_TOKENS
                               or not (shutil.which("g++") or shutil.which("clang++"))):
            return
        model.is_compiling = True  # and so it stays: one try
        threading.Thread(target=_compile, args=(model,), name="compile", daemon=True).start()

    def _make_room(self, num_bytes: int) -> None:
        limits = self.options
        while self._models and (len(self._models) >= limits.max_engines or
                                sum(model.bytes for model in self._models.values()) + num_bytes > limits.max_bytes):
            (path, *_), _ = self._models.popitem(last=False)
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


@lru_cache
def _settle() -> None:
    """At the first model, before it is there: torch stays for as long as the process."""
    leave_alone_what_is_here()


def _load_engine(path: Path, options: EngineOptions) -> Engine:
    import torch  # seconds to import: only the first request waits for it

    from minimind.engine import Engine

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores_for_inference())
    _settle()
    return Engine.from_checkpoint(path, options.device, weights=options.weights, prefix_bytes=options.prefix_bytes,
                                  cache_bytes=options.cache_bytes, context_factor=options.context_factor)


def _load_llama(path: Path, options: EngineOptions) -> LlamaEngine | None:
    """None, and a line in the log, where llama.cpp does not compute what the checkpoint means. Raises ``OSError``."""
    from worker.llama import load_llama  # which imports torch

    _settle()
    try:
        return load_llama(path, options.weights, threads=cores_for_inference(), prefix_bytes=options.prefix_bytes,
                          cache_bytes=options.cache_bytes or options.max_bytes)
    except MiniMindError as error:
        log.warning("model_not_in_llama", checkpoint=str(path), error=str(error))
        return None


def _compile(model: _Loaded) -> None:
    began = time.monotonic()
    try:
        is_faster = model.engine.decoder.compile()
    except Exception as error:  # of a compiler: what is not compiled still answers
        log.warning("model_not_compiled", checkpoint=model.key[0], error=f"{type(error).__name__}: {error}"[:500])
    else:
        log.info("model_compiled", checkpoint=model.key[0], seconds=round(time.monotonic() - began, 1), kept=is_faster)


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
