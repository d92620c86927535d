"""The arithmetic of ``./studio bench serve``; what is timed is not tested."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_ratios_are_of_the_same_round() -> None:
    from benchmarks._serve_race import Speed

    first, other = Speed("a", 1, whole=[10.0, 20.0, 40.0]), Speed("b", 1, whole=[30.0, 20.0, 80.0])
    assert other.ratios(first) == [1.0, 2.0, 3.0]


def test_bandwidth_is_the_fastest_reading() -> None:
    from benchmarks._serve_race import bandwidth

    ticks = iter(range(10_000))
    pace = iter([5, 1] * 10_000)  # every other reading takes a fifth

    def clock() -> float:
        return next(ticks) if next(pace) == 5 else next(ticks) - 0.8

    assert bandwidth(4000, clock=clock) == pytest.approx(2 * 4000 / 0.2, rel=0.01)


@pytest.mark.slow  # imports transformers and trains nothing, yet takes half a minute
def test_it_runs_at_toy_size() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "benchmarks/serve.py", "--model", "tiny", "--quick", "--tokens", "8", "--prompt", "16",
         "--only", "speed", "--against", "hf", "fp32"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    assert "reached: batch 1: float32 answers are Hugging Face's, token for token" in done.stdout


def test_what_is_said_of_a_crowd_and_of_a_training_beside_chats() -> None:
    from benchmarks._serve_studio import Beside, Crowd, merged

    quick = Crowd(2, 2, 40.0, [0.1, 0.3], [0.1, 0.1, 0.5], {"web": 0.1})
    slow = Crowd(2, 1, 20.0, [0.4], [0.2, 0.2], {"web": 0.3})
    both = merged([quick, slow])
    assert (both.whole, both.tokens_per_s, both.cpu["web"]) == (3, 30.0, pytest.approx(0.2))
    assert both.first == [0.1, 0.3, 0.4] and len(both.gaps) == 5
    assert quick.starved == pytest.approx(5) and slow.starved == 1
    assert Beside([100, 200], [90, 100], [5, 5]).slower == pytest.approx([0.1, 0.5])


def test_events_may_come_in_pieces() -> None:
    """A chunk of HTTP need not be an event."""
    from benchmarks._serve_crowd import Heard, _events, _take

    body = b'data: {"choices": [{"text": "a\\n", "finish_reason": null}]}\n\ndata: {"choices": ' \
           b'[{"text": "", "finish_reason": "length"}]}\n\ndata: [DONE]\n\n'
    heard = Heard()

    async def read() -> None:
        reader = asyncio.StreamReader()
        for part in (body[:10], body[10:90], body[90:], b""):
            reader.feed_data(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        reader.feed_eof()
        async for event in _events(reader):
            _take(heard, event)

    asyncio.run(read())
    assert (heard.text, len(heard.times), heard.finish_reason, heard.is_done) == ("a\n", 1, "length", True)
