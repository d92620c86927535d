"""``./studio up`` itself: one sentence for what is wrong, ready in time, gone in time, nothing left."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from pathlib import Path

import httpx2
import pytest

from tests.integration.studio import RunningStudio

pytestmark = pytest.mark.integration


@pytest.fixture
def fresh(tmp_path: Path):
    """A studio that was not started yet."""
    running = RunningStudio(tmp_path)
    try:
        yield running
    finally:
        running.close()


def one_sentence(text: str) -> bool:
    return text.startswith("studio: ") and "Traceback" not in text and text.strip().count("\n") == 0


def test_a_taken_port_is_refused(fresh: RunningStudio) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = fresh.command("up", "--port", str(port), "--no_browser")
    assert result.returncode == 2 and one_sentence(result.stderr), result.stderr
    assert f"Port {port}" in result.stderr and "--port" in result.stderr
    assert not fresh.processes()


def test_other_machines_are_let_in_only_where_somebody_can_log_in(fresh: RunningStudio) -> None:
    result = fresh.command("up", "--host", "0.0.0.0", "--port", "0", "--no_browser")
    assert result.returncode == 2 and one_sentence(result.stderr), result.stderr
    assert "user add" in result.stderr
    assert not fresh.processes()


def test_an_unknown_command_and_a_wrong_option_say_so(fresh: RunningStudio) -> None:
    result = fresh.command("upp")
    assert result.returncode == 2 and "Did you mean 'up'?" in result.stderr
    assert fresh.command("up", "--prt", "1").returncode == 2


def test_a_start_from_first_light_to_the_end(fresh: RunningStudio) -> None:
    """Start, look at it, refuse a second one, stop by Ctrl-C, start again quickly with another token."""
    fresh.start()
    first_token = fresh.login_token
    roles = {name for name in ("web", "worker", "inference", "broker") if fresh.role(name)}
    assert {"web", "worker", "inference"} <= roles
    assert ("broker" in roles) == ("STUDIO_TEST_REDIS_URL" not in os.environ)
    a_second_one_is_refused(fresh)
    nothing_secret_is_to_be_seen(fresh)
    the_login_token_opens_a_session(fresh)
    tokens_count_at_once(fresh)
    assert fresh.stop(signal.SIGINT) < 20

    took = fresh.start()
    assert took < 10, f"the second start took {took:.1f} s"
    assert fresh.login_token != first_token
    assert httpx2.get(fresh.url + "/", params={"token": first_token}, trust_env=False).status_code in (401, 403)
    web_is_started_again_and_loads_no_torch(fresh)
    assert fresh.stop(signal.SIGHUP) < 20


def a_second_one_is_refused(studio: RunningStudio) -> None:
    second = studio.command("up", "--port", "0", "--no_browser")
    assert second.returncode == 2 and one_sentence(second.stderr), second.stderr
    assert str(studio.process.pid) in second.stderr and "--data_dir" in second.stderr


def nothing_secret_is_to_be_seen(studio: RunningStudio) -> None:
    assert stat.S_IMODE((studio.data_dir / "secrets").stat().st_mode) == 0o700
    for process in studio.processes():
        assert studio.login_token not in " ".join(process.cmdline()), "a secret in argv"


def the_login_token_opens_a_session(studio: RunningStudio) -> None:
    with httpx2.Client(base_url=studio.url, trust_env=False) as browser:
        assert browser.get("/api/v1/runs").status_code == 401
        page = browser.get("/", params={"token": studio.login_token})
        assert page.status_code == 200 and "studio" in page.headers["set-cookie"].lower()
        assert browser.get("/api/v1/runs").status_code == 200, "the cookie opens the API"
        assert browser.get("/api/v1/runs", headers={"Host": "evil.example"}).status_code == 400
        foreign = browser.post("/api/v1/runs", json={}, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403


def tokens_count_at_once(studio: RunningStudio) -> None:
    made = studio.command("token", "create", "script", "--data_dir", str(studio.data_dir))
    assert made.returncode == 0, made.stderr
    secret = made.stdout.splitlines()[-1]
    assert len(secret) >= 32 and secret.replace("-", "").replace("_", "").isalnum()
    answer = httpx2.get(studio.url + "/api/v1/runs", headers={"Authorization": f"Bearer {secret}"}, trust_env=False)
    assert answer.status_code == 200
    user = studio.command("user", "add", "ana", "--role", "viewer")
    assert user.returncode == 0 and len(user.stdout.splitlines()[-1]) >= 32
    again = studio.command("user", "add", "ana")
    assert again.returncode == 2 and one_sentence(again.stderr), again.stderr


def web_is_started_again_and_loads_no_torch(studio: RunningStudio) -> None:
    pid = studio.kill("web")
    studio.wait_replaced("web", pid)
    studio.wait_web()
    assert "web ended (SIGKILL); starting it again" in studio.stderr()
    studio.client.get("/system")
    for process in studio.role("web"):
        maps = Path(f"/proc/{process.pid}/maps")
        assert not maps.exists() or "libtorch" not in maps.read_text()
        assert process.memory_info().rss < 400 << 20


def test_a_killed_supervisor_takes_everything_along(fresh: RunningStudio) -> None:
    fresh.start()
    fresh.process.kill()
    fresh.process.wait()
    fresh.process.stdout.close()
    deadline = time.monotonic() + 10
    while fresh.processes():
        assert time.monotonic() < deadline, f"left: {[p.cmdline() for p in fresh.processes()]}"
        time.sleep(0.1)
    fresh.start()
