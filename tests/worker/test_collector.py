"""Processes that answer people: a full garbage collection has nothing left to walk over that was there at the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint_rig import make_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SHOW = "print(gc.get_freeze_count(), len(gc.get_objects()))"
#: what each does before it answers anybody, then what is out of the collector's sight and what is not
PROGRAMS = {
    "web": f"""
import argparse, gc, os, socket
import uvicorn
from worker.cli import web

os.environ["STUDIO_LISTEN_FD"] = str(socket.create_server(("127.0.0.1", 0)).detach())
uvicorn.Server.run = lambda server, sockets: {SHOW}
web.run(argparse.Namespace(host=None, port=None))
""",
    "inference": f"""
import gc, pathlib, sys
from worker.engines import EngineCache, EngineOptions

EngineCache(EngineOptions()).get(pathlib.Path(sys.argv[1]))
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules, "seconds before the first answer"
{SHOW}
"""}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_was_there_before_the_first_answer_is_left_alone(name: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "one", seed=1)
    shown = subprocess.run([sys.executable, "-c", PROGRAMS[name], str(checkpoint)], cwd=ROOT, text=True, timeout=120,
                           env={**os.environ, "STUDIO_DATA_DIR": str(tmp_path)}, capture_output=True)
    assert shown.returncode == 0, shown.stderr
    left_alone, looked_at = map(int, shown.stdout.split()[-2:])
    assert left_alone > 50_000 and looked_at < left_alone / 5, shown.stdout
