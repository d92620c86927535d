"""Structured logs: static event names, everything else in fields.

Library users and tests see nothing special; a process calls ``setup`` once. One line per event on stderr,
which the supervisor keeps in ``D/logs``.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

get_logger = structlog.stdlib.get_logger

# Through the standard library's logging from the first import on: where no process has called ``setup`` (a test, a
# command that prints a secret on stdout) nothing but warnings appears, and on stderr.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "process", "event"],
                                              drop_missing=True),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)


def setup(process: str, level: int = logging.INFO) -> None:
    """Configure logging of this process; ``process`` stands in every line."""
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(message)s", force=True)
    logging.captureWarnings(True)


def bind(**fields: Any) -> None:
    """Fields that every later line of this context carries (``run_id``, ``attempt``, ``request_id``)."""
    structlog.contextvars.bind_contextvars(**fields)
