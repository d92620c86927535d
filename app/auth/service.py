"""Who may come in: users, passwords, API tokens and browser sessions.

Secrets are random and long, so the database keeps only their SHA-256; passwords, which people choose or copy,
are kept as argon2id.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, select

from app.core.db import Session, now
from app.core.errors import TooMany, Unauthorized
from app.core.models import LOCAL_ADMIN_ID, ROLES, ApiToken, LoginSession, User, new_id
from app.core.settings import Settings
from minimind.errors import MiniMindError

SESSION_DAYS = 30
#: a token's last use is written down at most this often
LAST_USED_EVERY_S = 600.0
_hasher = PasswordHasher()
#: argon2 takes 64 MiB a check: two at a time are enough for a studio
_hashing = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Identity:
    """Who sends a request."""

    user_id: str
    name: str
    role: str
    #: hash of the secret that was shown: a session's or an API token's
    session_hash: str | None = None
    token_hash: str | None = None

    @property
    def may_write(self) -> bool:
        return self.role != "viewer"


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


# -- made by an admin, on the command line ------------------------------------------------------------------------


def create_user(session: Session, name: str, role: str = "member") -> str:
    """Add a user and return the password made for it. Raises ``MiniMindError``."""
    name = name.strip()
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise MiniMindError("A user's name has 1 to 100 printable characters.", field="name",
                            hint="Choose a name such as anna.")
    if role not in ROLES:
        raise MiniMindError(f"There is no role named {role!r}.", field="role", hint=f"Roles: {', '.join(ROLES)}.")
    if session.scalar(select(User.id).where(User.name == name)):
        raise MiniMindError(f"There is a user named {name!r} already.", field="name", hint="Choose another name.")
    password = secrets.token_urlsafe(24)
    session.add(User(id=new_id(), name=name, role=role, password_hash=_hasher.hash(password),
                     created_at=now(session)))
    session.flush()
    return password


def create_token(session: Session, name: str) -> str:
    """Add an API token of the user ``name`` and return its secret, which is kept nowhere.

    Before any user exists it belongs to the built-in local admin and ``name`` is only its label. Raises
    ``MiniMindError`` where there are users but none of that name.
    """
    name = name.strip()
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise MiniMindError("A token's name has 1 to 100 printable characters.", field="name",
                            hint="Choose a name such as laptop.")
    owner = session.scalar(select(User).where(User.name == name))
    if owner is None:
        others = list(session.scalars(select(User.name).where(User.id != LOCAL_ADMIN_ID).order_by(User.name).limit(10)))
        if others:
            raise MiniMindError(f"There is no user named {name!r}.", field="name",
                                hint=f"Make the token for one of: {', '.join(others)}; or add the user first "
                                     f"with ./studio user add.")
    secret = secrets.token_urlsafe(32)
    session.add(ApiToken(id=new_id(), user_id=owner.id if owner else LOCAL_ADMIN_ID, name=name,
                         token_hash=hash_secret(secret), created_at=now(session)))
    session.flush()
    return secret


# -- every request ------------------------------------------------------------------------------------------------


def identify_token(session: Session, secret: str) -> tuple[Identity, bool] | None:
    """Who owns this Bearer token, and whether its last use should be written down; None if nobody does."""
    return _owner_of_token(session, hash_secret(secret))


def _owner_of_token(session: Session, token_hash: str) -> tuple[Identity, bool] | None:
    row = session.execute(select(User, ApiToken.last_used_at).join(ApiToken, ApiToken.user_id == User.id)
                          .where(ApiToken.token_hash == token_hash)).first()
    if row is None:
        return None
    user, last_used_at = row
    stale = last_used_at is None or now(session) - last_used_at > LAST_USED_EVERY_S
    return Identity(user.id, user.name, user.role, token_hash=token_hash), stale


def mark_used(session: Session, secret: str) -> None:
    token = session.scalar(select(ApiToken).where(ApiToken.token_hash == hash_secret(secret)))
    if token is not None:
        token.last_used_at = now(session)


def identify_session(session: Session, secret: str) -> Identity | None:
    """Whose session this cookie carries, None if it is unknown or over."""
    return _owner_of_session(session, hash_secret(secret))


def _owner_of_session(session: Session, session_hash: str) -> Identity | None:
    user = session.scalar(select(User).join(LoginSession, LoginSession.user_id == User.id)
                          .where(LoginSession.id_hash == session_hash, LoginSession.expires_at > now(session)))
    return Identity(user.id, user.name, user.role, session_hash) if user else None


def still_valid(session: Session, identity: Identity) -> Identity | None:
    """Who this is now (roles change), None once the session or token is gone: for connections that last."""
    if identity.session_hash is not None:
        return _owner_of_session(session, identity.session_hash)
    found = _owner_of_token(session, identity.token_hash or "")
    return found[0] if found else None


# -- coming and going ---------------------------------------------------------------------------------------------


def open_session(session: Session, user_id: str) -> str:
    """Start a browser session; returns the cookie's secret. Sessions that are over are cleared on the way."""
    at = now(session)
    session.execute(delete(LoginSession).where(LoginSession.expires_at <= at))
    secret = secrets.token_urlsafe(32)
    session.add(LoginSession(id_hash=hash_secret(secret), user_id=user_id, created_at=at,
                             expires_at=at + SESSION_DAYS * 86400))
    session.flush()
    return secret


def close_session(session: Session, session_hash: str) -> None:
    session.execute(delete(LoginSession).where(LoginSession.id_hash == session_hash))


def is_login_token(settings: Settings, given: str) -> bool:
    """Whether ``given`` is the token of this start, compared in constant time."""
    expected = settings.login_token
    return bool(expected) and hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


class FailedLogins:
    """Slows guessing: after ``limit`` failures of one name within ``window_s`` that name has to wait."""

    def __init__(self, limit: int = 10, window_s: float = 300.0):
        self.limit, self.window_s = limit, window_s
        self._failures: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def check(self, name: str) -> None:
        """Raises ``TooMany`` while ``name`` has to wait."""
        with self._lock:
            recent = self._recent(name)
            if len(recent) >= self.limit:
                wait = int(self.window_s - (time.monotonic() - recent[0])) + 1
                raise TooMany("Too many wrong passwords for this name.", headers={"Retry-After": str(wait)},
                              hint=f"Wait {wait} seconds.")

    def add(self, name: str) -> None:
        with self._lock:
            if len(self._failures) > 10_000:  # names come from outside: never keep more than that
                self._failures.clear()
            self._failures[name] = [*self._recent(name), time.monotonic()]

    def _recent(self, name: str) -> list[float]:
        since = time.monotonic() - self.window_s
        return [t for t in self._failures.get(name, []) if t > since]


failed_logins = FailedLogins()


def check_password(session: Session, name: str, password: str) -> str:
    """The id of the user ``name`` if this is the password; raises ``Unauthorized`` or ``TooMany``."""
    failed_logins.check(name)
    user = session.scalar(select(User).where(User.name == name))
    known = user.password_hash if user else None
    if not _verify(known, password):
        failed_logins.add(name)
        raise Unauthorized("This name and password do not belong together.", hint="Try again, or ask an admin.")
    return user.id


def _verify(password_hash: str | None, password: str) -> bool:
    """A user without password costs the same time as a wrong one: names cannot be found out by the clock."""
    with _hashing:
        if password_hash is None:
            _hasher.hash(password)
            return False
        try:
            return _hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False
