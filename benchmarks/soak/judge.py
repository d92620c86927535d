"""What has become of every run of a soak: read from the database and the disk, after everything has stopped."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select, text

from app.core.db import Session, reader_factory, reading
from app.core.models import (
    LEASED_STATES,
    TERMINAL_STATES,
    Attempt,
    Checkpoint,
    DeviceLease,
    Event,
    MetricChunk,
    Run,
)
from app.core.states import MOVES
from benchmarks._studio import Studio
from benchmarks.soak.fleet import SAVE_INTERVAL, SHAPES, Fleet, Member, weights_of
from benchmarks.soak.watch import Follower, Viewer
from minimind.errors import CheckpointError
from minimind.manifest import Manifest


@dataclass
class Verdict:
    """Complaints by kind; every one begins with the run that it is about."""

    outcomes: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    interruptions: int = 0
    lost_steps: list[int] = field(default_factory=list)
    too_many_lost: list[str] = field(default_factory=list)
    zombies: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        return [*self.too_many_lost, *self.zombies, *self.wrong, *self.gaps, *self.leftovers, *self.unfinished]


def judge(studio: Studio, fleet: Fleet, clients: tuple[Follower | Viewer, ...], references: dict[str, str], *,
          whole: bool) -> Verdict:
    """``whole``: the soak came to its end, so every run must have ended."""
    verdict = Verdict(gaps=[gap for client in clients for gap in client.gaps],
                      wrong=[f"the API said {said}" for said in fleet.refused])
    with reading(reader_factory(studio.database_url)) as session:
        for member in fleet.members.values():
            _Case(session, studio, member, references[member.order.shape], verdict).judge(
                [client.seen.get(member.id, []) for client in clients], whole=whole)
        _whole_database(session, fleet, verdict)
    return verdict


class _Case:
    """One run."""

    def __init__(self, session: Session, studio: Studio, member: Member, reference: str, verdict: Verdict):
        self.session, self.member, self.reference, self.verdict = session, member, reference, verdict
        self.run = session.get(Run, member.id)
        self.directory: Path = studio.data_dir / "runs" / member.id
        self.steps = SHAPES[member.order.shape][1]["max_steps"]
        self.attempts = list(session.scalars(select(Attempt).where(Attempt.run_id == member.id)
                                             .order_by(Attempt.number)))
        self.events = list(session.scalars(select(Event).where(Event.topic == f"run:{member.id}")
                                           .order_by(Event.seq)))

    def judge(self, told: list[list[tuple[int, str]]], *, whole: bool) -> None:
        if self.run is None:
            self._say(self.verdict.wrong, "its row is gone")
            return
        state = self.run.state
        self.verdict.outcomes[state] += 1
        self.verdict.attempts += len(self.attempts)
        self._moves()
        self._density()
        for heard in told:
            self._told(heard, whole)
        self._metrics()
        self._lost()
        if state == "completed":
            self._completed()
        elif state == "failed":
            self._say(self.verdict.wrong, f"failed: {(self.run.error or {}).get('message')}")
        elif state == "cancelled" and not self.member.cancel_asked:
            self._say(self.verdict.wrong, "cancelled, which nobody asked for")
        elif state not in TERMINAL_STATES and whole:
            self._say(self.verdict.unfinished, f"still {state} (desired {self.run.desired}) at the end")
        if state in TERMINAL_STATES:
            half = [p.name for p in (self.directory / "checkpoints").glob(".*")]
            if half:
                self._say(self.verdict.leftovers, f"half-made checkpoints {half}")
            if any(a.state != "closed" for a in self.attempts):
                self._say(self.verdict.zombies, "it has ended and an attempt of it is open")

    def _say(self, kind: list[str], what: str) -> None:
        kind.append(f"run {self.member.id} ({self.member.order.shape}): {what}")

    def _moves(self) -> None:
        """One legal chain of states to the present one, with at most one end."""
        chain = [(e.data.get("from"), e.data.get("state"), e.seq) for e in self.events
                 if e.type == "state" and "from" in e.data]
        now = None
        for before, after, seq in chain:
            if before != now or (before is not None and after not in MOVES[before]):
                self._say(self.verdict.wrong, f"event {seq} says {before} -> {after} while it was {now}")
            now = after
        if now != self.run.state:
            self._say(self.verdict.wrong, f"its row says {self.run.state}, its events {now}")
        ends = [after for _, after, _ in chain if after in TERMINAL_STATES]
        if len(ends) > 1:
            self._say(self.verdict.wrong, f"it ended {len(ends)} times: {ends}")

    def _density(self) -> None:
        numbers = [e.seq for e in self.events]
        if numbers != list(range(1, self.run.next_seq)):
            self._say(self.verdict.gaps, f"{len(numbers)} events, and the next number is {self.run.next_seq}")

    def _told(self, heard: list[tuple[int, str]], whole: bool) -> None:
        """What a client heard, in the order in which it came."""
        if heard != [(e.seq, e.type) for e in self.events][:len(heard)]:
            self._say(self.verdict.gaps, "what a client was told is not what the database has")
        if whole and self.run.state in TERMINAL_STATES and len(heard) < len(self.events):
            self._say(self.verdict.gaps, f"a client was told {len(heard)} of {len(self.events)} events")

    def _metrics(self) -> None:
        """Every attempt tells every step from where it began, once; the charts' table says the same."""
        by_events: dict[int, list[int]] = defaultdict(list)
        for event in self.events:
            if event.type == "metrics":
                by_events[event.attempt].append(event.step)
        by_chunks: dict[int, list[int]] = defaultdict(list)
        for chunk in self.session.scalars(select(MetricChunk).where(MetricChunk.run_id == self.run.id)
                                          .order_by(MetricChunk.id)):
            if "loss" in chunk.data:
                by_chunks[chunk.attempt] += chunk.data["step"]
        for attempt in self.attempts:
            told = by_events[attempt.number]
            first = (attempt.resumed_from_step or 0) + 1
            if told != list(range(first, first + len(told))):
                self._say(self.verdict.gaps, f"attempt {attempt.number} began at step {first} and told {_ranges(told)}")
            if told != by_chunks[attempt.number]:
                self._say(self.verdict.gaps, f"attempt {attempt.number}: the charts have "
                                             f"{_ranges(by_chunks[attempt.number])}, the events {_ranges(told)}")

    def _lost(self) -> None:
        """Steps that an attempt had done and the next one did again."""
        done = {}
        for event in self.events:
            if event.type == "metrics":
                done[event.attempt] = max(done.get(event.attempt, 0), event.step)
        frontier = None
        for attempt in self.attempts:
            begun = attempt.resumed_from_step
            if begun is None:
                continue  # it ended before it had loaded anything
            if frontier is not None:
                self.verdict.interruptions += 1
                lost = frontier - begun
                self.verdict.lost_steps.append(lost)
                if not 0 <= lost <= SAVE_INTERVAL:
                    self._say(self.verdict.too_many_lost, f"attempt {attempt.number} began at step {begun}, the one "
                                                          f"before had reached {frontier}")
            frontier = max(begun, done.get(attempt.number, 0))

    def _completed(self) -> None:
        last = self.session.scalars(select(Checkpoint).where(
            Checkpoint.run_id == self.run.id, Checkpoint.step == self.steps, Checkpoint.state == "ready")).first()
        if last is None:
            self._say(self.verdict.wrong, f"completed without a checkpoint of step {self.steps}")
            return
        try:
            Manifest.read(Path(last.path)).verify(Path(last.path))
        except CheckpointError as error:
            self._say(self.verdict.wrong, f"completed, and its last checkpoint is not whole: {error}")
            return
        if weights_of(self.directory, self.steps) != self.reference:
            self._say(self.verdict.wrong, "its weights are not those of the uninterrupted run")
        if self.run.progress.get("step") != self.steps:
            self._say(self.verdict.wrong, f"completed at step {self.run.progress.get('step')} of {self.steps}")


