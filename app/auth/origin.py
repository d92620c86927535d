"""From where a request may come: the names under which the studio is reached, and the pages that may write to it.

A page on another site can make a browser send requests here, with the cookie, and can point a name of its own at
127.0.0.1 (DNS rebinding). So the Host must be a name that we know, and whatever changes something must come from
our own pages. Pure functions.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?)*)"
_PORT = r"(?::(?P<port>[1-9][0-9]{0,4}))?"
_HOST_HEADER = re.compile(rf"{_HOST}{_PORT}")
#: exactly what a browser writes: lower case, no user, no path, no trailing dot
_ORIGIN = re.compile(rf"(?P<scheme>https?)://{_HOST}{_PORT}")
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Names:
    """Host names under which this server may be asked."""

    allowed: frozenset[str]
    #: listening on every address: any IP literal is ours (a name cannot be rebound to a literal)
    any_address: bool = False

    @classmethod
    @functools.lru_cache(maxsize=16)
    def of(cls, host: str, further: str = "") -> Names:
        """``host`` is the address that is served, ``further`` a comma-separated list of names."""
        names = {n.strip().lower() for n in further.split(",") if n.strip()}
        everywhere = host in ("", "0.0.0.0", "::", "[::]")
        if everywhere:
            names.add(socket.gethostname().lower())
        else:
            names.add(f"[{host.lower()}]" if ":" in host and not host.startswith("[") else host.lower())
        return cls(LOOPBACK_NAMES | names, everywhere)

    def accept(self, host_headers: Iterable[str]) -> bool:
        """Whether a request with these Host headers is meant for us: exactly one, with a name of ours, any port."""
        headers = list(host_headers)
        match = _HOST_HEADER.fullmatch(headers[0].lower()) if len(headers) == 1 else None
        if match is None:
            return False
        return match["name"] in self.allowed or (self.any_address and _is_address(match["name"]))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def same_origin(origin: str, host_header: str) -> bool:
    """Whether ``origin`` is a page of the server that is asked as ``host_header`` (already accepted)."""
    page, host = _ORIGIN.fullmatch(origin), _HOST_HEADER.fullmatch(host_header.lower())
    if page is None or host is None:
        return False
    default = _DEFAULT_PORT[page["scheme"]]
    return page["name"] == host["name"] and int(page["port"] or default) == int(host["port"] or default)


def refusal(*, origins: list[str], fetch_site: str | None, host_header: str, has_cookie: bool,
            has_bearer: bool, websocket: bool) -> str | None:
    """Why an unsafe request or a websocket is refused, None where it may go on.

    A foreign value is refused whatever else is sent. A Bearer token may come without either header (programs
    send none); a cookie, which a browser adds by itself, may not.
    """
    if len(origins) > 1 or (origins and not same_origin(origins[0], host_header)):
        return "This request comes from another site (Origin)."
    if fetch_site is not None and fetch_site not in ("same-origin", "none"):
        return "This request comes from another site (Sec-Fetch-Site)."
    if has_cookie and not has_bearer and not origins and (websocket or fetch_site is None):
        return "A request with a cookie must say where it comes from (Origin)."
    return None
