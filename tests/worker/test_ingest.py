"""Storing what a trainer has said, beside others who change the same run."""

from __future__ import annotations

import threading
import time

from sqlalchemy import update

from app.core.db import transaction
from app.core.models import Attempt, Run
from app.core.queue import claim_run
from app.core.settings import get_settings
from minimind.events import EventWriter
from minimind.run_dir import RunDir
from tests.database_rig import HOST, add_host, add_run, get_run
from worker.ingest import Ingest


def test_who_loses_a_run_while_its_events_are_stored_waits_for_his_turn(database: str) -> None:
    """The reconciler locks the run, then its attempt. Locked in another order here, PostgreSQL had to end one of
    the two."""
    add_host()
    run_id = add_run()
    with transaction() as session:
        assert claim_run(session, HOST).run_id == run_id
    run_dir = RunDir(get_settings().runs_dir / run_id)
    writer = EventWriter(run_dir.make_attempt(1).events, 1)
    writer.write("log", {"message": "hello"}, step=3)
    writer.close()
    seen: list = []
    with transaction() as session:
        session.get(Run, run_id, with_for_update=True)
        reader = threading.Thread(target=lambda: seen.append(Ingest(run_id, 1, run_dir).pump()))
        reader.start()
        time.sleep(0.7)
        session.execute(update(Attempt).where(Attempt.run_id == run_id).values(state="lost"))
    reader.join(timeout=20)
    assert [s.events for s in seen] == [1]
    assert get_run(run_id).next_seq > 1
