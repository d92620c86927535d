"""``manifest.json``: written last into a checkpoint, it says what the checkpoint is and proves that it is whole.

A directory without a manifest, or with files that differ from it in size or sha256, is not a checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minimind.errors import CheckpointError
from minimind.run_dir import RunDir, parse_checkpoint_name, read_json, write_json

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
_BLOCK_BYTES = 1 << 20


class OtherVersion(CheckpointError):
    """Written by another version of the program: not readable here, and not damaged either."""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Manifest:
    """Losses in nats per token; ``tokens`` seen since the start of the run; ``created_at`` in unix seconds.

    ``adapter``: rank, alpha, dropout and targets of a checkpoint that holds adapters in place of weights
    (minimind/lora.py); its base has the sha256 ``lineage["base_weights"]`` and lies in the run's directory ``base``.
    """

    stage: str
    step: int
    tokens: int
    attempt: int
    world_size: int
    loss: float | None
    eval_loss: float | None
    model: dict
    config_fingerprint: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    lineage: dict
    versions: dict
    created_at: float
    files: dict[str, dict] = field(default_factory=dict)  # name -> {"bytes", "sha256"}
    adapter: dict | None = None
    version: int = MANIFEST_VERSION

    @property
    def bytes(self) -> int:
        return sum(f["bytes"] for f in self.files.values())

    def seal(self, directory: Path, known: dict[str, str] | None = None) -> None:
        """Hash every file of ``directory`` into the manifest and write it there. ``known``: sha256 of files that were
        hashed while others were written."""
        known = known or {}
        self.files = {p.name: {"bytes": p.stat().st_size, "sha256": known.get(p.name) or sha256_of(p)}
                      for p in sorted(directory.iterdir()) if p.is_file() and p.name != MANIFEST_FILE}
        write_json(directory / MANIFEST_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path | str) -> Manifest:
        """The manifest of a checkpoint. Raises ``CheckpointError`` where there is none of this version."""
        directory = Path(directory)
        raw = read_json(directory / MANIFEST_FILE)
        if not isinstance(raw, dict):
            raise CheckpointError(f"{directory} is not a checkpoint: it has no readable {MANIFEST_FILE}.",
                                  hint="Name a directory like checkpoints/step-00000100-a1 of a run.")
        if raw.get("version") != MANIFEST_VERSION:
            raise OtherVersion(f"{directory} has a manifest of version {raw.get('version')!r}; this program reads "
                               f"version {MANIFEST_VERSION}.", hint="Use the program that wrote it.")
        try:
            values = {"adapter": None, **raw}  # older ones know of none
            manifest = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise CheckpointError(f"{directory} has a manifest that lacks {error.args[0]!r}.",
                                  hint="The checkpoint is damaged; use an earlier one.") from None
        if not isinstance(manifest.files, dict) or not all(
                isinstance(f, dict) and Path(n).name == n for n, f in manifest.files.items()):
            raise CheckpointError(f"{directory} has a manifest that lists no usable files.",
                                  hint="The checkpoint is damaged; use an earlier one.")
        return manifest

    def verify(self, directory: Path | str, *, hashes: bool = True) -> None:
        """Compare every file with the manifest. Raises ``CheckpointError`` naming the first that differs."""
        directory = Path(directory)
        for name, expected in self.files.items():
            wrong = _difference(directory / name, expected, hashes)
            if wrong is not None:
                raise CheckpointError(f"The checkpoint {directory.name} is damaged: {wrong}",
                                      hint="Use an earlier checkpoint.")


def _difference(path: Path, expected: dict, hashes: bool) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing."
    size = path.stat().st_size
    if size != expected.get("bytes"):
        return f"{path.name} has {size} bytes instead of {expected.get('bytes')}."
    try:
        if hashes and sha256_of(path) != expected.get("sha256"):
            return f"the content of {path.name} has changed since it was saved."
    except OSError as error:
        if error.errno != errno.EIO:  # a bad sector is damage; missing rights are not
            raise
        return f"the disk cannot read {path.name} any more."
    return None


def damage_of(directory: Path | str) -> str | None:
    """What is wrong with a checkpoint's directory, as a sentence; None for a whole one, and for one that another
    version has written. Reads every byte."""
    try:
        Manifest.read(directory).verify(directory)
    except OtherVersion:
        return None
    except CheckpointError as error:
        wrong = error.message.partition(" is damaged: ")[2] or error.message.replace(f"{directory}", "It", 1)
        return wrong[0].upper() + wrong[1:] if wrong.startswith("the ") else wrong
    return None


def newest_valid(run_dir: RunDir | Path | str) -> tuple[Path | None, list[str]]:
    """``(newest whole checkpoint of a run or None, a sentence for each damaged one that is newer)``."""
    run_dir = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
    damaged = []
    for path in in_order(run_dir.checkpoint_dirs()):
        try:
            Manifest.read(path).verify(path)
            return path, damaged
        except CheckpointError as error:
            damaged.append(error.message)
    return None, damaged


def in_run(path: Path) -> Path:
    """The newest whole checkpoint where ``path`` is a run directory, else ``path``. Raises ``CheckpointError``."""
    if not (path / "checkpoints").is_dir():
        return path
    newest, _ = newest_valid(path)
    if newest is None:
        raise CheckpointError(f"The run {path} has no whole checkpoint.", hint="Choose another run.")
    return newest


def in_order(checkpoints: list[Path]) -> list[Path]:
    """Newest first in the order of training: what a later attempt wrote supersedes what earlier ones did."""
    return sorted(checkpoints, key=lambda p: tuple(reversed(parse_checkpoint_name(p.name) or (0, 0))), reverse=True)
