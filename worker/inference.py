"""The inference process: keeps checkpoints in memory and answers over Redis streams.

    python -m worker.inference

One per host, started by ``./studio up`` or ``./studio inference``. Threads: the main one takes requests; ``prepare``
and ``load`` turn them into token ids of a model in memory (torch is imported there, at the first request); ``serve``
makes tokens for all of them together; one gives signs of life. No request, checkpoint or broker restart ends it;
SIGTERM does, at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.core import inference as protocol
from app.core.inference import GenerationRequest, Keys, Reply
from app.core.logging import get_logger, setup
from app.core.settings import Settings, get_settings
from minimind.lifeline import die_as_told
from worker.engines import EngineCache, EngineOptions
from worker.priority import give_way
from worker.serving import ReplyChannel, Server

log = get_logger(__name__)

BrokerError = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError)
#: torch lets go of the interpreter at each of a step's hundreds of calls, and would wait Python's 5 ms to have it back
#: while another thread reads requests
SWITCH_S = 0.0005


class InferenceProcess:
    """Takes requests from the configured broker and has them answered."""

    def __init__(self, settings: Settings, engines: EngineCache):
        # No silent retry: a reply that was sent twice would show a word twice. A pooled connection that the
        # broker closed is noticed and replaced before use.
        self.broker = redis.Redis.from_url(settings.broker_url, socket_timeout=10, socket_connect_timeout=5,
                                           retry=Retry(NoBackoff(), 0))
        self.keys = Keys(settings.redis_prefix)
        self.host_id = settings.host_id
        self.name = f"{settings.host_id}-{os.getpid()}-{secrets.token_hex(4)}"
        self.changed = threading.Event()
        self.server = Server(self.broker, engines, self.changed.set)

    def run(self) -> None:
        """Serve until the process ends."""
        self._announce()
        threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True).start()
        self.server.start()
        log.info("inference_ready", name=self.name)
        self._take_forever()

    # -- taking requests -------------------------------------------------------------------------------------

    def _take_forever(self) -> None:
        pause_s = 0.1
        while True:
            try:
                self._make_group()
                self._beat()  # an asker trusts only a process that shows signs of life
                while True:
                    self._take()
                    pause_s = 0.1
            except BrokerError as error:
                log.warning("broker_away", error=str(error))
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):  # a broker that restarted empty: make the group again
                    log.warning("broker_refused", error=str(error))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)

    def _make_group(self) -> None:
        try:
            self.broker.xgroup_create(self.keys.requests, protocol.GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _take(self) -> None:
        """What waits, many at a time: a round trip for each would let a crowd that arrives together wait for itself."""
        answer = self.broker.xreadgroup(protocol.GROUP, self.name, {self.keys.requests: ">"}, count=64,
                                        block=1000, noack=True)
        entries = [entry for _, found in answer or [] for entry in found]
        if not entries:
            return
        self.broker.xdel(self.keys.requests, *(entry_id for entry_id, _ in entries))
        asked = [request for _, fields in entries if (request := self._understood(fields)) is not None]
        self._accept([(request, ReplyChannel(self.broker, self.keys, request.id)) for request in asked])

    @staticmethod
    def _understood(fields: dict[bytes, bytes]) -> GenerationRequest | None:
        try:
            return GenerationRequest.from_fields(fields)
        except ValueError as error:
            log.warning("request_rejected", error=str(error))
            return None

    def _accept(self, asked: list[tuple[GenerationRequest, ReplyChannel]]) -> None:
        with self.broker.pipeline(transaction=False) as pipe:
            for _, channel in asked:
                pipe.exists(channel.wanted)
            wanted = pipe.execute()
        for (request, _), is_wanted in zip(asked, wanted, strict=True):
            if not is_wanted:
                log.info("request_too_late", request=request.id)
        here = [entry for entry, is_wanted in zip(asked, wanted, strict=True) if is_wanted]
        room = self.server.room
        try:
            self._answer(here, room)
        finally:  # who may have heard that he is accepted waits for as long as this process lives
            for request, channel in here[:room]:
                self.server.take(request, channel)

    def _answer(self, here: list[tuple[GenerationRequest, ReplyChannel]], room: int) -> None:
        with self.broker.pipeline(transaction=False) as pipe:
            for _, channel in here[:room]:
                channel.open(pipe, Reply(type="accepted", process=self.name))  # before anybody else can say anything
            for _, channel in here[room:]:
                channel.open(pipe, Reply(type="error", kind="busy", message=(
                    f"{protocol.MAX_WAITING} requests are with this model server already. Try again in a few "
                    "seconds.")))
            pipe.execute()

    # -- signs of life ---------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Say that the process which served this host before is gone, so that its askers need not wait."""
        with contextlib.suppress(*BrokerError):
            before = self.broker.set(self.keys.host(self.host_id), self.name, get=True)
            if before:
                self.broker.delete(self.keys.process(before.decode()))
            self._beat()

    def _beat(self) -> None:
        status: dict[str, Any] = {"process": self.name, "host": self.host_id, "pid": os.getpid(),
                                  **self.server.status()}
        with self.broker.pipeline(transaction=False) as pipe:
            for key in (self.keys.heartbeat, self.keys.process(self.name)):
                pipe.set(key, json.dumps(status), ex=protocol.HEARTBEAT_TTL_S)
            pipe.execute()

    def _beat_forever(self) -> None:
        while True:
            try:
                self._beat()
            except redis.RedisError as error:
                log.warning("heartbeat_not_sent", error=str(error))
            time.sleep(0.05)  # at most twenty a second, however much changes
            self.changed.wait(protocol.HEARTBEAT_INTERVAL_S)
            self.changed.clear()


def main() -> None:
    die_as_told()
    # Nothing here needs saving, and Python's default would leave pid 1 of a container deaf to SIGTERM.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    setup("inference")
    sys.setswitchinterval(SWITCH_S)
    settings = get_settings()
    options = EngineOptions.from_environment(settings.data_dir)
    give_way(options.share)
    InferenceProcess(settings, EngineCache(options)).run()


if __name__ == "__main__":
    main()
