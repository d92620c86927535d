"""What a route asks for when it wants to know who is there. ``app.auth.guard`` has found it out already."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.auth.service import Identity
from app.core.errors import Unauthorized

LOGIN_HINT = "Send a session cookie or 'Authorization: Bearer TOKEN'; ./studio token create NAME makes a token."


def require_user(connection: HTTPConnection) -> Identity:
    """Who sends this request; raises ``Unauthorized`` where nobody was recognised."""
    identity = connection.scope.get("identity")
    if identity is None:
        raise Unauthorized("You are not logged in.", hint=LOGIN_HINT)
    return identity


User = Annotated[Identity, Depends(require_user)]
