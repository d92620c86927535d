"""Do five hundred people who watch one run hear of its steps as soon as one does, and does its training mind?

    ./studio bench viewers [--viewers 500] [--seconds 20] [--rounds 2] [--no_compression]

A real job, a real web process. One viewer (the probe) watches all the time; in every second part of each round so many
others watch too, all with one user's token. Printed: the time from the event in the trainer to its receipt, with one
viewer and with all of them, and the difference (goal: 95th percentile under 300 ms); how far a viewer is behind the
first that heard; tokens a second with and without viewers (ratio); web's CPU and memory; and what becomes of a viewer
that does not read: closed with 1013, and whole again when it comes back with ``after``. The others are played by a
process of the lowest priority on the same machine, so that it takes little from web and trainer; what it is late itself
counts against us. Exit status 1 beyond a goal.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


from benchmarks._studio import SMALL, Studio  # noqa: E402

ADDED_GOAL_MS = 300.0
SPEED_GOAL = 0.95  # of the speed without viewers, unless parts without viewers were as slow
TOO_SLOW = 1013
#: a step of some tenths of a second: a few events a second, as a real run has
CONFIG = {**SMALL, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
          "intermediate_size": 384, "max_seq_len": 128, "batch_size": 8, "max_steps": 100_000, "save_interval": 100_000,
          "seed": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_compression", action="store_true", help="viewers that do not offer compression")
    parser.add_argument("--database", default="sqlite", help="sqlite, or the URL of a PostgreSQL server")
    parser.add_argument("--redis", default="", help="the URL of a Redis server; default: the embedded Valkey")
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.crowd:
        return play_crowd(json.loads(args.crowd))
    with tempfile.TemporaryDirectory(prefix="viewers-") as directory:
        studio = Studio(Path(directory), database=args.database, redis=args.redis)
        try:
            studio.start()
            found = measure(studio, args)
            stalled = stall(studio, found["run_id"])
        finally:
            studio.close()
    return report(found, stalled, args)


# -- the measurement ----------------------------------------------------------------------------------------------


def measure(studio: Studio, args: argparse.Namespace) -> dict:
    material = studio.material(rows=3000)
    run_id = studio.client.post("/runs", {
        "stage": "pretrain", "dataset_id": material["dataset_id"], "devices": {"kind": "cpu", "count": 1},
        "config": {**CONFIG, "tokenizer": material["tokenizer"]}})["id"]
    studio.client.wait(f"/runs/{run_id}", lambda r: (r["progress"]["step"] or 0) > 20, timeout_s=120)
    web, rank = studio.role("web")[0], studio.role("rank")[0]
    length = args.rounds * 2 * (args.seconds + 6) + 30
    probe = Crowd(studio, run_id, 1, length, not args.no_compression, nice=0)
    parts = []
    for _ in range(args.rounds):
        for viewers in (0, args.viewers):
            crowd = Crowd(studio, run_id, viewers, args.seconds + 60, not args.no_compression, nice=19) \
                if viewers else None
            if crowd is not None:
                crowd.wait_connected()
            time.sleep(2.0)  # the burst of snapshots is over
            part = {"viewers": viewers, "began": time.time(), "connect_s": crowd.connect_s if crowd else 0.0}
            cpu, rank_cpu = web.cpu_times(), rank.cpu_times()
            time.sleep(args.seconds)
            part |= {"ended": time.time(), "rss": web.memory_info().rss, "web_cpu": _cpu(web.cpu_times(), cpu),
                     "rank_cpu": _cpu(rank.cpu_times(), rank_cpu)}
            part["heard"] = crowd.end() if crowd is not None else []
            parts.append(part)
            print(f"  {viewers} viewers: web used {part['web_cpu'] / args.seconds:.0%} of a core", flush=True)
    return {"run_id": run_id, "parts": parts, "probe": probe.end(), "events": events_of(studio, run_id)}


def _cpu(after, before) -> float:
    return after.user + after.system - before.user - before.system


def events_of(studio: Studio, run_id: str) -> dict[int, tuple[float, int | None]]:
    """seq -> (when the trainer said it, tokens so far where it is a step)."""
    found, after = {}, 0
    while after is not None:
        page = studio.client.get(f"/runs/{run_id}/events", after=after, limit=1000)
        for event in page["items"]:
            found[event["seq"]] = (event["t"], event["tokens"] if event["type"] == "metrics" else None)
        after = page["next_cursor"]
    return found


class Crowd:
    """Viewers in a process of their own; what each heard, and when, comes back when it ends."""

    def __init__(self, studio: Studio, run_id: str, count: int, seconds: float, compression: bool, *, nice: int):
        self.path = studio.data_dir / f"crowd-{secrets.token_hex(4)}.json"
        asked = {"port": studio.port, "topic": f"run:{run_id}", "count": count, "seconds": seconds,
                 "compression": compression, "nice": nice, "out": str(self.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--crowd", json.dumps(asked)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "VIEWERS_TOKEN": studio.token}, cwd=ROOT)
        self.connect_s = 0.0

    def wait_connected(self) -> None:
        line = self.process.stdout.readline()
        if not line.startswith("connected"):
            raise SystemExit(f"The viewers could not connect: {line!r}")
        self.connect_s = float(line.split()[1])

    def end(self) -> list[list]:
        """For each viewer ``[close code or None, [[seq, time], ...]]``."""
        self.process.send_signal(signal.SIGTERM)
        self.process.stdout.read()
        self.process.wait(timeout=120)
        return json.loads(self.path.read_text())


# -- viewers ------------------------------------------------------------------------------------------------------


class Viewer:
    """The least of a websocket client: frames are told apart at once, and read when the time is over."""

    def __init__(self, port: int, token: str, compression: bool, receive_buffer: int | None = None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" if compression else ""
        self.socket.sendall((f"GET /api/v1/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                             f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n{offer}"
                             f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}\r\n"
                             f"Authorization: Bearer {token}\r\n\r\n").encode())
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.socket.recv(4096)
            if not received:
                break
            head += received
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise SystemExit(f"refused: {head[:200]!r}")
        head, _, self._buffer = head.partition(b"\r\n\r\n")
        self._compressed = b"permessage-deflate" in head
        self.frames: list[tuple[float, bool, bytes]] = []  # time, compressed, payload
        self.code: int | None = None

    def send(self, message: dict) -> None:
        self._send(0x81, json.dumps(message).encode())

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = secrets.token_bytes(4)
        size = struct.pack("!B", 0x80 | len(payload)) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
        self.socket.sendall(bytes([opcode]) + size + mask
                            + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))

    def read(self) -> bool:
        """What there is now; False when the connection is over."""
        try:
            received = self.socket.recv(1 << 18)
        except TimeoutError:
            raise
        except OSError:
            received = b""
        at = time.time()
        self._buffer += received
        place, size = 0, len(self._buffer)
        while size - place >= 2:
            first, length = self._buffer[place], self._buffer[place + 1]
            head = 2 if length < 126 else 4 if length == 126 else 10
            if size - place < head:
                break
            if length >= 126:
                length = int.from_bytes(self._buffer[place + 2:place + head], "big")
            if size - place < head + length:
                break
            self._take(first, self._buffer[place + head:place + head + length], at)
            place += head + length
        self._buffer = self._buffer[place:]
        return bool(received) and self.code is None

    def _take(self, first: int, payload: bytes, at: float) -> None:
        opcode = first & 0x0F
        if opcode == 1:
            self.frames.append((at, bool(first & 0x40), payload))
        elif opcode == 8:
            self.code = int.from_bytes(payload[:2], "big")
        elif opcode == 9:
            self._send(0x8A, payload)

    def messages(self) -> list[tuple[float, dict]]:
        """Everything that was heard, read now."""
        unpack = zlib.decompressobj(-15)
        found = []
        for at, compressed, payload in self.frames:
            text = unpack.decompress(payload + b"\x00\x00\xff\xff") if compressed else payload
            found.append((at, json.loads(text)))
        return found


def play_crowd(asked: dict) -> int:
    """The process of a crowd: connect, look until told to end, write down what was heard."""
    os.nice(asked["nice"])
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    began = time.monotonic()
    viewers, selector = [], selectors.DefaultSelector()
    for _ in range(asked["count"]):
        viewer = Viewer(asked["port"], os.environ["VIEWERS_TOKEN"], asked["compression"])
        viewer.send({"op": "sub", "topic": asked["topic"]})
        viewers.append(viewer)
        selector.register(viewer.socket, selectors.EVENT_READ, viewer)
    print(f"connected {time.monotonic() - began:.2f}", flush=True)
    deadline = time.monotonic() + asked["seconds"]
    while not stopped and time.monotonic() < deadline:
        for key, _ in selector.select(0.2):
            if not key.data.read():
                selector.unregister(key.fileobj)
    heard = [[v.code, [[m["seq"], at] for at, m in v.messages() if m["type"] != "snapshot"]] for v in viewers]
    Path(asked["out"]).write_text(json.dumps(heard))
    return 0


# -- one that does not read ---------------------------------------------------------------------------------------


def stall(studio: Studio, run_id: str) -> dict:
    """A viewer of the running job and of a noisy one stops to read, is closed, and comes back with ``after``."""
    from app.core import channels
    from app.core.db import session_factory, transaction
    from app.core.states import append_events

    channels.background.post = lambda *_: None  # web finds what is written here by its own look
    noisy = studio.client.post("/runs", {"stage": "pretrain", "config": {"max_steps": 1},
                                         "devices": {"kind": "cpu", "count": 2}})["id"]
    studio.client.post(f"/runs/{noisy}/pause")
    topics = (f"run:{run_id}", f"run:{noisy}")
    viewer = Viewer(studio.port, studio.token, False, receive_buffer=4096)
    last = {topic: _head(studio, topic) for topic in topics}
    for topic in topics:
        viewer.send({"op": "sub", "topic": topic, "after": last[topic]})
    began = time.monotonic()
    for _ in range(40):  # 20 MB that it does not take
        with transaction(session_factory(studio.database_url)) as session:
            append_events(session, topics[1], [
                {"attempt": 0, "t": time.time(), "type": "log", "step": 0, "tokens": 0,
                 "data": {"message": secrets.token_hex(5_000)}} for _ in range(50)])
        time.sleep(0.05)
    time.sleep(11.0)  # longer than web waits for one message to be taken
    try:
        while viewer.read():
            pass
    except TimeoutError:
        return {"code": None, "closed_s": 0.0, "lost": 0, "missed": "it was never closed"}
    heard = [m for _, m in viewer.messages() if m["type"] != "snapshot"]
    back = Viewer(studio.port, studio.token, False)
    problems = []
    for topic in topics:
        had = [m["seq"] for m in heard if m["topic"] == topic]
        if had != list(range(last[topic] + 1, last[topic] + 1 + len(had))):
            problems.append(f"{topic}: a gap before it was closed")
        last[topic] += len(had)
        back.send({"op": "sub", "topic": topic, "after": last[topic]})
    missed = _head(studio, topics[1]) - last[topics[1]]
    heads = {topic: _head(studio, topic) for topic in topics}
    deadline = time.monotonic() + 60
    seen: dict[str, list[int]] = {topic: [] for topic in topics}
    while time.monotonic() < deadline and any((seen[t] or [last[t]])[-1] < heads[t] for t in topics):
        back.frames.clear()
        back.read()
        for _, message in back.messages():
            if message["type"] != "snapshot":
                seen[message["topic"]].append(message["seq"])
    for topic in topics:
        if seen[topic][:heads[topic] - last[topic]] != list(range(last[topic] + 1, heads[topic] + 1)):
            problems.append(f"{topic}: not whole after it came back")
    return {"code": viewer.code, "closed_s": time.monotonic() - began, "missed": missed,
            "problems": problems}


def _head(studio: Studio, topic: str) -> int:
    found, after = 0, 0
    while after is not None:
        page = studio.client.get(f"/runs/{topic.partition(':')[2]}/events", after=after, limit=1000)
        found = page["items"][-1]["seq"] if page["items"] else found
        after = page["next_cursor"]
    return found


# -- the report ---------------------------------------------------------------------------------------------------


def report(found: dict, stalled: dict, args: argparse.Namespace) -> int:
    events, parts = found["events"], found["parts"]
    alone = latencies(found["probe"], events, [p for p in parts if not p["viewers"]])
    beside = latencies(found["probe"], events, [p for p in parts if p["viewers"]])
    crowd = [late for p in parts if p["viewers"] for late in latencies(p["heard"], events, [p])]
    behind = [late for p in parts if p["viewers"] for late in behind_first(p["heard"], events, p)]
    whole = [v for p in parts for v in p["heard"] if v[0] is None and _is_dense(v[1])]
    asked = sum(p["viewers"] for p in parts)
    speeds = {bool(v): [speed(events, p) for p in parts if bool(p["viewers"]) == v] for v in (False, True)}
    ratio = statistics.median(speeds[True]) / statistics.median(speeds[False])
    slowed = ratio < SPEED_GOAL and statistics.median(speeds[True]) < min(speeds[False])
    per_cpu = {bool(v): statistics.median(speed(events, p) * args.seconds / p["rank_cpu"] for p in parts
                                          if bool(p["viewers"]) == v) for v in (False, True)}
    added = [percentile(crowd, q) - percentile(alone, q) for q in (50, 95)]
    print(f"{'step to browser':<30}{'median':>9}{'p95':>9}")
    for name, values in (("1 viewer", alone), (f"the same beside {args.viewers}", beside),
                         (f"all {args.viewers}", crowd)):
        print(f"{name:<30}{percentile(values, 50):>6.0f} ms{percentile(values, 95):>6.0f} ms")
    print(f"{'added':<30}{added[0]:>6.0f} ms{added[1]:>6.0f} ms   {added[1] / ADDED_GOAL_MS:.2f} of the goal "
          f"(p95 {ADDED_GOAL_MS:.0f} ms)")
    print(f"{'behind the first to hear':<30}{percentile(behind, 50):>6.0f} ms{percentile(behind, 95):>6.0f} ms")
    print(f"viewers that heard everything, in order, once: {len(whole)} of {asked}")
    print("tokens/s without and with viewers, in turn: "
          + ", ".join(f"{a:,.0f} {b:,.0f}" for a, b in zip(speeds[False], speeds[True]))
          + f"; ratio {ratio:.3f} ({'SLOWED' if slowed else 'within the noise'}); for each second of its processor "
          f"time {per_cpu[True] / per_cpu[False]:.3f}")
    idle, busy = ([p for p in parts if bool(p["viewers"]) == v] for v in (False, True))
    grown = (max(p["rss"] for p in busy) - idle[0]["rss"]) / args.viewers / 1000
    print(f"web: {statistics.mean(p['web_cpu'] for p in idle) / args.seconds:.1%} of a core without, "
          f"{statistics.mean(p['web_cpu'] for p in busy) / args.seconds:.1%} with; {grown:.0f} kB a viewer; "
          f"{args.viewers} connect in {busy[0]['connect_s']:.1f} s")
    print(f"a viewer that does not read: closed with {stalled['code']}; it had missed {stalled['missed']} events and "
          f"got them{' all' if not stalled.get('problems') else ' NOT: ' + '; '.join(stalled['problems'])}")
    good = (added[1] < ADDED_GOAL_MS and len(whole) == asked and not slowed
            and stalled["code"] == TOO_SLOW and not stalled.get("problems"))
    return 0 if good else 1


def latencies(heard: list[list], events: dict, parts: list[dict]) -> list[float]:
    """Milliseconds from the event to each receipt, of events within ``parts``."""
    return [1000 * (at - events[seq][0]) for _, received in heard for seq, at in received
            if any(p["began"] <= events[seq][0] < p["ended"] - 2 for p in parts)]


def behind_first(heard: list[list], events: dict, part: dict) -> list[float]:
    first: dict[int, float] = {}
    for _, received in heard:
        for seq, at in received:
            first[seq] = min(at, first.get(seq, at))
    return [1000 * (at - first[seq]) for _, received in heard for seq, at in received
            if part["began"] <= events[seq][0] < part["ended"] - 2]


def speed(events: dict, part: dict) -> float:
    points = [(t, tokens) for t, tokens in events.values() if tokens is not None
              and part["began"] <= t < part["ended"]]
    return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def _is_dense(received: list[list]) -> bool:
    numbers = [seq for seq, _ in received]
    return bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def percentile(values: list[float], q: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * q // 100)] if ordered else float("nan")


if __name__ == "__main__":
    sys.exit(main())
