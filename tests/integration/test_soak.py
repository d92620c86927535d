"""The soak: its choices follow from the seed, its judge sees what is wrong, and a short one finds nothing."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import delete, update

from app.core import db
from app.core.models import Attempt, Event, MetricChunk, Run
from app.core.settings import get_settings
from app.core.states import append_events, move
from app.core.timing import Timing
from benchmarks.soak.faults import WEIGHTS, plan
from benchmarks.soak.fleet import SAVE_INTERVAL, SHAPES, Member, Order, orders
from benchmarks.soak.judge import Verdict, judge
from benchmarks.soak.watch import Sampler
from tests import database_rig

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_same_seed_makes_the_same_choices() -> None:
    for make in (lambda seed: plan(seed, 4.0), orders):
        first, again, other = (list(itertools.islice(make(seed), 200)) for seed in (3, 3, 4))
        assert first == again != other
    assert {fault.kind for fault in itertools.islice(plan(3, 4.0), 200)} == set(WEIGHTS)


class Story:
    """A run that was interrupted once and is cancelled, with nothing wrong: the tests spoil it."""

    def __init__(self, data_dir: Path):
        self.studio = SimpleNamespace(data_dir=data_dir, database_url=get_settings().sqlalchemy_url)
        for _ in SHAPES:
            database_rig.add_run()
        database_rig.add_host()
        self.id = database_rig.add_run()
        self.attempt(1, 0, 40)
        self.move("recovering", "queued")
        self.attempt(2, SAVE_INTERVAL, 60)
        self.move("cancelling", "cancelled")
        self.member = Member(self.id, Order(1, "one rank", ((0.5, "cancel", 0.0),)), cancel_asked=True)

    def attempt(self, number: int, begun: int, reached: int) -> None:
        with db.transaction() as session:
            run = session.get(Run, self.id)
            move(session, run, "starting", values={"attempt": number, "lease_owner": "x", "lease_host": "here",
                                                   "lease_expires_at": 1.0})
            session.add(Attempt(run_id=self.id, number=number, state="open", host_id="here", boot_id="boot",
                                started_at=1.0, events_offset=0, resumed_from_step=begun))
            move(session, run, "running")
            steps = list(range(begun + 1, reached + 1))
            append_events(session, f"run:{self.id}", [
                {"attempt": number, "t": 1.0, "type": "metrics", "step": step, "tokens": 0, "data": {"loss": 1.0}}
                for step in steps])
            session.add(MetricChunk(run_id=self.id, attempt=number, first_step=steps[0], last_step=steps[-1],
                                    data={"step": steps, "loss": [1.0] * len(steps)}))

    def move(self, *states: str) -> None:
        with db.transaction() as session:
            for state in states:
                run = session.get(Run, self.id)
                move(session, run, state)
                if state == "recovering":
                    session.execute(update(Attempt).values(state="closed", ended_at=1.0))

    def spoil(self, statement) -> None:
        with db.transaction() as session:
            session.execute(statement, execution_options={"synchronize_session": False})

    def judged(self) -> Verdict:
        with db.reading() as session:
            told = [(e.seq, e.type) for e in session.query(Event).filter_by(topic=f"run:{self.id}").order_by(Event.seq)]
        return judge(self.studio, SimpleNamespace(members={self.id: self.member}, refused=[]),
                     (SimpleNamespace(gaps=[], seen={self.id: told}),), {"one rank": "sha"}, whole=True)


@pytest.fixture(params=database_rig.backends())
def story(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    for _ in database_rig.make_database(request.param, tmp_path, monkeypatch):
        yield Story(tmp_path)


def test_the_judge_finds_nothing_where_nothing_is_wrong(story: Story) -> None:
    verdict = story.judged()
    assert verdict.complaints == [] and verdict.lost_steps == [40 - SAVE_INTERVAL]
    assert verdict.outcomes == {"cancelled": 1} and verdict.attempts == 2


def test_the_judge_sees_lost_steps_and_gaps(story: Story) -> None:
    topic = Event.topic == f"run:{story.id}"
    story.spoil(update(Attempt).where(Attempt.run_id == story.id, Attempt.number == 2).values(resumed_from_step=3))
    verdict = story.judged()
    assert len(verdict.too_many_lost) == 1 and len(verdict.gaps) == 1, "and it did not tell the steps from 4 on"
    story.spoil(delete(Event).where(topic, Event.type == "metrics", Event.attempt == 1, Event.step == 7))
    assert any("events, and the next number" in gap for gap in story.judged().gaps)
    assert any("1-6, 8-40" in gap for gap in story.judged().gaps)


def test_the_judge_sees_wrong_moves_ends_and_leases(story: Story) -> None:
    append = {"attempt": 2, "t": 1.0, "type": "state", "step": 0, "tokens": 0}
    with db.transaction() as session:
        append_events(session, f"run:{story.id}", [{**append, "data": {"from": "cancelled", "state": "queued"}},
                                                   {**append, "data": {"from": "queued", "state": "cancelled"}}])
    wrong = story.judged().wrong
    assert any("cancelled -> queued" in each for each in wrong) and any("ended 2 times" in each for each in wrong)
    story.member.cancel_asked = False
    assert any("nobody asked" in each for each in story.judged().wrong)
    database_rig.add_run()
    assert any("runs were posted" in each for each in story.judged().wrong)


def test_the_judge_sees_a_run_that_is_completed_without_its_checkpoint(story: Story) -> None:
    story.id = database_rig.add_run()
    with db.transaction() as session:  # as a second run; the first one is no member any more
        session.execute(delete(Event).where(Event.topic == f"run:{story.member.id}"))
        session.execute(delete(Run).where(Run.id == story.member.id))
    story.attempt(1, 0, 10)
    story.move("completed")
    story.member = Member(story.id, Order(2, "one rank", ()))
    assert any("without a checkpoint of step" in each for each in story.judged().wrong)


def test_the_sampler_sees_a_row_that_nobody_holds(story: Story) -> None:
    story.id = database_rig.add_run()
    story.attempt(1, 0, 10)
    present: list[str] = []
    story.studio.processes, story.studio.role = list, lambda name, among=None: present
    held_by_us = threading.Event()
    sampler = Sampler(story.studio, SimpleNamespace(blocked=held_by_us), Timing(lease_s=2.0))

    def look(seconds: float) -> None:
        for _ in range(int(seconds)):
            sampler._look(1.0)

    look(100)
    assert not sampler.zombies, "without a worker nobody could mend it"
    present.append("worker")
    look(sampler.allowed_s)
    assert not sampler.zombies
    look(2)
    assert list(sampler.zombies) == [f"{story.id}/1"]


@pytest.mark.integration
@pytest.mark.slow
def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    given = [f"--{name}={os.environ[variable]}" for name, variable in (
        ("database", "STUDIO_TEST_DATABASE_URL"), ("redis", "STUDIO_TEST_REDIS_URL")) if os.environ.get(variable)]
    soak = subprocess.run([sys.executable, "-P", str(ROOT / "benchmarks" / "soak" / "__main__.py"), "--minutes", "0.7",
                           "--seed", "5", "--out", str(tmp_path / "soak"), *given], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert soak.returncode == 0, soak.stdout
    assert "= 0  (" not in soak.stdout, "something was killed"