def _whole_database(session: Session, fleet: Fleet, verdict: Verdict) -> None:
    runs = session.scalar(select(func.count()).select_from(Run))
    if runs != len(fleet.members) + len(SHAPES):
        verdict.wrong.append(f"{len(fleet.members) + len(SHAPES)} runs were posted and there are {runs}")
    held = list(session.scalars(select(Run.id).where(Run.state.in_(LEASED_STATES))))
    for lease in session.scalars(select(DeviceLease).where(DeviceLease.run_id.not_in(held))):
        verdict.zombies.append(f"device {lease.device} is leased to run {lease.run_id}, which nobody holds")
    verdict.zombies += [f"run {id}: a runner should hold it, after the studio has stopped" for id in held]
    if session.get_bind().dialect.name == "sqlite":
        said = session.scalar(text("PRAGMA integrity_check"))
        if said != "ok":
            verdict.wrong.append(f"the database is damaged: {said}")


def dump(session: Session, run_id: str) -> dict:
    """Everything about a run, for its report."""
    run = session.get(Run, run_id)
    return {"run": _columns(run) if run else None,
            "attempts": [_columns(a) for a in session.scalars(select(Attempt).where(Attempt.run_id == run_id))],
            "checkpoints": [_columns(c) for c in session.scalars(select(Checkpoint).where(
                Checkpoint.run_id == run_id))],
            "events": [_columns(e) for e in session.scalars(select(Event).where(
                Event.topic == f"run:{run_id}", Event.type != "metrics").order_by(Event.seq))]}


def _columns(row) -> dict:
    return json.loads(json.dumps({c.key: getattr(row, c.key) for c in row.__table__.columns}, default=str))


def _ranges(steps: list[int]) -> str:
    """``1-40, 42, 42-60``: consecutive steps together."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][1] + 1:
            parts[-1][1] = step
        else:
            parts.append([step, step])
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in parts[:20]) or "nothing"
