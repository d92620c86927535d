from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests import database_rig


@pytest.fixture(params=database_rig.backends())
def database(request, tmp_path, monkeypatch):
    """A new database on the backend that the environment names; its URL."""
    yield from database_rig.make_database(request.param, tmp_path, monkeypatch)


@pytest.fixture
def runners(database):
    """Runners with a fake trainer; none of them, and nothing below them, is left after the test."""
    from sqlalchemy import select

    from app.core import db
    from app.core.models import Run
    from tests.worker.runner_rig import FakeRunners
    from worker import processes

    started = FakeRunners()
    database_rig.add_host(boot_id=processes.boot_id())
    yield started
    started.close()
    with db.reading() as session:
        ours = set(session.scalars(select(Run.id)))

    def left() -> dict[int, str]:
        return {pid: mark for pid, mark in processes.all_marked().items() if mark.split("/")[0] in ours}

    deadline = time.monotonic() + 5  # a runner that a worker has started still rings its bells after its verdict
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left(), f"processes are left: {left()}"


@pytest.fixture
def bell(database, monkeypatch):
    """A broker that this test's processes can reach: STUDIO_TEST_REDIS_URL, else the embedded one."""
    from app.core import channels
    from app.core.settings import get_settings
    from tests.worker.runner_rig import ROOT, wait_until
    from worker import broker

    url, server = os.environ.get("STUDIO_TEST_REDIS_URL"), None
    if not url:
        embedded = broker.prepare(Path(get_settings().data_dir))
        url = embedded.url
        server = subprocess.Popen(embedded.command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_until(lambda: broker.answers(url))
    monkeypatch.setenv("STUDIO_REDIS_URL", url)
    monkeypatch.setenv("STUDIO_REDIS_PREFIX", f"test-{os.getpid()}-{time.monotonic_ns()}")
    get_settings.cache_clear()
    channels._after_fork()  # senders that know the old address
    yield
    channels._after_fork()
    if server is not None:
        server.terminate()
        server.wait()
