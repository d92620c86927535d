"""A real worker whose runners have a trainer that starts at once: ``python -m tests.worker.worker_rig [--drain]``.

What a bell starts has the real trainer. ``--join``: through the door of ``./studio worker``, which asks whether this
machine may take part, and with the quick trainer for bells too. ``STUDIO_POLL_S`` in the environment sets how often it
looks by itself.
"""

from __future__ import annotations

import os
import sys

from tests.worker.runner_rig import FakeRunners
from worker import main, reconciler
from worker.cli import __main__ as door

if __name__ == "__main__":
    reconciler.start_runner = FakeRunners().start
    os.environ.setdefault("STUDIO_POLL_S", "0.3")
    arguments = sys.argv[1:]
    if "--join" in arguments:
        arguments.remove("--join")
        main.Worker.celery_command = (sys.executable, "-m", "tests.worker.worker_rig", "celery")
        sys.exit(door.main(["worker", *arguments]))
    sys.exit(main.main(arguments))
