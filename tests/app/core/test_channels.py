"""Bells: sent in the background, through two doors that fail separately."""

from __future__ import annotations

import threading
import time

import pytest

from app.core import channels
from app.core.channels import BROKER, CELERY, Background
from app.core.settings import get_settings

HERE, THERE, RING = (BROKER, "here"), (BROKER, "there"), (CELERY, "here")


def refuse() -> None:
    raise ConnectionError("nobody there")


def test_one_door_that_is_shut_does_not_stop_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "QUIET_AFTER_FAILURE_S", 0.0)
    background, sent, may_go = Background(), [], threading.Event()
    background.post(HERE, "first", may_go.wait)  # holds the thread until the rest is one batch
    time.sleep(0.1)
    background.post(RING, "ring", refuse)
    background.post(HERE, "live", lambda: sent.append("live"))
    background.post(RING, "ring 2", lambda: sent.append("ring 2"))
    background.post(THERE, "live", refuse)
    background.post(HERE, "live 2", lambda: sent.append("live 2"))
    may_go.set()
    assert background.flush(5)
    assert sent == ["live", "live 2"], "what goes through the door that failed is forgotten"


def test_of_several_with_one_key_the_last_is_sent() -> None:
    background, sent, may_go = Background(), [], threading.Event()
    background.post(HERE, "first", may_go.wait)
    time.sleep(0.1)
    for number in range(5):
        background.post(HERE, "live", lambda number=number: sent.append(number))
    may_go.set()
    assert background.flush(5) and sent == [4]


def test_a_broker_that_is_away_costs_the_bell_little(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_REDIS_URL", f"unix://{tmp_path}/none.sock")
    get_settings.cache_clear()
    background = Background()
    monkeypatch.setattr(channels, "background", background)
    try:
        channels.ring()  # imports Celery, which takes its time
        assert background.flush(60)
        began = time.monotonic()
        channels.ring()
        assert background.flush(30) and time.monotonic() - began < 1 + 2 * channels.QUIET_AFTER_FAILURE_S
    finally:
        get_settings.cache_clear()
