"""Make an API token: prints it alone on the last line. Works with the studio running or stopped.

NAME is the user it belongs to; before any user exists it belongs to the built-in local admin and NAME is
only its label.
"""

from __future__ import annotations

import argparse
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["create"])
    parser.add_argument("name", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    from app.auth.service import create_token
    from app.core.db import transaction
    from worker.database import migrate

    migrate()
    with transaction() as session:
        secret = create_token(session, args.name)
    print(f"Token {args.name}: send it as 'Authorization: Bearer TOKEN'; it is shown only now:", file=sys.stderr)
    print(secret, flush=True)
    return 0
