"""What a web process has to say to the broker: together, in order, and never so that somebody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as BrokerAway

from app.chat.request_writer import RequestWriter
from app.core import inference as protocol
from app.core.inference import Keys
from tests.inference_rig import Broker

KEYS = Keys("studio-test")


@pytest.fixture(autouse=True)
def empty(broker: Broker) -> None:
    with broker.client() as client:
        client.flushall()


class Counted(redis.asyncio.Redis):
    """The broker, which counts round trips and fails as ``failures`` say, one for each write."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.failures: list[Exception] = []
        self.writes = 0

    async def xlen(self, name: str) -> int:
        self.writes += 1
        if self.failures:
            raise self.failures.pop(0)
        return await super().xlen(name)


def with_writer(broker: Broker, then: Callable[[RequestWriter, Counted], Coroutine[Any, Any, None]]) -> list[str]:
    """Runs ``then``; what it had the writer wake readers for."""
    woken: list[str] = []

    async def run() -> None:
        client = Counted.from_url(broker.url, decode_responses=True)

        def wake(pipe: Any) -> None:
            woken.append("woken")

        writer = RequestWriter(client, KEYS, wake)
        try:
            await asyncio.wait_for(then(writer, client), 20)
        finally:
            await writer.close()
            await client.aclose()

    asyncio.run(run())
    return woken


def requests_at(broker: Broker) -> list[str]:
    with broker.client() as client:
        return [fields["id"] for _, fields in client.xrange(KEYS.requests)]


def test_a_crowd_goes_in_a_few_writes_and_in_order(broker: Broker) -> None:
    names = [f"request{n:03}" for n in range(50)]

    async def crowd(writer: RequestWriter, client: Counted) -> None:
        assert all(await asyncio.gather(*(writer.ask(name, {"id": name}) for name in names)))
        assert client.writes <= 2

    assert len(with_writer(broker, crowd)) <= 2
    assert requests_at(broker) == names
    with broker.client() as client:
        assert all(0 < client.ttl(KEYS.wanted(name)) <= protocol.WANTED_TTL_S for name in names)


@pytest.mark.parametrize("error", [BrokerAway("gone"), RuntimeError("Event loop is closed"), OSError("a bad socket")])
def test_a_failed_write_is_told_to_those_who_asked_and_to_nobody_else(broker: Broker, error: Exception) -> None:
    """Whatever it was: who asks next is heard by the same writer."""
    async def run(writer: RequestWriter, client: Counted) -> None:
        client.failures = [error]
        told = await asyncio.gather(*(writer.ask(f"first{n}", {"id": f"first{n}"}) for n in range(3)),
                                    return_exceptions=True)
        assert [(type(one), str(one)) for one in told] == [(type(error), str(error))] * 3
        assert await writer.ask("second", {"id": "second"}) is True

    with_writer(broker, run)
    assert requests_at(broker) == ["second"]


def test_who_gives_up_before_he_was_sent_is_not_sent(broker: Broker) -> None:
    async def run(writer: RequestWriter, client: Counted) -> None:
        gone = asyncio.create_task(writer.ask("gone", {"id": "gone"}))
        stays = asyncio.create_task(writer.ask("stays", {"id": "stays"}))
        await asyncio.sleep(0)  # both have asked, nothing is written
        gone.cancel()
        assert await stays is True and gone.cancelled()

    with_writer(broker, run)
    assert requests_at(broker) == ["stays"]


def test_who_leaves_is_not_wanted_any_more(broker: Broker) -> None:
    async def run(writer: RequestWriter, client: Counted) -> None:
        await writer.ask("asked", {"id": "asked"})
        assert await client.exists(KEYS.wanted("asked"))
        writer.leave("asked")
        await writer.close()
        assert not await client.exists(KEYS.wanted("asked"))

    with_writer(broker, run)


def test_more_than_may_wait_are_refused_and_those_before_them_taken(broker: Broker,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_WAITING", 3)

    async def run(writer: RequestWriter, client: Counted) -> None:
        assert await writer.ask("a", {"id": "a"}) is True
        assert await asyncio.gather(*(writer.ask(name, {"id": name}) for name in "bcde")) == [True, True, False, False]
        assert await writer.ask("f", {"id": "f"}) is False

    assert len(with_writer(broker, run)) == 2, "nobody is woken for a refusal"
    assert requests_at(broker) == ["a", "b", "c"]
