"""A page tells the truth within two seconds of being looked at again, without a reload: after another tab changed
something, after the machine slept, after the connection died without a word."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.pages import Problems
from tests.integration.studio import RunningStudio

WITHIN_MS = 2000


@pytest.fixture(scope="module")
def waiting_run(studio: RunningStudio) -> dict:
    """A run that stays in the queue: another one holds the devices. Its state is changed at will."""
    config = {"preset": "tiny-cpu", "max_steps": 100_000, "use_compile": False}
    holder = studio.client.post("/runs", {"stage": "pretrain", "config": config})
    studio.client.wait(f"/runs/{holder['id']}", lambda r: r["state"] in ("starting", "running"), timeout_s=60)
    yield studio.client.post("/runs", {"stage": "pretrain", "config": config, "name": "waits"})
    studio.client.post(f"/runs/{holder['id']}/cancel")


def wish(studio: RunningStudio, run: dict, what: str) -> None:
    studio.client.post(f"/runs/{run['id']}/{what}")


def expect_state(page: Page, word: str) -> None:
    expect(page.locator(".page-head .state")).to_have_text(word, timeout=WITHIN_MS)


def test_a_second_tab_and_the_list(page: Page, studio: RunningStudio, waiting_run: dict) -> None:
    page.goto(f"/runs/{waiting_run['id']}")
    other = page.context.new_page()
    other.goto("/runs")
    expect_state(page, "queued")
    row = other.get_by_role("row", name="waits")
    expect(row.locator(".state")).to_have_text("queued")
    page.get_by_role("button", name="Pause").click()
    expect_state(page, "paused")
    expect(row.locator(".state")).to_have_text("paused", timeout=WITHIN_MS)
    other.goto(f"/runs/{waiting_run['id']}")
    other.get_by_role("button", name="Resume").click()
    expect_state(other, "queued")
    expect_state(page, "queued")


def test_a_page_that_slept(page: Page, studio: RunningStudio, waiting_run: dict) -> None:
    page.goto(f"/runs/{waiting_run['id']}")
    expect_state(page, "queued")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    wish(studio, waiting_run, "pause")
    page.context.pages[0].wait_for_timeout(3000)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    expect_state(page, "paused")
    wish(studio, waiting_run, "resume")
    expect_state(page, "queued")


def test_a_connection_that_died_without_a_word(page: Page, studio: RunningStudio, waiting_run: dict) -> None:
    """As after a change of network: nothing comes any more and nothing says so."""
    dead: list[bool] = []

    def through(client: WebSocketRoute) -> None:
        server = client.connect_to_server()
        number = len(connections)
        connections.append(client)
        client.on_message(lambda text: None if dead and number == 0 else server.send(text))
        server.on_message(lambda text: None if dead and number == 0 else client.send(text))

    connections: list[WebSocketRoute] = []
    page.route_web_socket("**/api/v1/live", through)
    page.goto(f"/runs/{waiting_run['id']}")
    expect_state(page, "queued")
    dead.append(True)
    page.wait_for_timeout(1500)  # a look that was asked for before would still show the truth
    wish(studio, waiting_run, "pause")
    page.wait_for_timeout(1500)
    expect_state(page, "queued")
    page.evaluate("window.dispatchEvent(new Event('focus')); 0")
    expect_state(page, "paused")
    assert len(connections) == 2
    wish(studio, waiting_run, "resume")
    expect_state(page, "queued")


def test_a_deleted_run_and_a_lost_login(page: Page, problems: Problems, studio: RunningStudio) -> None:
    problems.allow("status of 40[14]")
    gone = studio.client.post("/runs", {"stage": "pretrain", "config": {"max_steps": 5}, "name": "goes"})
    studio.client.post(f"/runs/{gone['id']}/cancel")
    page.goto(f"/runs/{gone['id']}")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_url("**/runs")
    page.goto(f"/runs/{gone['id']}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("There is no run")
    page.goto("/runs")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("You are logged out.")).to_be_visible()
    page.goto("/runs")
    expect(page.get_by_role("textbox", name="Password")).to_be_visible()
