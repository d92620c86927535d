"""What does a long queue cost, and what an idle studio?

    ./studio bench queue [--queued 1000] [--finished 10000] [--database sqlite|URL] [--idle_s 60]
                         [--only claim pages idle]

A database with so many queued and finished runs. Measured are, each as its median, its 95th percentile and its share of
the goal: a claim that finds a run and one that finds nothing that fits (goal: 20 ms), the pages and the API through a
real web process (goal: 200 ms), four claimers that are woken ten times each at once (nothing may be claimed twice), and
the processor time of all processes of a studio that has nothing to do (goal: 3 % of one core). Exit status 1 beyond a
goal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from sqlalchemy import Engine, func, insert, select, update  # noqa: E402

from app.core import channels  # noqa: E402
from app.core.db import engine_for, now, session_factory, transaction  # noqa: E402
from app.core.models import Attempt, Checkpoint, DeviceLease, Event, Host, Run, new_id, unix_now  # noqa: E402
from app.core.queue import Claim, claim_run  # noqa: E402
from app.core.states import move  # noqa: E402
from benchmarks._studio import ROLES, Studio  # noqa: E402

CLAIM_GOAL_MS, PAGE_GOAL_MS, IDLE_GOAL_PERCENT = 20.0, 200.0, 3.0
CLAIMS, REQUESTS = 60, 25
CLAIMERS, WAKES, SLOTS = 4, 10, 16
HOSTS = ("alpha", "beta")
PAGES = ("/runs", "/api/v1/runs", "/runs?state=active", "/system", "/api/v1/system")
CONFIG = {"preset": "tiny-cpu", "max_steps": 1000, "save_interval": 100, "learning_rate": 1e-3, "seed": 7}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queued", type=int, default=1000)
    parser.add_argument("--finished", type=int, default=10_000)
    parser.add_argument("--database", default=os.environ.get("STUDIO_DATABASE_URL") or "sqlite",
                        help="sqlite, or the URL of a PostgreSQL server; default: STUDIO_DATABASE_URL")
    parser.add_argument("--idle_s", type=float, default=60.0)
    parser.add_argument("--only", nargs="+", choices=("claim", "pages", "idle"), default=("claim", "pages", "idle"))
    args = parser.parse_args()
    ring_nobody()
    beyond = 0
    for database in dict.fromkeys(("sqlite", args.database)):
        print(f"-- {database.partition(':')[0]}: {args.queued:,} queued, {args.finished:,} finished", flush=True)
        with tempfile.TemporaryDirectory(prefix="queue-") as directory:
            studio = Studio(Path(directory), database=database)
            try:
                beyond += measure(studio, args)
            finally:
                engine_for(studio.database_url).dispose()
                studio.close()
    return 1 if beyond else 0


def measure(studio: Studio, args: argparse.Namespace) -> int:
    """How many goals were missed."""
    studio.token = studio.command("token", "create", "bench").stdout.split()[-1]  # makes the database
    fill(engine_for(studio.database_url), args.queued, args.finished)
    beyond = 0
    print(f"{'':<44}{'median':>9}{'p95':>9}{'of goal':>9}")
    if "claim" in args.only:
        beyond += show("claim that finds a run", list(claims(studio.database_url)), CLAIM_GOAL_MS)
        ask_for(studio.database_url, {"kind": "cuda", "count": 1})
        beyond += show("claim that finds nothing that fits", list(empty_claims(studio.database_url)), CLAIM_GOAL_MS)
        ask_for(studio.database_url, {"kind": "cpu", "count": 1})
        beyond += crowd_of_claimers(studio.database_url)
    if "pages" in args.only:
        beyond += pages(studio)
    if "idle" in args.only:
        beyond += idle(studio, args.idle_s)
    return beyond


def show(name: str, seen_ms: list[float], goal_ms: float) -> bool:
    """True where the median is beyond the goal."""
    median, p95 = statistics.median(seen_ms), sorted(seen_ms)[len(seen_ms) * 95 // 100]
    print(f"{name:<44}{median:>6.1f} ms{p95:>6.1f} ms{median / goal_ms:>9.2f}", flush=True)
    return median > goal_ms


# -- the database -------------------------------------------------------------------------------------------------


def fill(engine: Engine, queued: int, finished: int) -> None:
    """Rows as a studio makes them; finished runs with an attempt, a checkpoint and some events each."""
    began = time.monotonic()
    with engine.begin() as connection:
        at = connection.execute(select(unix_now())).scalar_one()
        connection.execute(insert(Host), [
            {"id": host, "name": host, "boot_id": "boot", "cpu_slots": SLOTS, "devices": [], "versions": {},
             "draining": False, "last_seen_at": at} for host in HOSTS])
        runs = [_run(at - 10 * (finished + queued - i), "completed" if i < finished else "queued", i)
                for i in range(finished + queued)]
        connection.execute(insert(Run), runs)
        ended = runs[:finished]
        connection.execute(insert(Attempt), [
            {"run_id": r["id"], "number": 1, "state": "closed", "host_id": HOSTS[0], "boot_id": "boot",
             "started_at": r["started_at"], "ended_at": r["ended_at"], "events_offset": 4000, "resumed_from_step": 0,
             "world_size": 1} for r in ended] or [])
        connection.execute(insert(Checkpoint), [
            {"id": new_id(), "run_id": r["id"], "attempt": 1, "stage": r["stage"], "step": 1000, "tokens": 1_000_000,
             "bytes": 1 << 20, "loss": 2.0, "path": f"/nowhere/{r['id']}", "state": "ready",
             "created_at": r["ended_at"]} for r in ended])
        connection.execute(insert(Event), [event for r in runs for event in _events(r)])
    print(f"filled in {time.monotonic() - began:.0f} s", flush=True)


def _run(at: float, state: str, number: int) -> dict:
    done = state == "completed"
    progress = {"step": 1000, "total_steps": 1000, "tokens": 1_000_000, "loss": 2.0, "tokens_per_s": 5000.0,
                "eta_s": 0.0, "sparkline": [[i * 33, 9.0 - i / 5] for i in range(30)], "sparkline_stride": 33}
    return {"id": new_id(), "name": f"run {number}", "user_id": "local", "stage": "pretrain", "config": CONFIG,
            "devices": {"kind": "cpu", "count": 1}, "notes": "", "tags": ["bench"] if number % 3 == 0 else [],
            "attempt": int(done), "fruitless_attempts": 0, "priority": number % 3, "nodes": 1, "save_on_stop": False,
            "allow_changes": False, "desired": "run", "state": state, "progress": progress if done else {},
            "next_seq": 10 if done else 2, "created_at": at, "updated_at": at + 5, "queued_at": at, "queue_key": at,
            "started_at": at + 1 if done else None, "ended_at": at + 5 if done else None}


def _events(run: dict) -> Iterator[dict]:
    common = {"topic": f"run:{run['id']}", "tokens": 0, "step": 0, "attempt": run["attempt"], "t": run["created_at"]}
    yield common | {"seq": 1, "type": "state", "data": {"state": "queued", "from": None}}
    for seq in range(2, run["next_seq"]):
        yield common | {"seq": seq, "type": "metrics", "step": 100 * seq,
                        "data": {"loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 5000.0}}


def ask_for(url: str, devices: dict) -> None:
    with transaction(session_factory(url)) as session:
        session.execute(update(Run).where(Run.state == "queued").values(devices=devices))


# -- claims -------------------------------------------------------------------------------------------------------


def ring_nobody() -> None:
    """There is no broker here, and each bell that is not heard would be said."""
    channels.background.post = lambda *_: None


def timed_claim(url: str, host: str) -> tuple[float, Claim | None]:
    began = time.perf_counter()
    with transaction(session_factory(url)) as session:
        claim = claim_run(session, host)
    return 1000 * (time.perf_counter() - began), claim


def claims(url: str) -> Iterator[float]:
    """Each run is put back into its place behind the clock."""
    for number in range(CLAIMS + 1):
        ms, claim = timed_claim(url, HOSTS[0])
        if not isinstance(claim, Claim):
            raise SystemExit(f"A claim found {claim} in a full queue.")
        with transaction(session_factory(url)) as session:
            run = session.get(Run, claim.run_id)
            move(session, run, "pausing", reason="shutdown")
            move(session, run, "queued")
        if number:  # the first one opens the connection
            yield ms


def empty_claims(url: str) -> Iterator[float]:
    for _ in range(CLAIMS):
        ms, claim = timed_claim(url, HOSTS[0])
        if claim is not None:
            raise SystemExit("A host without GPUs claimed a run that wants one.")
        yield ms


def _claimer(job: tuple[str, str]) -> list[tuple[float, str | None]]:
    """One process that is woken again and again: each time it takes all that fits."""
    url, host = job
    ring_nobody()
    seen = []
    for _ in range(WAKES):
        while True:
            ms, claim = timed_claim(url, host)
            seen.append((ms, f"{claim.run_id}/{claim.attempt}" if claim else None))
            if claim is None:
                break
    return seen


def crowd_of_claimers(url: str) -> bool:
    """Four processes for two hosts at once; True where something was claimed twice or not at all."""
    jobs = [(url, HOSTS[i % len(HOSTS)]) for i in range(CLAIMERS)]
    with multiprocessing.get_context("spawn").Pool(CLAIMERS) as pool:
        seen = [each for claimer in pool.map(_claimer, jobs, chunksize=1) for each in claimer]
    taken = [mark for _, mark in seen if mark]
    with transaction(session_factory(url)) as session:
        leases = session.scalar(select(func.count()).select_from(DeviceLease))
        starting = session.scalar(select(func.count()).select_from(Run).where(Run.state == "starting"))
        for run in session.scalars(select(Run).where(Run.state == "starting")):
            move(session, run, "pausing", reason="shutdown")
            move(session, run, "queued")
    expected = SLOTS * len(HOSTS)
    good = len(set(taken)) == len(taken) == leases == starting == expected
    ordered = sorted(ms for ms, _ in seen)
    print(f"{f'claim, {CLAIMERS} claimers at once':<44}{statistics.median(ordered):>6.1f} ms"
          f"{ordered[len(ordered) * 95 // 100]:>6.1f} ms")
    print(f"{CLAIMERS} claimers, {WAKES} wakes each, {expected} free slots: {len(taken)} claims, "
          f"{len(taken) - len(set(taken))} doubles, {leases} leases {'' if good else ' WRONG'}")
    return not good


# -- pages --------------------------------------------------------------------------------------------------------


def pages(studio: Studio) -> int:
    """Through the web process alone: no worker takes anything from the queue meanwhile."""
    with transaction(session_factory(studio.database_url)) as session:
        session.execute(update(Host).values(last_seen_at=now(session) + 3600))
    web = subprocess.Popen([str(ROOT / "studio"), "web", "--port", str(studio.port)],
                           env={**studio.env, "MINIMIND_DIE_WITH_PARENT": str(os.getpid())},
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = studio.new_client(timeout_s=60)
    try:
        if not studio.wait(lambda: answers(lambda: client.http.get("/healthz")), 60):
            raise SystemExit("The web process does not answer.")
        cursor = client.get("/runs", limit=100)["next_cursor"]
        beyond = 0
        for path in (*PAGES, f"/api/v1/runs?limit=100&cursor={cursor}", "/api/v1/runs?text=run%20500"):
            seen = []
            for _ in range(REQUESTS + 2):
                began = time.perf_counter()
                answer = client.http.get(path)
                seen.append(1000 * (time.perf_counter() - began))
                if answer.status_code != 200:
                    raise SystemExit(f"{path} answered {answer.status_code}.")
            beyond += show(f"GET {path if len(path) < 32 else path[:31] + '...'}", seen[2:], PAGE_GOAL_MS)
        return beyond
    finally:
        client.close()
        web.terminate()
        web.wait(timeout=30)


def answers(ask: Callable) -> bool:
    try:
        return ask().status_code == 200
    except Exception:  # whatever a server that is not there yet does to a connection
        return False


# -- nothing to do ------------------------------------------------------------------------------------------------


def idle(studio: Studio, seconds: float) -> bool:
    """A whole studio with the finished runs and an empty queue, and nobody looks at it."""
    with transaction(session_factory(studio.database_url)) as session:
        at = now(session)
        session.execute(update(Run).where(Run.state == "queued").values(state="cancelled", ended_at=at))
        session.execute(update(Host).values(last_seen_at=at - 3600))
    studio.start()
    time.sleep(20)  # what every start does once
    before, began = cpu_of(studio), time.monotonic()
    time.sleep(seconds)
    after, passed = cpu_of(studio), time.monotonic() - began
    studio.stop()
    used = {role: 100 * (after[role] - before.get(role, 0.0)) / passed for role in after}
    total = sum(used.values())
    print(f"idle for {passed:.0f} s: {total:.2f} % of a core ({total / IDLE_GOAL_PERCENT:.2f} of the goal): "
          + ", ".join(f"{role} {percent:.2f}" for role, percent in sorted(used.items(), key=lambda u: -u[1])))
    return total > IDLE_GOAL_PERCENT


def cpu_of(studio: Studio) -> dict[str, float]:
    """Seconds of processor time so far, by role; the supervisor is what plays none."""
    seen: dict[str, float] = {}
    for process in studio.processes():
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        role = next((name for name, sign in ROLES.items() if sign in line), "supervisor")
        seen[role] = seen.get(role, 0.0) + times.user + times.system
    return seen


if __name__ == "__main__":
    sys.exit(main())
