"""The websocket behind a real server: snapshot, replay, live; nothing lost and nothing twice, whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import socket
import threading
import time

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from app import live, live_hub
from app.auth import service
from app.core import channels, states
from app.core.db import now, transaction
from app.core.models import ApiToken, Host, Installation
from app.core.settings import get_settings
from app.core.timing import get_timing
from tests import database_rig
from tests.app.conftest import Api, Server, receive
from tests.app.test_runs import new_run
from tests.inference_rig import running_broker, wait_for


@pytest.fixture(autouse=True)
def without_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker rings here: what arrives, arrives by the poll."""
    monkeypatch.setattr(get_timing(), "live_poll_s", 0.1)


def subscribe(connection, topic: str, after: int | None = None) -> dict:
    """The first answer to a subscription."""
    connection.send(json.dumps({"op": "sub", "topic": topic} | ({} if after is None else {"after": after})))
    return receive(connection)


def tell(run_id: str, count: int = 1, size: int = 10) -> None:
    """Append events as an ingest does, with ``size`` characters that no compression makes small."""
    with transaction() as session:
        states.append_events(session, f"run:{run_id}", [
            {"attempt": 1, "t": 1.0, "type": "log", "step": i, "tokens": 0,
             "data": {"message": random.randbytes(size // 2).hex()}} for i in range(count)])


def test_snapshot_replay_and_live(api: Api, server: Server) -> None:
    run = new_run(api)
    topic = f"run:{run['id']}"
    tell(run["id"], 5)
    with server.connect() as connection:
        snapshot = subscribe(connection, topic, 2)
        assert (snapshot["topic"], snapshot["type"], snapshot["seq"]) == (topic, "snapshot", 6)
        assert snapshot["data"] == run and snapshot["installation"] == "installation-1"
        told = [receive(connection) for _ in range(4)]
        assert [e["seq"] for e in told] == [3, 4, 5, 6]
        tell(run["id"], 2)
        api.post(f"/runs/{run['id']}/pause")
        told += [receive(connection) for _ in range(3)]
    by_rest = api.get(f"/runs/{run['id']}/events", after=2).json()["items"]
    assert [(e["seq"], e["type"], e["data"]) for e in told] == [(e["seq"], e["type"], e["data"]) for e in by_rest]
    assert told[-1]["data"]["state"] == "paused" and all(e["topic"] == topic for e in told)


def test_without_after_only_what_is_new_comes(api: Api, server: Server) -> None:
    run = new_run(api)
    tell(run["id"], 5)
    with server.connect() as connection:
        assert subscribe(connection, f"run:{run['id']}")["seq"] == 6
        tell(run["id"])
        assert receive(connection)["seq"] == 7


def test_a_long_history_is_replayed_whole(api: Api, server: Server) -> None:
    run = new_run(api)
    tell(run["id"], 3 * live_hub.PAGE)
    tell(run["id"], 300, size=20_000)  # more bytes than a client's queue holds
    head = 3 * live_hub.PAGE + 301
    with server.connect() as connection:
        assert subscribe(connection, f"run:{run['id']}", 0)["seq"] == head
        assert [receive(connection)["seq"] for _ in range(head)] == list(range(1, head + 1))


def test_nothing_is_lost_or_told_twice_while_clients_come_and_go(api: Api, server: Server) -> None:
    """Clients that are cut off at random and go on from their last event, while others write."""
    run = new_run(api)
    topic, total, problems = f"run:{run['id']}", 400, []

    def follow(seed: int) -> None:
        source, last = random.Random(seed), 0
        while last < total:
            with server.connect() as connection:
                if subscribe(connection, topic, last)["type"] != "snapshot":
                    problems.append("no snapshot")
                for _ in range(source.randint(1, 150)):
                    if last == total:
                        return
                    event = receive(connection)
                    if event["seq"] != last + 1:
                        problems.append(f"{event['seq']} after {last}")
                    last = event["seq"]

    followers = [threading.Thread(target=follow, args=(seed,)) for seed in range(4)]
    for thread in followers:
        thread.start()
    written, source = 1, random.Random(9)
    while written < total:
        count = min(source.randint(1, 20), total - written)
        tell(run["id"], count)
        written += count
        time.sleep(0.01)
    for thread in followers:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert problems == []


def test_a_pipeline_tells_its_story(api: Api, server: Server) -> None:
    line = api.post("/pipelines", {"name": "line", "stages": [{"stage": "pretrain", "config": {"max_steps": 1}}]})
    id = line.json()["id"]
    with server.connect() as connection:
        snapshot = subscribe(connection, f"pipeline:{id}", 0)
        assert snapshot["data"]["runs"][0]["stage"] == "pretrain"
        events = [receive(connection) for _ in range(snapshot["seq"])]
        assert [e["seq"] for e in events] == list(range(1, snapshot["seq"] + 1))
        api.post(f"/pipelines/{id}/cancel")
        while events[-1]["data"].get("state") != "cancelled":
            events.append(receive(connection))


def test_runs_and_system_tell_their_latest_value(api: Api, server: Server) -> None:
    first = new_run(api)
    with server.connect() as connection:
        snapshot = subscribe(connection, "runs")
        assert (snapshot["type"], [r["id"] for r in snapshot["data"]["items"]]) == ("snapshot", [first["id"]])
        second = new_run(api)
        update = receive(connection)
        while len(update["data"]["items"]) < 2:
            update = receive(connection)
        assert update["topic"] == "runs" and update["type"] != "snapshot" and update["seq"] > 0
        assert {r["id"] for r in update["data"]["items"]} == {first["id"], second["id"]}
        system = subscribe(connection, "system")
        assert system["type"] == "snapshot" and system["data"]["runs"]["queued"] == 2


def test_with_a_broker_news_comes_before_the_poll(api: Api, request: pytest.FixtureRequest,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_timing(), "live_poll_s", 60.0)
    with running_broker() as broker:
        monkeypatch.setenv("STUDIO_REDIS_URL", broker.url)
        get_settings.cache_clear()
        server: Server = request.getfixturevalue("server")
        run = new_run(api)
        with server.connect() as connection, broker.client() as redis:
            wait_for(lambda: redis.pubsub_numsub(channels.live_channel())[0][1], "the hub to listen")
            assert subscribe(connection, f"run:{run['id']}", 1)["seq"] == 1
            assert subscribe(connection, "runs")["type"] == "snapshot"
            redis.publish(channels.live_channel(), "nonsense")
            redis.publish(channels.live_channel(), "[1]")
            began = time.monotonic()
            api.post(f"/runs/{run['id']}/pause")
            topics = {receive(connection)["topic"], receive(connection)["topic"]}
            assert topics == {f"run:{run['id']}", "runs"} and time.monotonic() - began < 5


def test_reset_when_the_installation_is_another(api: Api, server: Server) -> None:
    run = new_run(api)
    topic = f"run:{run['id']}"
    with server.connect() as connection:
        first = subscribe(connection, topic, 99)
        assert (first["type"], first["seq"]) == ("reset", 1), "more than there is: of another database"
        assert receive(connection)["type"] == "snapshot"
        assert receive(connection)["seq"] == 1
        time.sleep(5 * get_timing().live_poll_s)  # the hub knows this installation by now
        with transaction() as session:
            session.get(Installation, 1).uid = "installation-2"
        again = receive(connection)
        assert (again["type"], again["data"]["installation"]) == ("reset", "installation-2")
        assert receive(connection)["installation"] == "installation-2"
        assert receive(connection)["seq"] == 1


NOT_UNDERSTOOD = [
    "", "x", "[]", "null", '"sub"', "{}", '{"op": "eval"}', '{"op": "sub"}', '{"op": "sub", "topic": 7}',
    '{"op": "sub", "topic": "run:"}', '{"op": "sub", "topic": "run:../../x"}', '{"op": "sub", "topic": "secrets"}',
    '{"op": "sub", "topic": "run:nope"}', '{"op": "sub", "topic": "runs", "after": -1}',
    '{"op": "sub", "topic": "runs", "after": "1"}', '{"op": "sub", "topic": "runs", "after": true}', "[" * 5000,
]


def test_what_is_not_understood_is_said(server: Server) -> None:
    with server.connect() as connection:
        for message in NOT_UNDERSTOOD:
            connection.send(message)
            answer = receive(connection)
            assert answer["type"] == "error" and answer["data"]["message"], message
            time.sleep(1 / live.MAX_MESSAGES_PER_S)
        assert subscribe(connection, "system")["type"] == "snapshot", "the connection goes on"


def test_the_load_of_a_host_comes_with_its_heartbeat_and_not_more_often(api: Api, server: Server,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    database_rig.add_host()
    free = itertools.count()
    monkeypatch.setattr("app.system.service.disk", lambda: {"total_bytes": 10**9, "free_bytes": next(free)})

    def beat(percent: float) -> dict:
        load = {"cpu_percent": percent, "memory_used_bytes": 1, "memory_total_bytes": 2, "gpus": []}
        with transaction() as session:
            host = session.get(Host, database_rig.HOST)
            host.load, host.last_seen_at = load, now(session)
        return load

    with server.connect() as connection:
        assert subscribe(connection, "system")["data"]["hosts"][0]["load"] is None
        for percent in (12.5, 13.0):
            load = beat(percent)
            update = receive(connection)
            assert update["type"] == "update" and update["data"]["hosts"][0]["load"] == load
            with pytest.raises(TimeoutError):
                connection.recv(timeout=8 * get_timing().live_poll_s)
        assert api.get("/system").json()["hosts"] == update["data"]["hosts"] and next(free) > 10
        assert update["data"]["disk"]["free_bytes"] > 0


def test_a_ping_is_answered_at_once(api: Api, server: Server) -> None:
    run = new_run(api)
    with server.connect() as connection:
        for _ in range(3):
            began = time.monotonic()
            connection.send('{"op": "ping", "topic": 7}')
            assert receive(connection) == {"topic": None, "type": "pong", "data": {}}
            assert time.monotonic() - began < 1
        assert subscribe(connection, f"run:{run['id']}")["type"] == "snapshot"
        connection.send('{"op": "ping"}')
        assert receive(connection)["type"] == "pong"
        tell(run["id"])
        assert receive(connection)["seq"] == 2, "what was asked for goes on"
    with server.connect() as connection:
        for _ in range(live.MAX_MESSAGES_PER_S + 1):
            connection.send('{"op": "ping"}')
        assert closed_with(connection) == live.TOO_MANY, "it counts as any message"


def closed_with(connection, timeout_s: float = 15) -> int:
    """The code that the server closes the connection with."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            connection.recv(timeout=timeout_s)
    return closed.value.rcvd.code if closed.value.rcvd else 1006


def test_limits_of_a_client(api: Api, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.connect() as connection:
        for _ in range(live.MAX_MESSAGES_PER_S + 1):
            connection.send('{"op": "unsub", "topic": "runs"}')
        assert closed_with(connection) == live.TOO_MANY
    with server.connect() as connection:
        connection.send("x" * 70_000)
        assert closed_with(connection) == 1009
    with server.connect() as connection:
        connection.send(b"\x00\xff")
        assert closed_with(connection) == live.NOT_TEXT
    with server.connect() as connection:
        for _ in range(live.MAX_TOPICS):  # at once, as a page does that is back
            assert subscribe(connection, "run:nothing")["type"] == "error"
        assert subscribe(connection, "runs")["type"] == "snapshot", "what does not exist takes no place"
    monkeypatch.setattr(live, "MAX_TOPICS", 1)
    with server.connect() as connection:
        assert subscribe(connection, "runs")["type"] == "snapshot"
        assert subscribe(connection, "system")["type"] == "error"
    monkeypatch.setattr(live, "MAX_SOCKETS_PER_USER", 1)
    with server.connect() as first, server.connect() as second:
        assert closed_with(second) == live.TOO_MANY
        assert subscribe(first, "system")["type"] == "snapshot"


def test_a_slow_client_is_closed_and_others_do_not_wait(api: Api, server: Server,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_hub, "MAX_WAITING_BYTES", 1_000_000)
    run = new_run(api)
    topic, last = f"run:{run['id']}", 1
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    with server.connect(sock=narrow, max_queue=1) as slow, server.connect() as quick:
        assert subscribe(slow, topic)["type"] == subscribe(quick, topic)["type"] == "snapshot"
        deadline = time.monotonic() + 30
        while len(server.app.state.hub._topics[topic].last) == 2:  # the kernel's buffers fill up first
            assert time.monotonic() < deadline, "never given up"
            tell(run["id"], 10, size=50_000)
            for _ in range(10):
                last += 1
                assert receive(quick)["seq"] == last, "the other one is not kept waiting"
        assert closed_with(slow) == live.TOO_SLOW
        tell(run["id"])
        assert receive(quick)["seq"] == last + 1


def test_a_login_that_ends_closes_the_socket(api: Api, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RECHECK_LOGIN_S", 0.2)
    with transaction() as session:
        token = service.create_token(session, "short-lived")
    with server.connect(Authorization=f"Bearer {token}") as connection:
        assert subscribe(connection, "runs")["type"] == "snapshot"
        time.sleep(0.5)
        assert subscribe(connection, "runs")["type"] == "snapshot", "still welcome"
        with transaction() as session:
            session.query(ApiToken).filter_by(name="short-lived").delete()
        assert closed_with(connection) == live.NOT_LOGGED_IN


def test_a_client_gets_what_waits_at_once_and_in_pieces_where_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_hub, "BATCH_BYTES", 100)

    async def story() -> None:
        client = live_hub.Client(lambda: pytest.fail("it is not slow"))
        for i in range(5):
            client.push_text(str(i))
        assert await client.next() == ["0", "1", "2", "3", "4"]
        waits = asyncio.create_task(client.next())
        await asyncio.sleep(0)
        assert not waits.done()
        for text in ("a" * 60, "b" * 60, "c"):
            client.push_text(text)
        assert await waits == ["a" * 60, "b" * 60], "no more than about so many bytes"
        assert await client.next() == ["c"]

    asyncio.run(story())


def test_hundreds_of_viewers_of_one_user_hear_everything_once(api: Api, server: Server) -> None:
    run = new_run(api)
    viewers, told = 250, 40

    async def watch(everybody_is_here: asyncio.Barrier) -> list[int]:
        async with connect(f"{server.url.replace('http', 'ws')}/api/v1/live", proxy=None, open_timeout=60,
                           additional_headers={"Authorization": f"Bearer {server.token}"}) as connection:
            await connection.send(json.dumps({"op": "sub", "topic": f"run:{run['id']}"}))
            assert json.loads(await connection.recv())["type"] == "snapshot"
            await everybody_is_here.wait()
            return [json.loads(await connection.recv())["seq"] for _ in range(told)]

    async def all_of_them() -> list[list[int]]:
        everybody_is_here = asyncio.Barrier(viewers + 1)
        watching = [asyncio.create_task(watch(everybody_is_here)) for _ in range(viewers)]
        await everybody_is_here.wait()
        for _ in range(told // 5):
            await asyncio.to_thread(tell, run["id"], 5)
        return await asyncio.gather(*watching)

    async def in_time() -> list[list[int]]:
        async with asyncio.timeout(120):
            return await all_of_them()

    assert asyncio.run(in_time()) == [list(range(2, told + 2))] * viewers


def test_connections_of_one_login_share_a_look_at_it(api: Api, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    still_valid = service.still_valid
    monkeypatch.setattr(service, "still_valid", lambda *asked: looked.append(1) or still_valid(*asked))
    monkeypatch.setattr(live, "RECHECK_LOGIN_S", 4.0)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(30)]
        time.sleep(4.0)
        assert 0 < len(looked) < 20, "each of them was due once"
        assert subscribe(connections[-1], "runs")["type"] == "snapshot"
