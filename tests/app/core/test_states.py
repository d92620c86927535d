"""The table of moves, exhaustively; dense events; wishes and their answers."""

from __future__ import annotations

import itertools
import threading

import pytest
from sqlalchemy import select, update

from app.core import db, guards, queue, states
from app.core.models import LEASED_STATES, RUN_STATES, TERMINAL_STATES, Attempt, DeviceLease, Event, Run
from tests.database_rig import HOST, add_host, add_run, get_run

#: The table of docs/architecture.md, written out once more: the code must agree with it, not with itself
TABLE = """
queued: starting paused cancelled
starting: running pausing failed recovering cancelling
running: pausing completed failed recovering cancelling
pausing: paused queued running completed failed recovering cancelling
paused: queued cancelled
recovering: queued paused cancelled completed failed running pausing cancelling
cancelling: cancelled
completed:
failed:
cancelled:
"""
LEGAL = {(line.split(":")[0], to) for line in TABLE.strip().splitlines() for to in line.split(":")[1].split()}


def put(session, run: Run, state: str) -> None:
    """Force a state, past every rule but the table's own CHECKs (its triggers are out of the way meanwhile)."""
    at, held = db.now(session), state in LEASED_STATES
    guards.remove(session.connection())
    session.execute(update(Run).where(Run.id == run.id).values(
        state=state, lease_owner="me" if held else None, lease_host=HOST if held else None,
        lease_expires_at=at + 60 if held else None, ended_at=at if state in TERMINAL_STATES else None))
    guards.install(session.connection())
    session.refresh(run)


@pytest.mark.parametrize("before", RUN_STATES)
def test_every_pair_of_states(database, before):
    run_id = add_run()
    for to in RUN_STATES:
        with db.transaction() as session:
            run = session.get(Run, run_id)
            put(session, run, before)
            lease = {"lease_owner": "me", "lease_host": HOST} if to in LEASED_STATES else {}
            seq = run.next_seq
            if (before, to) in LEGAL:
                assert states.move(session, run, to, values=lease)
                assert run.state == to
                assert (run.ended_at is not None) == (to in TERMINAL_STATES)
                assert (run.lease_owner is not None) == (to in LEASED_STATES)
                event = session.get(Event, (f"run:{run_id}", seq))
                assert event.type == "state" and event.data["from"] == before and event.data["state"] == to
            else:
                with pytest.raises(states.IllegalMove):
                    states.move(session, run, to, values=lease)
                assert run.state == before and run.next_seq == seq
            session.rollback()


def test_a_move_needs_the_expected_state_and_attempt(database):
    run_id = add_run()
    with db.transaction() as session:
        run = session.get(Run, run_id)
        assert not states.move(session, run, "paused", attempt=7)
        assert not states.move(session, run, "queued", expected_state="paused")
        assert run.state == "queued"
        assert session.scalars(select(Event.seq)).all() == [1]


