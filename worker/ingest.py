"""From ``events.jsonl`` into the database: exactly once, in order, whatever dies in between.

The trainer only appends to a file. Whoever ingests (the runner; after its death the reconciler) moves the
attempt's ``events_offset`` in the very transaction that stores the events behind it, guarded by the old value: a
batch is stored whole or not at all, and two ingesters cannot store the same one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import update

from app.core import sparkline
from app.core.db import Session, now, reading, transaction
from app.core.logging import get_logger
from app.core.models import Attempt, MetricChunk, Run
from app.core.states import Fenced, append_events
from minimind.events import read_events
from minimind.run_dir import RunDir, read_json
from minimind.save_points import reached
from worker.checkpoints import adopt_checkpoints, keep_row, mark_deleted, row_values, tidy

log = get_logger(__name__)

#: events of one transaction: long enough to be quick, short enough not to keep other writers waiting
BATCH_BYTES = 1 << 20
#: metric points whose times the speed of the run is read from
SPEED_WINDOW = 60


@dataclass
class Seen:
    """What a batch said that its reader acts on."""

    events: int = 0
    ready: bool = False
    save_failed: str | None = None
    checkpoints: list[str] = field(default_factory=list)


class Ingest:
    """Reads the events of one attempt; ``pump`` until it returns None."""

    def __init__(self, run_id: str, attempt: int, run_dir: RunDir,
                 act: Callable[[Session, Run, Seen], None] | None = None):
        self.run_id = run_id
        self.attempt = attempt
        self.run_dir = run_dir
        self._act = act  # called in the transaction of each batch: what it says and what follows are one
        self._times: deque[tuple[float, int]] = deque(maxlen=SPEED_WINDOW)

    def pump(self) -> Seen | None:
        """Store the next batch; None where there is nothing new. Raises ``Fenced`` when the attempt is over.

        Checkpoints are verified (hashed) before the transaction begins: it must stay short.
        """
        with reading() as session:
            row = session.get(Attempt, (self.run_id, self.attempt))
        if row is None:
            raise Fenced(f"{self.run_id}: there is no attempt {self.attempt}")
        offset = row.events_offset
        batch = list(read_events(self.run_dir.attempt(self.attempt).events, offset, BATCH_BYTES))
        if not batch:
            return None
        events = [event for event, _ in batch if event.get("attempt") == self.attempt]
        checkpoints = [row for row in map(self._checkpoint_row, events) if row is not None]
        with transaction() as session:
            seen = self._store(session, offset, batch[-1][1], events, checkpoints)
        if seen.checkpoints:
            reached("after_row")
            tidy(self.run_id, self.run_dir)  # what need not be kept goes only when the new one is in the database
        return seen

    def _store(self, session: Session, offset: int, new_offset: int, events: list[dict],
               checkpoints: list[dict]) -> Seen:
        # locked in the order run, then attempt, as everywhere: two that lock crosswise end each other on PostgreSQL
        run = session.get(Run, self.run_id, with_for_update=True, populate_existing=True)
        moved = session.execute(
            update(Attempt).where(Attempt.run_id == self.run_id, Attempt.number == self.attempt,
                                  Attempt.events_offset == offset).values(events_offset=new_offset),
            execution_options={"synchronize_session": False}).rowcount
        if moved != 1:
            return Seen()  # another reader was faster; the next pump starts behind its batch
        seen = Seen(events=len(events))
        rows = []
        for event in events:
            rows.append(_row(event))
            rewound = self._look_at(session, run, event, seen)
            if rewound is not None:
                rows.append({**_row(event), "type": "rewind", "step": rewound, "data": {"step": rewound}})
        append_events(session, f"run:{self.run_id}", rows, attempt=self.attempt)
        self._store_metrics(session, events)
        for values in checkpoints:
            if keep_row(session, run, values):
                seen.checkpoints.append(values["path"])
        if checkpoints:
            mark_deleted(session, self.run_id)
        run.updated_at = now(session)
        session.flush()
        if self._act is not None:
            self._act(session, run, seen)
        return seen

    def _look_at(self, session: Session, run: Run, event: dict, seen: Seen) -> int | None:
        """Take one event into the run's progress; the step to rewind to where the event says so."""
        kind, data = event["type"], event.get("data") or {}
        progress = dict(run.progress)
        rewound = None
        if kind == "state":
            seen.ready |= data.get("status") == "ready"
            step = data.get("resumed_from_step")
            if step is not None and self._is_first_word(session, step):
                progress = sparkline.rewound(progress | {"step": step, "eta_s": None}, step)
                if self.attempt > 1:
                    rewound = step
                    progress["tokens"] = event.get("tokens") or 0
        elif kind == "phase":
            progress |= {"phase": data.get("phase"), "phase_done": data.get("done"), "phase_total": data.get("total"),
                         "phase_unit": data.get("unit")}
            if data.get("phase") != "train":
                self._times.clear()  # time without steps is no measure of the speed
        elif kind == "metrics":
            progress |= {"step": event["step"], "tokens": event["tokens"]}
            progress |= {k: data[k] for k in ("loss", "tokens_per_s") if k in data}
            progress = sparkline.added(progress, event["step"], data.get("loss"))
            self._times.append((event["t"], event["step"]))
            progress["eta_s"] = self._eta(progress)
        elif kind == "eval":
            progress["eval_loss"] = data.get("eval_loss")
        elif kind == "warning" and data.get("code") == "save_failed":
            seen.save_failed = str(data.get("message") or "The checkpoint could not be saved.")
        if progress.get("total_steps") is None and kind in ("phase", "metrics", "state"):
            progress["total_steps"] = self._total_steps()
        run.progress = progress
        return rewound

    def _is_first_word(self, session: Session, step: int) -> bool:
        """Note where the attempt began; True the first time."""
        return session.execute(
            update(Attempt).where(Attempt.run_id == self.run_id, Attempt.number == self.attempt,
                                  Attempt.resumed_from_step.is_(None)).values(resumed_from_step=step),
            execution_options={"synchronize_session": False}).rowcount == 1

    def _total_steps(self) -> int | None:
        for path in (self.run_dir.attempt(self.attempt).resolved, self.run_dir.resolved):
            resolved = read_json(path)
            if isinstance(resolved, dict) and resolved.get("total_steps") is not None:
                return int(resolved["total_steps"])
        return None

    def _eta(self, progress: dict) -> float | None:
        """Seconds left, from the wall time of the last steps (evaluation and saving between them included)."""
        if progress.get("total_steps") is None or len(self._times) < 2:
            return None
        (t0, s0), (t1, s1) = self._times[0], self._times[-1]
        left = max(0, progress["total_steps"] - progress["step"])
        return round(left * (t1 - t0) / (s1 - s0), 1) if s1 > s0 and t1 >= t0 else None

    def _store_metrics(self, session: Session, events: list[dict]) -> None:
        """The batch's numbers as columns (a batch is what came since the last look, about a second).

        One row for the points that have the same keys, so that ``null`` always means "was not finite".
        """
        points = [e for e in events if e["type"] in ("metrics", "eval")]
        if not points:
            return
        groups: dict[tuple[str, ...], list[dict]] = {}
        for event in points:
            numbers = (k for k, v in event["data"].items() if isinstance(v, (int, float)) or v is None)
            groups.setdefault(tuple(sorted(numbers)), []).append(event)
        for keys, group in groups.items():
            steps = [e["step"] for e in group]
            data = {"step": steps, "tokens": [e["tokens"] for e in group], "t": [e["t"] for e in group]}
            session.add(MetricChunk(run_id=self.run_id, attempt=self.attempt, first_step=min(steps),
                                    last_step=max(steps), data=data | {k: [e["data"][k] for e in group] for k in keys}))

    def _checkpoint_row(self, event: dict) -> dict | None:
        if event["type"] != "checkpoint":
            return None
        values = row_values(self.run_dir, self.run_dir.path / str(event["data"].get("path", "")))
        if values is None or values["attempt"] != self.attempt:
            return None
        save_s = event["data"].get("save_s")
        return {**values, "save_s": float(save_s) if isinstance(save_s, (int, float)) else None}


def _row(event: dict) -> dict:
    return {"attempt": event["attempt"], "t": event["t"], "type": event["type"], "step": event.get("step") or 0,
            "tokens": event.get("tokens") or 0, "data": event.get("data") or {}}


__all__ = ["Ingest", "Seen", "adopt_checkpoints"]
