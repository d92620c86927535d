"""What ``--from_weight`` names, as a whole checkpoint of ours: what is none is turned into one, once, in the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from minimind.errors import CheckpointError, DataError
from minimind.formats.gguf_reader import open_tokenizer
from minimind.formats.hf_config import CONFIG_FILE, hf_config
from minimind.formats.huggingface import WEIGHTS_FILE
from minimind.formats.peft import ADAPTER_CONFIG_FILE
from minimind.formats.source import Source, files_of, format_of, load_weights_from
from minimind.manifest import Manifest, in_run, sha256_of
from minimind.run_dir import write_json
from minimind.tokenizer import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from minimind.tokenizer import TEMPLATE_FILE, TOKENIZER_FILE, Tokenizer

#: another way of reading gives other weights: count up, so that nobody gets the old ones from the cache
IMPORT_VERSION = 1
#: how the warnings begin that are about the tokenizer
USELESS_TOKENIZER = "The tokenizer beside the weights"
BESIDES_WEIGHTS = (CONFIG_FILE, ADAPTER_CONFIG_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE)


@dataclass(frozen=True)
class Base:
    """A checkpoint to start from, verified."""

    path: Path  # holds model.safetensors and, where has_tokenizer, the tokenizer
    manifest: Manifest
    weights_sha256: str  # of the file as given; of several files, of the list of their hashes
    has_tokenizer: bool
    warnings: tuple[str, ...] = ()


def open_base(given: Path, cache_dir: Path, progress: Callable[[int, int], None] | None = None) -> Base:
    """``given``: a run, a checkpoint, a Hugging Face folder, a ``.pth`` or ``.gguf`` file; the adapters of a lora run
    are merged into its base. ``progress``: of ``source.load_weights_from``. Raises ``CheckpointError``."""
    given = in_run(given)
    if format_of(given) != "checkpoint":
        return _import(given, cache_dir, progress=progress)
    manifest = Manifest.read(given)
    manifest.verify(given)
    if manifest.adapter is not None:
        return _import(given, cache_dir, {"world": manifest.lineage.get("world")})
    return Base(given, manifest, manifest.files[WEIGHTS_FILE]["sha256"], True)


def _import(given: Path, cache_dir: Path, lineage: Mapping[str, object] | None = None,
            progress: Callable[[int, int], None] | None = None) -> Base:
    """``lineage``: what else to say of where the weights come from."""
    hashes = {file.name: sha256_of(file) for file in files_of(given)}
    weights = next(iter(hashes.values())) if len(hashes) == 1 else _sha256(hashes)
    besides = {name: sha256_of(given / name) for name in BESIDES_WEIGHTS if (given / name).is_file()}
    target = cache_dir / "weights" / _sha256([IMPORT_VERSION, hashes, besides])[:32]
    manifest = _made_before(target)
    if manifest is None:
        source = load_weights_from(given, progress)
        _make(target, source, {**(lineage or {}), "base": str(given), "base_weights": weights})
        manifest = Manifest.read(target)
    return Base(target, manifest, weights, (target / TOKENIZER_FILE).exists(), tuple(manifest.lineage["warnings"]))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _made_before(target: Path) -> Manifest | None:
    try:
        manifest = Manifest.read(target)
        manifest.verify(target)
        return manifest
    except CheckpointError:
        return None


def _make(target: Path, source: Source, lineage: dict) -> None:
    """Write the checkpoint aside and rename it into place."""
    tokenizer, warnings = _tokenizer(source)
    manifest = Manifest(
        stage="import", step=0, tokens=0, attempt=0, world_size=1, loss=None, eval_loss=None,
        model=source.config.as_dict(), config_fingerprint="", data_fingerprint="",
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else "",
        lineage={**lineage, "warnings": [*source.warnings, *warnings]}, versions={}, created_at=time.time())
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir()
    try:
        save_file({name: source.weights[name].contiguous() for name in sorted(source.weights)}, aside / WEIGHTS_FILE)
        write_json(aside / CONFIG_FILE, hf_config(source.config, tokenizer))
        if tokenizer is not None:
            tokenizer.save(aside)
        manifest.seal(aside)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
        try:
            aside.rename(target)
        except OSError:
            if _made_before(target) is None:  # else another process was faster with the same
                raise
    except SafetensorError as error:
        raise CheckpointError(f"The weights cannot be written to {target.parent}: {str(error).splitlines()[0]}.",
                              hint="Free some space on that disk, or name another place with --cache_dir.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tokenizer(source: Source) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer beside the weights, or why it is of no use: another one may be given for it."""
    if source.tokenizer_dir is None:
        return None, []
    try:
        tokenizer = open_tokenizer(source.tokenizer_dir)
    except (DataError, CheckpointError) as error:
        return None, [f"{USELESS_TOKENIZER} cannot be used. {error}"]
    if tokenizer.vocab_size > source.config.vocab_size:
        return None, [f"{USELESS_TOKENIZER} has {tokenizer.vocab_size} entries, and the model knows "
                      f"{source.config.vocab_size}."]
    return tokenizer, []
