"""A real worker whose runners have a trainer that starts at once: ``python -m tests.worker.worker_rig [--drain]``.

``STUDIO_POLL_S`` in the environment sets how often it looks by itself.
"""

from __future__ import annotations

import os
import sys

from tests.worker.runner_rig import FakeRunners
from worker import main, reconciler

if __name__ == "__main__":
    reconciler.start_runner = FakeRunners().start
    os.environ.setdefault("STUDIO_POLL_S", "0.3")
    sys.exit(main.main(sys.argv[1:]))
