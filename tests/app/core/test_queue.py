"""Claims are unique, fit the devices, and respect priority; leases; jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sqlalchemy import select, update

from app.core import db, queue, states
from app.core.models import Attempt, Dataset, DeviceLease, Host, Job, Run
from tests.database_rig import HOST, add_host, add_run, get_run

ROOT = Path(__file__).resolve().parents[3]
CLAIMER = """
import sys
from app.core.db import transaction
from app.core.queue import claim_run
misses = 0
while misses < 3:
    with transaction() as session:
        claim = claim_run(session, sys.argv[1])
    if claim is None:
        misses += 1
    else:
        print(claim.run_id, *claim.devices)
"""


def test_four_processes_on_two_hosts_claim_each_run_once(database):
    for host in ("a", "b"):
        add_host(host, cpu_slots=20)
    runs = {add_run(devices={"kind": "cpu", "count": 1}) for _ in range(30)}
    claimers = [subprocess.Popen([sys.executable, "-c", CLAIMER, host], cwd=ROOT, env={**os.environ}, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE) for host in "aabb"]
    claimed = []
    for claimer in claimers:
        output, errors = claimer.communicate(timeout=60)
        assert claimer.returncode == 0, errors
        claimed += [line.split() for line in output.splitlines()]
    assert Counter(c[0] for c in claimed) == dict.fromkeys(runs, 1)
    with db.reading() as session:
        assert len(session.scalars(select(DeviceLease)).all()) == 30
        assert {r.state for r in session.scalars(select(Run))} == {"starting"}


def test_priority_then_age_and_what_does_not_fit_is_passed_by(database):
    add_host(cpu_slots=2)
    old = add_run(devices={"kind": "cpu", "count": 1})
    add_run(devices={"kind": "cuda", "count": 1}, priority=9)
    urgent = add_run(devices={"kind": "cpu", "count": 1}, priority=5)
    whole = add_run(devices="auto", priority=1)
    claims = []
    for _ in range(4):
        with db.transaction() as session:
            claims.append(queue.claim_run(session, HOST))
    assert [c and c.run_id for c in claims] == [urgent, old, None, None]
    assert get_run(whole).state == "queued"


def test_many_that_do_not_fit_do_not_hide_one_that_does(database):
    add_host(cpu_slots=2)
    for _ in range(205):
        add_run(devices=["cuda:0"], priority=1)
    small = add_run(devices={"kind": "cpu", "count": 1})
    with db.transaction() as session:
        assert queue.claim_run(session, HOST).run_id == small


def test_back_off_draining_and_unwanted_runs_are_not_claimed(database):
    add_host()
    run_id = add_run()
    with db.transaction() as session:
        session.execute(update(Run).values(not_before=db.now(session) + 60))
    with db.transaction() as session:
        assert queue.claim_run(session, HOST) is None
        session.execute(update(Run).values(not_before=db.now(session) - 1))
        session.execute(update(Host).values(draining=True))
    with db.transaction() as session:
        assert queue.claim_run(session, HOST) is None
        session.execute(update(Host).values(draining=False))
    with db.transaction() as session:
        assert queue.claim_run(session, "unknown") is None
        assert queue.claim_run(session, HOST).run_id == run_id


def test_a_claim_starts_an_attempt_with_a_lease(database):
    add_host()
    run_id = add_run()
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
    assert claim.devices == ("cpu:0", "cpu:1") and claim.attempt == 1
    with db.transaction() as session:
        run, attempt = session.get(Run, run_id), session.get(Attempt, (run_id, 1))
        assert run.lease_host == HOST and 50 < run.lease_expires_at - db.now(session) <= 60
        assert attempt.state == "open" and attempt.events_offset == 0
        assert queue.renew_lease(session, run_id, 1)
        assert not queue.renew_lease(session, run_id, 2)


def test_a_new_attempt_owes_no_samples_to_those_who_asked_the_one_before(database):
    add_host()
    run_id = add_run()
    with db.transaction() as session:
        queue.claim_run(session, HOST)
        run = states.request_sample(session, session.get(Run, run_id))
        assert run.samples_asked == 1
        states.move(session, run, "pausing", reason="shutdown")
        states.move(session, run, "queued")
        queue.claim_run(session, HOST)
        assert (run.state, run.attempt, run.samples_asked) == ("starting", 2, 0)


def test_a_run_that_is_interrupted_keeps_its_place_and_counts_on(database):
    add_host()
    first, second = add_run(), add_run()
    with db.transaction() as session:
        queue.claim_run(session, HOST)
        run = session.get(Run, first)
        states.move(session, run, "pausing", reason="shutdown")
        states.move(session, run, "queued")
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
    assert (claim.run_id, claim.attempt) == (first, 2)
    assert get_run(second).state == "queued"


def make_job() -> str:
    with db.transaction() as session:
        dataset = Dataset(id="d1", name="d", user_id="local", layout="auto", state="importing", source={}, warnings=[],
                          created_at=0)
        session.add(dataset)
        return queue.enqueue_job(session, "dataset_import", {"dataset_id": "d1", "upload_path": None},
                                 user_id="local").id


def test_one_job_at_a_time_on_a_host_and_a_lost_one_is_done_once_more(database):
    add_host()
    job_id = make_job()
    with db.transaction() as session:
        assert queue.claim_job(session, HOST) == (job_id, 1)
        queue.enqueue_job(session, "dataset_import", {"dataset_id": "d1"}, user_id="local")
    with db.transaction() as session:
        assert queue.claim_job(session, HOST) is None
        queue.lose_job(session, session.get(Job, job_id))
    with db.transaction() as session:
        assert queue.claim_job(session, HOST) == (job_id, 2)
        assert not queue.renew_job(session, job_id, 1)
        queue.lose_job(session, session.get(Job, job_id))
    with db.reading() as session:
        assert session.get(Job, job_id).state == "failed"
        assert session.get(Dataset, "d1").state == "failed"


def test_a_shutdown_is_not_a_job_s_fault(database):
    add_host()
    job_id = make_job()
    for attempt in range(1, 5):
        with db.transaction() as session:
            assert queue.claim_job(session, HOST) == (job_id, attempt)
            queue.lose_job(session, session.get(Job, job_id), on_purpose=True)


def test_cancelling_a_queued_job_ends_it_and_what_it_was_making(database, tmp_path):
    upload = tmp_path / "upload"
    upload.write_text("x")
    job_id = make_job()
    with db.transaction() as session:
        job = session.get(Job, job_id)
        job.payload = {**job.payload, "upload_path": str(upload)}
        session.flush()
        queue.request_cancel_job(session, job)
        assert upload.exists(), "nothing happens before the commit"
    with db.reading() as session:
        assert session.get(Job, job_id).state == "cancelled"
        assert session.get(Dataset, "d1").state == "failed"
    assert not upload.exists()


def test_a_run_that_has_waited_long_for_many_is_not_passed_for_ever(database):
    """One of two slots is taken; what becomes free is kept for the run that needs both."""
    add_host()
    busy, wide, small = (add_run(devices={"kind": "cpu", "count": n}) for n in (1, 2, 1))
    claims = []
    for long_ago in (False, True):
        with db.transaction() as session:
            if long_ago:
                session.execute(update(Run).where(Run.id == wide).values(queued_at=Run.queued_at - 3600))
            claims.append(queue.claim_run(session, HOST))
    assert [c and c.run_id for c in claims] == [busy, None]
    with db.transaction() as session:
        session.execute(update(Run).where(Run.id == wide).values(queued_at=Run.queued_at + 3600))
        assert queue.claim_run(session, HOST).run_id == small, "as long as it has not waited long, others may pass"
