"""What a training says while it has nothing to report."""

from __future__ import annotations

from minimind import metrics
from minimind.events import EventWriter, read_events
from minimind.metrics import PULSE_EVERY_S, Reporter


def test_steps_that_are_not_reported_give_a_sign_of_life_now_and_then(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    reporter = Reporter(EventWriter(tmp_path / "events.jsonl", 1), talks=False)
    reporter.phase("train", 0, 100, "steps")
    for step in range(1, 31):
        now[0] += 1.0
        reporter.step = step
        reporter.pulse(100)
    reporter.metrics({"loss": 1.0, "lr": 0.1, "tokens_per_s": 1.0}, 100)
    now[0] += PULSE_EVERY_S / 2
    reporter.pulse(100)
    reporter.close()
    said = [event for event, _ in read_events(tmp_path / "events.jsonl")]
    assert [(e["type"], e["step"], e["data"].get("done")) for e in said] == [
        ("phase", 0, 0), ("phase", 10, 10), ("phase", 20, 20), ("phase", 30, 30), ("metrics", 30, None)]
