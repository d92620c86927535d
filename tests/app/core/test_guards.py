"""The database itself refuses what ``states.move`` never does: written past every function of ours."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError

from app.core import db, guards
from app.core.migrate import upgrade
from app.core.models import Attempt, Run, RunMove
from app.core.states import MOVES
from tests.database_rig import add_run, get_run


def force(**values) -> None:
    with db.transaction() as session:
        session.execute(update(Run).values(values))


@pytest.mark.parametrize("values, said", [
    ({"state": "completed", "ended_at": 1.0}, "does not move so"),
    ({"state": "running", "lease_owner": "me"}, "does not move so"),
    ({"attempt": -1}, "never falls"),
    ({"next_seq": 1}, "never forgotten"),
    ({"config": {"max_steps": 1}}, "never changes"),
    ({"state": "starting"}, "lease_iff_held"),
    ({"state": "cancelled"}, "ended_iff_terminal"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else None)
def test_what_no_run_may_become(database, values, said):
    run_id = add_run()
    with pytest.raises(IntegrityError, match=said):
        force(**values)
    assert (get_run(run_id).state, get_run(run_id).attempt) == ("queued", 0)


@pytest.mark.parametrize("final", ["completed", "failed", "cancelled"])
def test_a_final_state_is_final(database, final):
    run_id = add_run()
    for state in ("starting", "running", *(["cancelling"] if final == "cancelled" else [])):
        force(state=state, lease_owner="me")
    force(state=final, lease_owner=None, ended_at=1.0)
    for state in ("queued", "recovering", "paused", *({"completed", "failed", "cancelled"} - {final})):
        with pytest.raises(IntegrityError, match="does not move so"):
            force(state=state, ended_at=1.0 if state in ("completed", "failed", "cancelled") else None)
    assert get_run(run_id).state == final


def test_a_closed_attempt_stays_closed(database):
    run_id = add_run()
    with db.transaction() as session:
        session.add(Attempt(run_id=run_id, number=1, state="closed", host_id="h", boot_id="b", started_at=0.0,
                            events_offset=0))
    for state in ("open", "lost"):
        with pytest.raises(IntegrityError, match="stays closed"), db.transaction() as session:
            session.execute(update(Attempt).values(state=state))


def test_a_migrated_database_has_the_same_guards(tmp_path):
    """The migrations and the program agree on the moves, and an old database gets the triggers too."""
    url = f"sqlite:///{tmp_path / 'studio.db'}"
    upgrade(url)
    with db.engine_for(url).connect() as connection:
        moves = {tuple(row) for row in connection.execute(select(RunMove.from_state, RunMove.to_state))}
        triggers = set(connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")))
    db.engine_for(url).dispose()
    assert moves == {(before, after) for before, all_after in MOVES.items() for after in all_after}
    assert triggers == {name for _, name, _, _ in guards.GUARDS}
