"""The inference process alone: keeps checkpoints in memory and answers chat requests from the broker."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    return


def run(args: argparse.Namespace) -> int:
    from worker import join
    from worker.inference import main

    join.check("inference")
    join.look_for_broker("inference")
    main()
    return 0
