"""Start everything on this machine: web, worker, inference and broker.

Prints the address to open, with this start's login token. Ctrl-C saves running training and stops; the
next start continues it.
"""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", help="address to serve (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", metavar="P", type=int, help="port to serve (default: 8000; 0: any free one)")
    parser.add_argument("--no_browser", action="store_true", help="do not open a browser")


def run(args: argparse.Namespace) -> int:
    from app.core.settings import get_settings
    from worker.supervisor import options_from, up

    return up(options_from(get_settings(), host=args.host, port=args.port, browser=not args.no_browser))
