"""A Celery worker that only the bell wakes, whose runners have a trainer that starts at once:
``python -m tests.worker.celery_rig VISIBILITY_S`` (after so long its broker gives an unacknowledged message away)."""

from __future__ import annotations

import sys

from app.core import logging
from tests.worker.runner_rig import FakeRunners
from worker import main, reconciler

if __name__ == "__main__":
    logging.setup("celery")
    reconciler.start_runner = FakeRunners().start
    main.celery.conf.broker_transport_options = {**main.celery.conf.broker_transport_options,
                                                 "visibility_timeout": float(sys.argv[1])}
    main.run_celery()
