"""Make a user: prints the new password alone on the last line. Works with the studio running or stopped."""

from __future__ import annotations

import argparse
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["add"])
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--role", choices=["admin", "member", "viewer"], default="member",
                        help="what the user may do (default: member)")


def run(args: argparse.Namespace) -> int:
    from app.auth.service import create_user
    from app.core.db import transaction
    from worker.database import migrate

    migrate()
    with transaction() as session:
        password = create_user(session, args.name, args.role)
    print(f"User {args.name} ({args.role}) can log in with this password; it is shown only now:", file=sys.stderr)
    print(password, flush=True)
    return 0
