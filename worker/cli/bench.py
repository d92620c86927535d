"""Run the benchmarks in benchmarks/: all of them, or the named one. What is left goes to the benchmark."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FORWARDS = True
NOT_HERE = 2  # status of a benchmark that this machine lacks something for


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="one of: " + ", ".join(benchmarks()))


def benchmarks() -> dict[str, Path]:
    """Name and program of every benchmark: ``benchmarks/NAME.py`` or ``benchmarks/NAME/__main__.py``."""
    directory = ROOT / "benchmarks"
    programs = [*directory.glob("[!_]*.py"), *directory.glob("*/__main__.py")]
    return {(p.parent.name if p.name == "__main__.py" else p.stem): p for p in sorted(programs)}


def run(args: argparse.Namespace) -> int:
    known = benchmarks()
    if args.name and args.name not in known:
        print(f"studio: there is no benchmark {args.name!r}. There is: {', '.join(known)}.", file=sys.stderr)
        return 2
    status = 0
    for name in [args.name] if args.name else known:
        print(f"== {name}", flush=True)
        ended = _run([sys.executable, "-P", str(known[name]), *args.rest])
        if args.name or ended != NOT_HERE:
            status = ended or status
    return status


def _run(command: list[str]) -> int:
    """Its status. Ctrl-C reaches the benchmark too, which ends in its own time: with a report, perhaps."""
    process = subprocess.Popen(command, cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
