"""The worker of this host alone: takes queued runs and jobs from the database.

Runs outlive it, and the next worker of the host adopts them; with --drain they save, pause and go back into the
queue when it ends.
"""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--drain", action="store_true", help="on SIGTERM let the runs save and requeue first")


def run(args: argparse.Namespace) -> int:
    from worker.main import main

    return main([], drain=args.drain or None)
