"""A directory for others to read, there whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from minimind.errors import CheckpointError


def refuse_existing(directory: Path) -> None:
    """Raises ``CheckpointError`` where there is something already; an empty directory is nothing."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} exists already.", hint="Choose another place.")


def new_directory(directory: Path, fill: Callable[[Path], None]) -> Path:
    """``directory``, filled aside by ``fill`` and renamed into place. Raises ``CheckpointError``."""
    refuse_existing(directory)
    aside = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir(parents=True)
    try:
        fill(aside)
        if directory.exists():
            directory.rmdir()
        aside.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory
