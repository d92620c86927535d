"""The database under a crowd of writers, and gone from under a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import func, select, text

from app.core import db
from app.core.models import Event, Run
from tests import database_rig
from tests.integration.faults_rig import QUICK, Cable, all_events, assert_sound, moves_of
from tests.integration.material import ONE_RANK, SMALL, ready_dataset, text_jsonl
from tests.integration.studio import ROOT, RunningStudio, own_postgres_database
from worker.client import ApiError

pytestmark = pytest.mark.integration
#: what runners and web processes do to the database, some hundred times as often: events, wishes, claims that find
#: nothing
WRITER = """
import json, random, sys, time
from app.core import channels
from app.core.db import now, reading, transaction
from app.core.models import Run
from app.core.queue import claim_run
from app.core.states import append_events, request_pause, request_resume
channels.background.post = lambda *_: None  # nobody listens, and to try costs time
seconds, mine, shared = float(sys.argv[1]), sys.argv[2], sys.argv[3]
source, took, events = random.Random(mine), [], 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    began = time.perf_counter()
    kind = source.random()
    with transaction() as session:
        if kind < 0.6:
            run_id, count = (mine if kind < 0.4 else shared), source.randint(1, 50)
            append_events(session, f"run:{run_id}", [
                {"attempt": 0, "t": now(session), "type": "metrics", "step": i, "tokens": i,
                 "data": {"loss": 1.5, "lr": 0.001}} for i in range(count)])
            events += count
        elif kind < 0.9:
            run = session.get(Run, shared if kind > 0.8 else mine)
            (request_pause if run.desired == "run" else request_resume)(session, run)
        else:
            assert claim_run(session, "nobody") is None
    took.append(time.perf_counter() - began)
    time.sleep(source.uniform(0, 0.1))
    if source.random() < 0.1:
        with reading() as session:
            session.get(Run, shared)
print(json.dumps({"took": took, "events": events}))
"""


@pytest.fixture(params=database_rig.backends())
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from database_rig.make_database(request.param, tmp_path, monkeypatch)


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_eight_processes_write_at_once_and_nobody_is_turned_away(database: str, seconds: int, record_property) -> None:
    shared, *own = [database_rig.add_run() for _ in range(9)]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(seconds), mine, shared], cwd=ROOT, text=True,
                                env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE) for mine in own]
    took, events = [], 0
    for writer in writers:
        output, errors = writer.communicate(timeout=seconds + 120)
        assert writer.returncode == 0, errors[-3000:]
        told = json.loads(output)
        took, events = took + told["took"], events + told["events"]
    with db.reading() as session:
        for run in session.scalars(select(Run)):
            seqs = session.scalars(select(Event.seq).where(Event.topic == f"run:{run.id}").order_by(Event.seq)).all()
            assert seqs == list(range(1, run.next_seq)), "a gap in the events"
        assert session.scalar(select(func.count()).where(Event.type == "metrics")) == events
        if database.startswith("sqlite"):
            assert session.scalar(text("PRAGMA integrity_check")) == "ok"
    took.sort()
    record_property("transactions", len(took))
    record_property("p99_ms", round(1000 * took[int(0.99 * len(took))], 1))
    print(f"{len(took)} transactions in {seconds} s, p50 {1000 * took[len(took) // 2]:.1f} ms, "
          f"p99 {1000 * took[int(0.99 * len(took))]:.1f} ms, longest {1000 * took[-1]:.0f} ms")


@pytest.mark.slow
@pytest.mark.skipif("STUDIO_TEST_DATABASE_URL" not in os.environ, reason="SQLite cannot be away")
@pytest.mark.parametrize("away_s", [1.0, 15.0], ids=["a moment", "several leases"])
def test_the_database_is_away_under_a_run(tmp_path: Path, away_s: float) -> None:
    """Training goes on, requests are refused in a sentence, and what was said meanwhile is told afterwards."""
    url, drop = own_postgres_database(os.environ["STUDIO_TEST_DATABASE_URL"])
    parts = urlsplit(url)
    cable = Cable(parts.hostname, parts.port or 5432)
    through = urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{cable.port}"))
    studio = RunningStudio(tmp_path, STUDIO_DATABASE_URL=through, **QUICK)
    try:
        studio.start()
        dataset = ready_dataset(studio.client, text_jsonl(rows=100, seed=7))
        config = {**SMALL, "max_steps": 100_000, "save_interval": 100_000}
        run_id = studio.client.post("/runs", {"stage": "pretrain", "dataset_id": dataset["id"], "config": config,
                                              "devices": ONE_RANK})["id"]
        step = studio.wait_step(run_id, 1)["progress"]["step"]
        cable.unplug()
        with pytest.raises(ApiError) as refused:
            studio.client.get(f"/runs/{run_id}")
        assert refused.value.status == 503 and "database" in str(refused.value).lower()
        time.sleep(away_s)
        cable.plug()
        studio.wait_web()
        studio.wait_step(run_id, step + 50)
        assert studio.client.get(f"/runs/{run_id}")["attempt"] == 1
        studio.client.post(f"/runs/{run_id}/cancel")
        studio.client.wait_run(run_id, ("cancelled",), timeout_s=45)
        assert_sound(studio, [run_id])
        steps = [e["step"] for e in all_events(studio, run_id, "metrics")]
        assert steps == list(range(1, len(steps) + 1))
        assert moves_of(studio, run_id)[:3] == ["queued", "starting", "running"]
    finally:
        studio.close()
        cable.close()
        drop()
