"""Where jobs build what they make, and what may be left of one that did not come to its end."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from app.core.settings import get_settings

#: by kind: the folder of the data directory (a setting), the key of the payload that names what is made in it, and what
#: stands behind that name while it is being made
_PLACES = {
    "dataset_import": ("datasets_dir", "dataset_id", "importing"),
    "teacher_answers": ("datasets_dir", "dataset_id", "importing"),
    "tokenizer_train": ("tokenizers_dir", "tokenizer_id", "training"),
    "checkpoint_export": ("exports_dir", "export_id", "exporting"),
    "checkpoint_import": ("runs_dir", "run_id", "importing"),
}


def places(kind: str, payload: dict) -> tuple[Path, Path]:
    """Where a job builds what it makes, and where that stands in the end."""
    folder, key, doing = _PLACES[kind]
    home = getattr(get_settings(), folder) / payload[key]
    return home.with_name(f".{home.name}.{doing}"), home


def remove_half_made(kind: str, payload: dict) -> None:
    """Remove what a job has left that has not completed. Raises nothing."""
    if kind in _PLACES and payload.get(_PLACES[kind][1]):
        for left in places(kind, payload):
            shutil.rmtree(left, ignore_errors=True)


def remove_upload(path: str) -> None:
    """Raises nothing: what cannot be removed now, the web process sweeps away a day later."""
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)
