"""The web process alone: pages, REST, websocket and the OpenAI-compatible API. Migrates the database first."""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import socket
import sys

OPEN_FILES = 8192
#: seconds that a thread may compute while the event loop wants to go on: with Python's 5 ms, whoever is being answered
#: feels each thread of a crowd that arrives
SWITCH_S = 0.0005


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", help="address to serve (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="P", type=int, help="port to serve (default: 8000)")


def open_alone() -> socket.socket:
    """Without a supervisor: migrate, listen, and on a loopback address make and print a login token."""
    from app.core.settings import get_settings
    from worker.database import open_installation
    from worker.supervisor import check_host, in_url, is_loopback, listen

    settings = get_settings()
    open_installation()
    check_host(settings.host)
    listener = listen(settings.host, settings.port)
    url = f"http://{in_url(settings.host)}:{listener.getsockname()[1]}/"
    if is_loopback(settings.host) and not settings.login_token:
        os.environ["STUDIO_LOGIN_TOKEN"] = secrets.token_urlsafe(32)
        get_settings.cache_clear()
        url += f"?token={os.environ['STUDIO_LOGIN_TOKEN']}"
    print(f"Web process at {url}", flush=True)
    return listener


def allow_many_sockets() -> None:
    """Every page that is open holds one; the usual 1,024 open files are a soft limit, and ours to raise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(args: argparse.Namespace) -> int:
    given = os.environ.pop("STUDIO_LISTEN_FD", None)
    for name, value in (("STUDIO_HOST", args.host), ("STUDIO_PORT", args.port)):
        if value is not None:
            os.environ[name] = str(value)
    import uvicorn

    from app.core.collector import leave_alone_what_is_here

    listener = socket.socket(fileno=int(given)) if given else open_alone()
    config = uvicorn.Config("app.main:create_app", factory=True, timeout_graceful_shutdown=3, proxy_headers=False,
                            server_header=False, ws_max_size=64 * 1024, log_level="info", access_log=False)
    server = uvicorn.Server(config)
    allow_many_sockets()
    sys.setswitchinterval(SWITCH_S)
    config.load()
    leave_alone_what_is_here()
    server.run(sockets=[listener])
    return 0 if server.started else 1
