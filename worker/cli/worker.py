"""The worker of this host alone: takes queued runs and jobs from the database.

Runs outlive it, and the next worker of the host adopts them; with --drain they save, pause and go back into the
queue when it ends. On a further machine, STUDIO_DATABASE_URL, STUDIO_REDIS_URL and STUDIO_DATA_DIR name what it
shares with the others; docs/running-elsewhere.md has the details.
"""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--drain", action="store_true", help="on SIGTERM let the runs save and requeue first")


def run(args: argparse.Namespace) -> int:
    from worker import join
    from worker.main import main

    join.check("worker")
    with join.only_worker():
        join.look_for_broker("worker")
        return main([], drain=args.drain or None)
