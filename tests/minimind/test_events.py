"""``events.jsonl`` under a disk that fills up and is freed again."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from minimind.events import EventWriter, read_events


@pytest.fixture
def size_limit() -> Iterator:
    """Sets how many bytes a file of this process may have; a write beyond fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, handler)


def test_half_a_line_does_not_spoil_the_next_one(tmp_path: Path, size_limit) -> None:
    writer = EventWriter(tmp_path / "events.jsonl", 1)
    writer.write("log", {"message": "before"})
    size_limit((tmp_path / "events.jsonl").stat().st_size + 20)
    writer.write("log", {"message": "only its first 20 bytes"})
    writer.write("log", {"message": "nothing of it"})
    assert writer.lost == 2
    size_limit(None)
    writer.write("metrics", {"loss": 1.0}, step=5)
    writer.write("log", {"message": "after"})
    writer.close()
    found = [event["data"] for event, _ in read_events(tmp_path / "events.jsonl")]
    assert found == [{"message": "before"}, {"loss": 1.0}, {"message": "after"}]


def test_a_writer_that_comes_after_a_killed_one_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"v":1,"attempt":1,"ty')
    writer = EventWriter(path, 1)
    writer.write("log", {"message": "whole"})
    writer.close()
    assert [event["data"] for event, _ in read_events(path)] == [{"message": "whole"}]


def test_a_line_longer_than_the_limit_does_not_stop_the_reader(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl", 1)
    for message in ("x" * 5000, "after"):
        writer.write("log", {"message": message})
    writer.close()
    (event, offset), = read_events(tmp_path / "events.jsonl", 0, 1000)
    assert len(event["data"]["message"]) == 5000
    (event, _), = read_events(tmp_path / "events.jsonl", offset, 1000)
    assert event["data"]["message"] == "after"
