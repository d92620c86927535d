"""Kill everything, again and again, and look whether anything was lost.

    ./studio bench soak --minutes 5 [--seed S] [--database sqlite|URL] [--redis URL] [--lease_s 4] [--out DIR]

A studio of its own trains a fleet of tiny real runs on one and two ranks, some of them paused, resumed and cancelled,
while web, broker, database connections (SQLite: an exclusive lock that is held), Celery, worker, inference, runners,
torchrun, ranks and the supervisor are killed, and runners are stopped and let go on, at random by the seed. Then the
rows, the events and the checkpoints are read. The goal is zero in every line that has one; else the exit status is 1
and the data directory is kept. Ctrl-C ends it early, with a report.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from app.core.db import reader_factory, reading  # noqa: E402
from app.core.timing import Timing  # noqa: E402
from benchmarks._studio import Studio  # noqa: E402
from benchmarks.soak.faults import Chaos, plan  # noqa: E402
from benchmarks.soak.fleet import SAVE_INTERVAL, Fleet  # noqa: E402
from benchmarks.soak.judge import Verdict, dump, judge  # noqa: E402
from benchmarks.soak.watch import Follower, Sampler, Viewer  # noqa: E402

#: what is still to be trained when the killing ends gets this long
COME_TO_REST_S = 300.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--database", default="sqlite", help="sqlite, or the URL of a PostgreSQL server")
    parser.add_argument("--redis", default="", help="the URL of a Redis server; default: the embedded Valkey")
    parser.add_argument("--lease_s", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="keep the data directory there")
    args = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    print(f"seed {seed}  (./studio bench soak --minutes {args.minutes:g} --seed {seed})", flush=True)
    directory = Path(args.out or tempfile.mkdtemp(prefix="soak-")).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in (("STUDIO_DATA_DIR", str(directory)), ("STUDIO_LEASE_S", str(args.lease_s))):
        os.environ[name] = value  # what is imported here reads the same settings
    studio = Studio(directory, database=args.database, redis=args.redis, STUDIO_LEASE_S=str(args.lease_s),
                    STUDIO_RETRY_FIRST_S="1")
    soak = Soak(studio, seed, args.minutes * 60, Timing(lease_s=args.lease_s))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, soak.interrupt)
    try:
        verdict = soak.run()
        status = report(soak, verdict)
    except KeyboardInterrupt:
        print("\nended without a report", flush=True)
        status = 130
    finally:
        studio.close()
    if args.out is None and (status == 0 or not soak.references):
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"kept: {directory}", flush=True)
    return status


class Soak:
    """Start, kill for a while, come to rest, stop, judge."""

    def __init__(self, studio: Studio, seed: int, seconds: float, timing: Timing):
        self.studio, self.seed, self.seconds, self.timing = studio, seed, seconds, timing
        self.stop = threading.Event()  # Ctrl-C
        self.chaos = Chaos(studio, self.stop)
        self.references: dict[str, str] = {}  # until there are some there is nothing to report
        self.processes_left: list[str] = []
        self.stop_status = 0
        self._shown = 0.0

    def interrupt(self, _number: int, _frame: object) -> None:
        if self.stop.is_set() or not self.references:
            raise KeyboardInterrupt
        self.stop.set()
        print("\nending: the studio is stopped and what there is is judged (once more: at once)", flush=True)

    def run(self) -> Verdict:
        self.studio.start()
        self.fleet = Fleet(self.studio, self.seed, self.studio.material())
        self.follower = Follower(self.studio, self.fleet)
        self.viewer = Viewer(self.studio, self.fleet)
        self.sampler = Sampler(self.studio, self.chaos, self.timing)
        print("training the uninterrupted references ...", flush=True)
        self.references = self.fleet.references()
        threads = (self.fleet, self.sampler, self.follower, self.viewer)
        for thread in threads:
            thread.start()
        self._kill_for_a_while()
        self._come_to_rest()
        for thread in threads:
            thread.ended.set()
            thread.join(timeout=30)
        if self.studio.process is not None:
            self.follower.look()
        self._stop_studio()
        verdict = judge(self.studio, self.fleet, (self.follower, self.viewer), self.references,
                        whole=not self.stop.is_set())
        verdict.zombies += self.sampler.zombies.values()
        verdict.leftovers += self.processes_left
        if self.stop_status != 0:
            verdict.wrong.append(f"the studio ended with status {self.stop_status}")
        return verdict

    def _kill_for_a_while(self) -> None:
        began = time.monotonic()
        ends = began + self.seconds
        for fault in plan(self.seed, self.timing.lease_s):
            wake = time.monotonic() + fault.wait_s
            while not self.stop.is_set() and time.monotonic() < min(wake, ends):
                self.stop.wait(0.2)
                self._show(began, ends)
            if self.stop.is_set() or time.monotonic() >= ends:
                return
            self.chaos.strike(fault)

    def _come_to_rest(self) -> None:
        """No more killing: everything that was posted must end by itself."""
        self.fleet.closing.set()
        self.chaos.ready()
        began = time.monotonic()
        while not self.stop.is_set() and self.fleet.unfinished() and time.monotonic() < began + COME_TO_REST_S:
            self.stop.wait(0.2)
            self._show(began, None)
        self.studio.wait(lambda: self.stop.is_set() or self.viewer.whole >= set(self.fleet.members), 15)
        print(flush=True)

    def _stop_studio(self) -> None:
        self.stop_status = self.studio.stop()
        self.studio.wait(lambda: not self.studio.processes(), 5)
        self.processes_left = [f"process {p.pid} {' '.join(p.cmdline())[:100]}" for p in self.studio.processes()]

    def _show(self, began: float, ends: float | None) -> None:
        """One line of a terminal; elsewhere a line every 15 seconds."""
        terminal = sys.stdout.isatty()
        now = time.monotonic()
        if now - self._shown < (0.5 if terminal else 15.0):
            return
        self._shown = now
        states: dict[str, int] = {}
        for member in list(self.fleet.members.values()):
            states[member.state] = states.get(member.state, 0) + 1
        left = f"{ends - now:4.0f} s left" if ends else f"coming to rest {now - began:3.0f} s"
        text = (f"{left}  {sum(self.chaos.done.values())} faults  "
                + ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
                + f"  zombies {len(self.sampler.zombies)}  "
                + f"gaps {len(self.follower.gaps) + len(self.viewer.gaps)}")
        print(f"\r\033[K{text}"[:150] if terminal else text, end="" if terminal else "\n", flush=True)


def report(soak: Soak, verdict: Verdict) -> int:
    chaos, lost = soak.chaos, verdict.lost_steps
    print(f"\nseed {soak.seed}, {soak.seconds / 60:g} minutes, {soak.studio.database_url.partition(':')[0]}, "
          f"{'Redis' if soak.studio.redis_url else 'embedded Valkey'}, lease {soak.timing.lease_s:g} s; "
          f"a page that watched was cut off {max(0, soak.viewer.connections - 1)} times")
    print("faults        " + ", ".join(f"{kind} {n}" for kind, n in chaos.done.most_common())
          + f"  = {sum(chaos.done.values())}  ({sum(chaos.missed.values())} found nothing to hit)")
    print("runs          " + ", ".join(f"{n} {state}" for state, n in verdict.outcomes.most_common())
          + f"  = {sum(verdict.outcomes.values())} in {verdict.attempts} attempts")
    print(f"lost steps    {max(lost, default=0)} at most, {sum(lost) / len(lost) if lost else 0:.1f} on average in "
          f"{verdict.interruptions} interruptions; saved every {SAVE_INTERVAL} steps")
    print(f"noticed       rows without a process stood for {soak.sampler.longest_s:.0f} s at most "
          f"(allowed: {soak.sampler.allowed_s:.0f} s)")
    print(f"{'':<42}{'found':>6}  goal")
    for name, found in (("lost more steps than the save interval", verdict.too_many_lost),
                        ("zombie rows", verdict.zombies), ("wrong states, weights or moves", verdict.wrong),
                        ("gaps or doubles in events and metrics", verdict.gaps),
                        ("left over: processes, half-made files", verdict.leftovers),
                        ("not ended at the end", verdict.unfinished)):
        print(f"{name:<42}{len(found):>6}     0")
    complaints = verdict.complaints
    for line in complaints[:40]:
        print(f"  {line}")
    if complaints:
        keep(soak, complaints)
    return 1 if complaints else 0


def keep(soak: Soak, complaints: list[str]) -> None:
    """Everything that is known of the runs complained of, and what was done when, as ``soak.json``."""
    with reading(reader_factory(soak.studio.database_url)) as session:
        runs = {id: dump(session, id) for id in soak.fleet.members if any(id in line for line in complaints)}
    path = soak.studio.data_dir / "soak.json"
    path.write_text(json.dumps({"seed": soak.seed, "complaints": complaints, "faults": soak.chaos.log, "runs": runs},
                               indent=1))
    print(f"the story of {len(runs)} runs: {path}; their files: {soak.studio.data_dir / 'runs'}")


if __name__ == "__main__":
    sys.exit(main())
