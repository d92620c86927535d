"""What is said through the Redis-protocol server, and how: hints only, never truth.

Everything here may be lost, late or doubled without harm: the database knows, and every listener also polls.
So nothing here ever blocks or raises: messages are handed to one background thread of this process, which
tries for at most a second and otherwise forgets them.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from app.core.logging import get_logger
from app.core.settings import get_settings

log = get_logger(__name__)

SEND_LIMIT_S = 1.0
#: after a failure nothing is tried for this long: a broker that is away must not cost a second per message
QUIET_AFTER_FAILURE_S = 1.0
_MAX_PENDING = 10_000
#: what messages leave through: a client and the address it was made for; each can fail without the others
Door = tuple[str, str]
BROKER, CELERY = "broker", "celery"


def live_channel() -> str:
    """Every committed event of every topic: JSON ``{"topic", "seq"}``, ``seq`` the newest of that topic."""
    return f"{get_settings().redis_prefix}:live"


def runner_channel(run_id: str) -> str:
    """Wakes the runner of ``run_id``: its row holds a new wish."""
    return f"{get_settings().redis_prefix}:runner:{run_id}"


def notify(topic: str, seq: int) -> None:
    """Tell live listeners that ``topic`` has events up to ``seq``. Call after the commit."""
    _publish(("live", topic), live_channel(), json.dumps({"topic": topic, "seq": seq}))


def wake_runner(run_id: str) -> None:
    """Tell the runner of ``run_id`` to look at its row now. Call after the commit."""
    _publish(("runner", run_id), runner_channel(run_id), "wish")


class Background:
    """One daemon thread that sends what it is given; of several with one key only the last is sent."""

    def __init__(self) -> None:
        self._pending: dict[tuple[Door, Any], Callable[[], Any]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._sending = False

    def post(self, door: Door, key: Any, send: Callable[[], Any]) -> None:
        """Send soon, through ``door``."""
        with self._changed:
            if len(self._pending) < _MAX_PENDING:
                self._pending[door, key] = send
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="bells", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float = SEND_LIMIT_S) -> bool:
        """Wait until everything was tried (a process that is about to end); False if that took too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending and not self._sending, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._pending))
                batch = list(self._pending.items())
                self._pending.clear()
                self._sending = True
            failed: set[Door] = set()
            for (door, _), send in batch:
                if door in failed:
                    continue  # it would fail the same way; its listeners poll
                try:
                    send()
                except Exception as error:  # whatever the client library raises: a bell must never matter
                    log.warning("bell_not_rung", door=door[0], error=f"{type(error).__name__}: {error}")
                    failed.add(door)
            with self._changed:
                self._sending = False
                self._changed.notify_all()
            if failed:
                time.sleep(QUIET_AFTER_FAILURE_S)


background = Background()


def client(broker_url: str | None = None, **options: Any) -> Any:
    """A new redis-py client (default: of the configured server); never waits longer than ``SEND_LIMIT_S`` by
    default."""
    import redis

    limits = {"socket_timeout": SEND_LIMIT_S, "socket_connect_timeout": SEND_LIMIT_S}
    return redis.Redis.from_url(broker_url or get_settings().broker_url, **{**limits, **options})


def _publish(key: tuple[str, str], channel: str, message: str) -> None:
    url = get_settings().broker_url
    background.post((BROKER, url), key, lambda: _publisher(url).publish(channel, message))


@functools.cache
def _publisher(broker_url: str) -> Any:
    return client(broker_url)


# -- the bell of the workers --------------------------------------------------------------------------------------

WAKE_TASK = "worker.wake"


def celery_config(broker_url: str, prefix: str) -> dict[str, Any]:
    """Celery as a bell: acknowledged early, no results, JSON only, nothing hoarded, short waits."""
    return {
        "broker_url": broker_url,
        "result_backend": None,
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_default_queue": "wake",
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_max_tasks_per_child": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 3,
        "broker_transport_options": {"global_keyprefix": f"{prefix}:celery:",
                                     "socket_connect_timeout": SEND_LIMIT_S, "socket_timeout": 30},
    }


def ring(kind: str = "run") -> None:
    """Wake the workers: there may be work of ``kind`` (``run`` or ``job``). Call after the commit.

    Returns at once; a broker that is away costs nothing but the poll interval of the workers.
    """
    settings = get_settings()
    background.post((CELERY, settings.celery_broker_url), ("ring", kind),
                    lambda: _bell(settings.celery_broker_url, settings.redis_prefix).send_task(
                        WAKE_TASK, args=[kind], retry=False))


@functools.cache
def _bell(broker_url: str, prefix: str) -> Any:
    from celery import Celery

    config = celery_config(broker_url, prefix)
    config["broker_connection_timeout"] = SEND_LIMIT_S
    # kombu by itself would wait two seconds and try again, also with ``retry=False``
    config["broker_transport_options"] |= {"socket_timeout": SEND_LIMIT_S, "max_retries": 1, "interval_start": 0}
    app = Celery("studio-bell", set_as_current=False)
    app.conf.update(config)
    return app


def _after_fork() -> None:
    """A thread does not survive a fork and a socket must not be shared by two processes."""
    global background
    background = Background()
    _publisher.cache_clear()
    _bell.cache_clear()


os.register_at_fork(after_in_child=_after_fork)
