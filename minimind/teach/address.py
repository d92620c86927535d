"""Which addresses a teacher may have, and the connection to one.

A server that asks where its users tell it to must not be led to places that only it can reach. Link-local addresses
and those of clouds' metadata services are refused, whatever name leads there: names are resolved here, and what was
looked at is what is connected to. Loopback and private networks are allowed: a model on one's own machine is the
most common teacher.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from minimind.teach.teachers import TeacherError

MAX_URL_CHARS = 2000
CONNECT_TIMEOUT_S = 20.0
#: metadata services outside of the link-local ranges: Alibaba, Oracle, AWS by IPv6
METADATA = tuple(map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
#: IPv4 addresses as networks of IPv6 alone write them
NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHAPE = "It looks like http://127.0.0.1:11434/v1."


@dataclass(frozen=True)
class Address:
    """``base``: the path in front of ``/chat/completions``, without a slash at its end."""

    scheme: str
    host: str
    port: int
    base: str

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_usual = self.port == {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}{'' if is_usual else f':{self.port}'}"

    @property
    def url(self) -> str:
        return self.origin + self.base

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """An open connection whose reads wait ``timeout_s``. Raises ``OSError``, and ``TeacherError`` for an address
        that is refused."""
        plain = self._dial()
        try:
            if self.scheme == "http":
                connection = http.client.HTTPConnection(self.host, self.port)
            else:
                plain = _context().wrap_socket(plain, server_hostname=self.host)
                connection = http.client.HTTPSConnection(self.host, self.port, context=_context())
            plain.settimeout(timeout_s)
        except BaseException:
            plain.close()
            raise
        connection.auto_open = 0
        connection.sock = plain
        return connection

    def _dial(self) -> socket.socket:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for *_, place in found:
            check_ip(str(place[0]))
        last: OSError = ConnectionRefusedError(f"{self.host} has no address")
        for family, kind, protocol, _, place in found:
            dialled = socket.socket(family, kind, protocol)
            try:
                dialled.settimeout(CONNECT_TIMEOUT_S)
                dialled.connect(place)
                return dialled
            except OSError as error:
                dialled.close()
                last = error
        raise last


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def parse_address(url: str) -> Address:
    """The address of an OpenAI-compatible server from what somebody typed. Raises ``TeacherError``."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = None, "", None
    if parts is None or len(url) > MAX_URL_CHARS or not url.isprintable() or any(c.isspace() for c in url):
        raise _wrong("The endpoint's address cannot be read.", _SHAPE)
    if parts.scheme not in ("http", "https"):
        raise _wrong("The endpoint's address does not begin with http:// or https://.", _SHAPE)
    if parts.username is not None or parts.password is not None:
        raise _wrong("The endpoint's address holds a user name or a password.", "Keys are given apart from it.")
    if parts.query or parts.fragment:
        raise _wrong("The endpoint's address has something behind a ? or a #.", _SHAPE)
    if not host:
        raise _wrong("The endpoint's address names no server.", _SHAPE)
    try:
        host = host.encode("idna").decode()  # as it is looked up: labels of 1 to 63 characters
    except UnicodeError:
        raise _wrong("The endpoint's address names no server.", _SHAPE) from None
    base = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/") or "/v1"
    if not base.isascii():
        raise _wrong("The path of the endpoint's address is not ASCII.", _SHAPE)
    if (ip := _ip_in(host)) is not None:  # else a name: it is looked at when it is resolved
        check_ip(ip)
    return Address(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme], base)


def _ip_in(host: str) -> str | None:
    """The address that ``host`` spells, also as one number or in hexadecimal, as resolvers read it; None for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def check_ip(text: str) -> None:
    """Raises ``TeacherError`` for an address that no teacher has."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
    if address in NAT64:
        address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.is_link_local or address.is_multicast or address in METADATA or (
            address.is_unspecified or address == ipaddress.ip_address("255.255.255.255")):
        raise _wrong(f"The endpoint's address leads to {text}, where no teacher may be.",
                     "Link-local, multicast and metadata addresses are refused; this machine itself is 127.0.0.1.")


def _wrong(message: str, hint: str) -> TeacherError:
    return TeacherError(message, field="endpoint", hint=hint)
