"""What the doors of the studio ask the database before they open."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app.core.db import reading, transaction
from app.core.models import Installation, User
from app.core.settings import Settings, get_settings
from app.core.version import code_version
from minimind.errors import MiniMindError
from minimind.run_dir import read_json, write_json

#: in the data directory: whose it is, for the workers that mount it
MARK = "installation.json"


def migrate() -> None:
    """Bring the configured database to the newest schema."""
    from app.core.migrate import upgrade  # Alembic takes a moment to import

    place = get_settings().data_dir
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MiniMindError(f"The data directory {place} cannot be made: {error.strerror}.", field="data_dir",
                            hint="Choose another with --data_dir.") from None
    upgrade()


def open_installation() -> None:
    """What ``./studio up`` and ``./studio web`` do before they serve: migrate, and write down for the workers which
    code they run, on whose disk the database lies and whose the data directory is."""
    migrate()
    settings = get_settings()
    with transaction() as session:
        row = session.get(Installation, 1, with_for_update=True)
        mark_directory(settings, row.uid)
        row.code_version = code_version()
        row.home_host = settings.host_id if backend(settings) == "sqlite" else None


def mark_directory(settings: Settings, uid: str) -> None:
    """Write into the data directory which installation it belongs to, and at which path.

    A directory that follows another database server is not taken over: two installations must not tidy in it.
    """
    path = settings.data_dir / MARK
    wanted = {"uid": uid, "data_dir": str(settings.data_dir), "database": backend(settings)}
    present = read_mark(settings.data_dir)
    if present == wanted:
        return
    if present and present.get("uid") != uid and present.get("database") != "sqlite":
        raise MiniMindError(f"The data directory {settings.data_dir} belongs to another installation, whose database "
                            f"is a {present.get('database')} server.", field="data_dir",
                            hint="Set STUDIO_DATABASE_URL to that server, or choose another directory with --data_dir. "
                                 f"If that installation is gone, remove {path} and start again.")
    try:
        write_json(path, wanted)
    except OSError as error:
        raise MiniMindError(f"{path} cannot be written: {error.strerror}.", field="data_dir",
                            hint="The web process must be able to write into the data directory.") from None


def read_mark(data_dir: Path) -> dict | None:
    """What stands in the directory's mark; None where there is none. Raises ``OSError`` where it cannot be read."""
    mark = read_json(data_dir / MARK)
    return mark if isinstance(mark, dict) else None


def backend(settings: Settings) -> str:
    """``sqlite`` or ``postgresql``."""
    try:
        return make_url(settings.sqlalchemy_url).get_backend_name()
    except ArgumentError:
        raise MiniMindError("STUDIO_DATABASE_URL is not the address of a database.", field="database_url",
                            hint="It looks like postgresql://USER:PASSWORD@HOST/NAME.") from None


def has_password_user() -> bool:
    """Whether anybody could log in with a password. The database must be migrated."""
    with reading() as session:
        return session.scalar(select(User.id).where(User.password_hash.is_not(None)).limit(1)) is not None
