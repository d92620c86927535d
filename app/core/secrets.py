"""Keys of other servers: written by a user, read by that user's jobs, shown to nobody.

One file a user and server in ``D/secrets/keys/``, for the studio's own account alone (0600 in 0700). A key belongs to
the origin it was given for (``https://host:port``) and is sent nowhere else, so whoever may name an address cannot
have another server's key sent there. None of them stands in the database, a log, a payload or an ``argv``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from app.core.models import new_id
from app.core.rest import is_id
from app.core.settings import get_settings
from minimind.errors import MiniMindError


class SecretError(MiniMindError):
    """A secret cannot be kept or read."""

    code = "SECRET"


def keep_key(user_id: str, origin: str, key: str) -> None:
    """Keep ``key`` for ``origin``, in place of the one before."""
    path = _path(user_id, origin)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{new_id()}.tmp")
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            json.dump({"origin": origin, "key": key}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def key_for(user_id: str, origin: str) -> str | None:
    """The user's key for this very origin. Raises ``SecretError`` where its file cannot be read."""
    kept = _read(_path(user_id, origin))
    return kept["key"] if kept is not None and kept["origin"] == origin else None


def origins_with_keys(user_id: str) -> list[tuple[str, float]]:
    """``(origin, unix seconds when it was kept)`` of each key, by origin."""
    found = []
    for path in _home(user_id).glob("*.json"):
        kept = _read(path)
        with contextlib.suppress(FileNotFoundError):  # forgotten at this moment
            if kept is not None:
                found.append((kept["origin"], path.stat().st_mtime))
    return sorted(found)


def forget_key(user_id: str, origin: str) -> bool:
    """Whether there was one."""
    try:
        _path(user_id, origin).unlink()
    except FileNotFoundError:
        return False
    return True


def _home(user_id: str) -> Path:
    assert is_id(user_id), "ids are ours"
    return get_settings().data_dir / "secrets" / "keys" / user_id


def _path(user_id: str, origin: str) -> Path:
    return _home(user_id) / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.json"


def _read(path: Path) -> dict | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {"origin": str(kept["origin"]), "key": str(kept["key"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise SecretError(f"The file of a key, {path.name} in the secrets of the data directory, cannot be read.",
                          hint="Give the key again.") from None
