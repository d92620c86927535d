"""What the doors of the studio ask the database before they open."""

from __future__ import annotations

from sqlalchemy import select

from app.core.db import reading
from app.core.models import User
from app.core.settings import get_settings
from minimind.errors import MiniMindError


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


def has_password_user() -> bool:
    """Whether anybody could log in with a password. The database must be migrated."""
    with reading() as session:
        return session.scalar(select(User.id).where(User.password_hash.is_not(None)).limit(1)) is not None
