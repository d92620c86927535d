"""Which code this is: two machines of one installation must run the same.

Compared are the sources themselves, not a commit: a checkout may have changes, and an image has no git.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: what machines do together: the schema, its readers and writers, and the trainer
SOURCES = ("app", "worker", "minimind", "migrations")


def version_of(root: Path) -> str:
    """The version of the checkout in ``root``, as ``0.1.0+3f9c21ab77d0``."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    stated = re.search(r'^version = "([^"]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return f"{stated[1] if stated else '0'}+{digest.hexdigest()[:12]}"


@functools.cache
def code_version() -> str:
    """The version of this process's code; asked when the process starts, before the checkout can change under it."""
    return version_of(ROOT)