def test_of_many_that_cancel_and_pause_at_once_one_wins(database):
    """Exactly one terminal event, whoever is first."""
    run_id = add_run()
    start, outcomes = threading.Barrier(6), []

    def wish(to: str) -> None:
        start.wait()
        with db.transaction() as session:
            run = session.get(Run, run_id)
            session.refresh(run)
            outcomes.append(run.state == "queued" and states.move(session, run, to))

    threads = [threading.Thread(target=wish, args=("cancelled",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1
    with db.reading() as session:
        ended = [e for e in session.scalars(select(Event)) if e.data.get("state") == "cancelled"]
        assert len(ended) == 1


def test_seq_is_dense_under_concurrent_writers(database):
    run_id = add_run()

    def write(name: int) -> None:
        for i in range(20):
            with db.transaction() as session:
                states.append_event(session, f"run:{run_id}", "log", data={"writer": name, "i": i})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.reading() as session:
        events = session.scalars(select(Event).order_by(Event.seq)).all()
    assert [e.seq for e in events] == list(range(1, 82))
    for name in range(4):
        assert [e.data["i"] for e in events if e.data.get("writer") == name] == list(range(20))


def test_a_rolled_back_event_leaves_no_gap(database):
    run_id = add_run()
    with pytest.raises(ZeroDivisionError), db.transaction() as session:
        states.append_event(session, f"run:{run_id}", "log")
        raise ZeroDivisionError
    with db.transaction() as session:
        assert states.append_event(session, f"run:{run_id}", "log") == 2


def test_a_writer_with_an_older_attempt_changes_nothing(database):
    add_host()
    run_id = add_run()
    with db.transaction() as session:
        claim = queue.claim_run(session, HOST)
    row = {"attempt": 0, "t": 0.0, "type": "log", "step": 0, "tokens": 0, "data": {}}
    with pytest.raises(states.Fenced), db.transaction() as session:
        states.append_events(session, f"run:{run_id}", [row], attempt=claim.attempt - 1)
    with db.transaction() as session:
        states.append_events(session, f"run:{run_id}", [row], attempt=claim.attempt)


WISHES = {
    "pause": (lambda s, r: states.request_pause(s, r), {"cancelling", *TERMINAL_STATES}),
    "resume": (lambda s, r: states.request_resume(s, r), {"cancelling", *TERMINAL_STATES}),
    "cancel": (lambda s, r: states.request_cancel(s, r), {"completed", "failed"}),
}


@pytest.mark.parametrize(("wish", "state"), list(itertools.product(WISHES, RUN_STATES)))
def test_a_wish_is_refused_exactly_where_the_contract_says(database, wish, state):
    act, refused = WISHES[wish]
    run_id = add_run()
    with db.transaction() as session:
        run = session.get(Run, run_id)
        put(session, run, state)
        if state == "cancelling":
            run.desired = "cancel"
            session.flush()
        if state in refused:
            with pytest.raises(states.IllegalWish, match=state) as raised:
                act(session, run)
            assert raised.value.status == 409
            return
        for _ in range(2):  # a wish that already stands is answered unchanged
            act(session, run)
        after = {("pause", "queued"): "paused", ("pause", "recovering"): "paused", ("resume", "paused"): "queued",
                 ("cancel", "queued"): "cancelled", ("cancel", "paused"): "cancelled",
                 **{("cancel", held): "cancelling" for held in ("starting", "running", "pausing")},
                 ("cancel", "recovering"): "cancelled"}.get((wish, state), state)
        assert run.state == after
        if state not in TERMINAL_STATES:
            assert run.desired == {"pause": "pause", "resume": "run", "cancel": "cancel"}[wish]


def test_a_recovering_run_whose_processes_may_live_is_left_to_the_fence(database):
    add_host()
    run_id = add_run()
    with db.transaction() as session:
        queue.claim_run(session, HOST)
    with db.transaction() as session:
        run = session.get(Run, run_id)
        states.move(session, run, "recovering")
        session.get(Attempt, (run_id, 1)).state = "lost"
    with db.transaction() as session:
        states.request_cancel(session, session.get(Run, run_id))
    assert get_run(run_id).state == "recovering"
    for late in (states.request_pause, states.request_resume):  # a cancel is for good
        with pytest.raises(states.IllegalWish), db.transaction() as session:
            late(session, session.get(Run, run_id))
    assert get_run(run_id).desired == "cancel"
    with db.transaction() as session:
        assert session.scalars(select(DeviceLease)).all(), "its devices stay taken until the fence"
        assert queue.take_back(session, session.get(Run, run_id), 1)
    assert get_run(run_id).state == "cancelling"


def test_what_ends_frees_devices_and_closes_the_attempt(database):
    add_host()
    run_id = add_run()
    with db.transaction() as session:
        queue.claim_run(session, HOST)
        run = session.get(Run, run_id)
        states.move(session, run, "running")
        states.move(session, run, "completed")
    with db.reading() as session:
        assert session.scalars(select(DeviceLease)).all() == []
        assert session.get(Attempt, (run_id, 1)).state == "closed"
