"""The web process dies under an open page: it recovers without a reload and goes on telling the truth."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import Problems
from tests.integration.studio import RunningStudio


@pytest.mark.slow
def test_a_tab_outlives_the_web_process(page: Page, problems: Problems, studio: RunningStudio) -> None:
    problems.allow("WebSocket connection|net::ERR|status of 50[234]")  # what Chromium says of a server that is away
    run = studio.client.post("/runs", {"stage": "pretrain", "config": {
        "preset": "tiny-cpu", "max_steps": 100_000, "use_compile": False}})
    path = f"/runs/{run['id']}"
    page.goto(path)
    state = page.locator(".page-head .state")
    expect(state).to_have_text("running", timeout=60_000)
    page.evaluate("window.opened = 1; 0")
    pid = studio.kill("web")
    studio.wait_replaced("web", pid)
    studio.wait_web()
    studio.client.post(f"{path}/pause")
    expect(state).to_have_text("paused", timeout=60_000)
    assert page.evaluate("window.opened") == 1, "the page was loaded again"
    assert studio.client.get(path)["attempt"] == 1
    studio.client.post(f"{path}/cancel")
    expect(state).to_have_text("cancelled", timeout=15_000)
