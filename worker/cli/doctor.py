"""Check this machine and the data directory, and say what to do.

The machine: python, torch, GPU, disk, database, broker, assets. The data directory: what crashes can leave there, from
stale sockets to damaged checkpoints. --repair mends what it can and says what was done; it touches nothing that is in
use and deletes nothing that could be missed.

The exit status is 0 where everything that the studio needs is there and nothing needs attention.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minimind.errors import MiniMindError
from worker import assets

ROOT = Path(__file__).resolve().parent.parent.parent
#: a small run with its checkpoints
NEEDED_DISK_BYTES = 2 << 30
MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD ", "done": "done"}

#: (level, what was found, what to do)
Finding = tuple[str, str, str]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="mend what is found in the data directory")


def run(args: argparse.Namespace) -> int:
    bad = 0
    for name, check in CHECKS.items():
        try:
            findings = list(check())
        except MiniMindError as error:
            findings = [("bad", error.message, error.hint or "")]
        except Exception as error:  # a doctor that dies of what it looks for helps nobody: it is reported
            findings = [("bad", f"{type(error).__name__}: {error}", "")]
        for finding in findings:
            bad += _say(name, *finding)
    for name, finding in look_into_data_dir(repair=args.repair):
        bad += _say(name, *finding)
    print("Everything that the studio needs is here." if not bad else f"{bad} of these need attention.")
    return 1 if bad else 0


def _say(name: str, level: str, found: str, advice: str) -> bool:
    """Print one finding; True where it needs attention."""
    print(f"{MARKS[level]} {name:<9} {found}" + (f"\n                 {advice}" if advice else ""), flush=True)
    return level == "bad"


def look_into_data_dir(*, repair: bool) -> Iterator[tuple[str, Finding]]:
    """What ``worker.repair`` finds, mended if wished."""
    from worker import repair as repairs

    found = mendable = 0
    try:
        for name, finding in repairs.look():
            found += 1
            mendable += finding.repair is not None and not finding.in_use
            yield name, _mended(finding) if repair else (finding.level, finding.what, finding.in_use or finding.advice)
    except Exception as error:  # as above: it is reported
        found += 1
        yield "files", ("bad", f"{type(error).__name__}: {error}", "")
    if not found:
        yield "files", ("ok", "nothing in the data directory is left from a crash", "")
    elif mendable and not repair:
        yield "files", ("note", f"{mendable} of these can be mended here", "Run ./studio doctor --repair.")


def _mended(finding: Any) -> Finding:
    if finding.repair is None:
        return finding.level, finding.what, finding.advice
    if finding.in_use:
        return finding.level, finding.what, f"Left alone: {finding.in_use}"
    try:
        return "done", finding.what, finding.repair()
    except MiniMindError as error:
        return "bad", finding.what, str(error)
    except Exception as error:  # one that cannot be mended must not keep the others from it
        return "bad", finding.what, f"It could not be mended: {type(error).__name__}: {error}"


def check_python() -> Iterator[Finding]:
    yield ("ok" if sys.version_info >= (3, 11) else "bad",
           f"{platform.python_version()} at {sys.executable} on {platform.platform(terse=True)}",
           "" if sys.version_info >= (3, 11) else "Install Python 3.11 or newer.")


def check_packages() -> Iterator[Finding]:
    import importlib.metadata

    from packaging.requirements import Requirement

    wrong = []
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} is {found}")
    if wrong:
        advice = "Unset STUDIO_PYTHON, or remove .venv/requirements.stamp and start again." \
            if not os.environ.get("STUDIO_PYTHON") else "Fine for the core alone; the studio wants its own .venv."
        yield "note", f"differ from requirements.txt: {', '.join(wrong[:6])}{' ...' if len(wrong) > 6 else ''}", advice
    else:
        yield "ok", "as in requirements.txt", ""


def check_torch() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    level = "ok" if tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 10) else "bad"
    yield level, f"{torch.__version__}, {cores} CPU cores", "" if level == "ok" else "Install torch 2.10 or newer."
    gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    if not gloo:
        yield "note", "this torch has no gloo", "Runs on several CPU ranks will not work."


def check_gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        driver = shutil.which("nvidia-smi")
        if driver and not built:
            yield "note", "there is an NVIDIA driver, but this torch is built for CPUs only", \
                "Install a CUDA build of torch to train on the GPU."
        else:
            yield "note", "none; training runs on the CPU", ""
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield "ok", f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB", ""
    if importlib.util.find_spec("flash_attn") is None:
        yield "note", "flash-attn is not installed; PyTorch's own variable-length attention is used", \
            "It needs no package. pip install '.[gpu]' adds flash-attn."


def check_disk() -> Iterator[Finding]:
    from app.core.settings import get_settings

    data_dir = get_settings().data_dir
    existing = next(p for p in (data_dir, *data_dir.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        yield "bad", f"{existing} is not writable", "Choose another data directory with --data_dir."
        return
    free = shutil.disk_usage(existing).free
    yield ("ok" if free >= NEEDED_DISK_BYTES else "bad",
           f"{free / 2**30:.1f} GiB free for {data_dir}",
           "" if free >= NEEDED_DISK_BYTES else "Free some space, or choose another data directory with --data_dir.")


def check_memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield ("ok" if memory.available >= 2 << 30 else "note",
           f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB available",
           "" if memory.available >= 2 << 30 else "Training may be slow or be ended by the system.")


def check_database() -> Iterator[Finding]:
    from sqlalchemy import text

    from app.core import db
    from app.core.settings import get_settings

    url = get_settings().sqlalchemy_url
    if not url.startswith("sqlite"):
        with db.engine_for(url).connect() as connection:
            yield "ok", f"PostgreSQL {connection.scalar(text('SHOW server_version'))} answers", ""
        return
    version, mode = db.sqlite_dbapi.sqlite_version, db.journal_mode()
    yield ("ok" if mode == "wal" else "note", f"SQLite {version}, journal mode {mode}",
           "" if mode == "wal" else "This SQLite has a known fault with WAL, so the slower journal is used; the "
                                    "package pysqlite3 brings a newer one.")
    path = get_settings().data_dir / "studio.db"
    if path.exists():
        with db.engine_for(url).execution_options(read_only=True).connect() as connection:
            verdict = connection.scalar(text("PRAGMA quick_check"))
        yield ("ok" if verdict == "ok" else "bad", f"{path}: {verdict}",
               "" if verdict == "ok" else "Stop the studio and restore a copy of this file.")


def check_broker() -> Iterator[Finding]:
    from app.core.settings import get_settings
    from worker import broker

    if get_settings().redis_url:
        yield ("ok", "the given Redis answers", "") if broker.answers(get_settings().redis_url) else \
            ("bad", "the server in STUDIO_REDIS_URL does not answer", "Start it, or unset STUDIO_REDIS_URL.")
        return
    with tempfile.TemporaryDirectory(prefix="studio-doctor-") as directory:
        own = broker.prepare(Path(directory))
        process = subprocess.Popen(own.command, env={**os.environ, "PYTHONPATH": str(ROOT)},
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            answers = _within(10, lambda: broker.answers(own.url))
        finally:
            process.terminate()
            output = process.communicate(timeout=10)[0].decode(errors="replace").strip().splitlines()
        if answers:
            yield "ok", f"{own.binary} starts and answers", ""
        else:
            yield "bad", f"{own.binary} does not answer: {output[-1] if output else 'no output'}", \
                "Set STUDIO_REDIS_URL to a running Redis or Valkey (6.2 or newer)."


def check_assets() -> Iterator[Finding]:
    missing = [name for name in ("templates", "static", "migrations") if not (ROOT / name).is_dir()]
    if missing:
        yield "bad", f"{', '.join(missing)} missing in {ROOT}", "Clone the repository again."
        return
    advice = "Start any ./studio command without STUDIO_PYTHON, which builds them, or run 'npm ci --ignore-scripts' " \
             "and 'node static/build.mjs'."
    if not assets.is_built(ROOT):
        yield "bad", "the pages' scripts and styles were not built", advice
    elif not assets.is_current(ROOT):
        yield "note", "the pages' scripts and styles are older than their sources", advice
    else:
        yield "ok", "templates and migrations are there, scripts and styles are built", ""


def _within(seconds: float, is_true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_true():
            return True
        time.sleep(0.1)
    return False


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": check_python, "packages": check_packages, "torch": check_torch, "gpu": check_gpu, "disk": check_disk,
    "memory": check_memory, "database": check_database, "broker": check_broker, "assets": check_assets,
}
