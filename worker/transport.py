"""Celery's way to the broker, made to survive what is no message.

kombu reads whatever lies in the queue as JSON of its own form; anything else raises in the middle of Celery's event
loop and ends the process. Here it is logged and dropped: a message is only a bell, and the database knows what waits.
(Messages that are whole but not for us, an unknown task or pickled content, Celery itself refuses and logs.)
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from app.core.logging import get_logger

log = get_logger(__name__)

#: what a bell says of itself. A time limit or a date that Celery cannot calculate with would end its timer thread, and
#: Celery with it
HEADERS = ("task", "id", "lang", "root_id", "parent_id", "group", "origin")
#: the connection is in trouble, or there is nothing to read: not the message's fault
NOT_THE_MESSAGE = (Empty, redis.RedisError, OSError, MemoryError)


class Channel(kombu_redis.Channel):
    """Reads the queue; an entry that cannot be parsed is gone from it already."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except NOT_THE_MESSAGE:
            raise
        except Exception as error:  # whatever a parser says to bytes that somebody else has put there
            log.warning("message_rejected", error=f"{type(error).__name__}: {str(error)[:200]}")
            return True


class Transport(kombu_redis.Transport):
    """Hands a parsed entry on; one that has not the form of a message is rejected."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        known = {tag for channel in self.channels for tag in channel.qos._delivered}
        try:
            if isinstance(message, dict) and isinstance(message.get("headers"), dict):
                message["headers"] = {k: v for k, v in message["headers"].items() if k in HEADERS}
            super()._deliver(message, queue)
        except NOT_THE_MESSAGE:
            raise
        except Exception as error:
            log.warning("message_rejected", error=f"{type(error).__name__}: {str(error)[:200]}")
            for channel in self.channels:  # else it would count as being worked on, and come again in an hour
                for tag in set(channel.qos._delivered) - known:
                    channel.basic_reject(tag, requeue=False)


def install() -> None:
    """Use these for every ``redis://`` address of this process; before the first connection."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
