"""The main job as a user does it: the wizard, a live curve, pause, a restart of everything, resume, a talk.

The studio of this module is restarted on its port while the page is open, as an update or a power cut would do it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import Problems, axe
from tests.integration.studio import RunningStudio

#: a page that is looked at shows the truth within this time after whatever it missed
TRUTH_WITHIN_MS = 2000
#: What a browser says of a server that is away for a moment; and of a reload right behind a save: the page that leaves
#: saves once more, and where that says more than a save that has just arrived, it is refused.
AWAY = ("status of (409|503)|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|"
        "WebSocket connection to")


def wait_until(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Polls; Playwright's own wait_for_function evaluates text, which the policy of the pages forbids."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


def steps(page: Page) -> list[int]:
    """The steps that the loss curve on the page has points for."""
    return page.evaluate("document.querySelector('metric-chart')?.data[0] ?? []")


def restart(studio: RunningStudio) -> None:
    port = studio.url.rpartition(":")[2]
    studio.stop()
    studio.start("--port", port)


def pause_and_restart(page: Page, studio: RunningStudio, kind: str, id: str) -> list[int]:
    """Pause from the page, restart the studio under it, and resume; returns the steps that were shown before."""
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=60_000)
    paused = studio.client.get(f"/{kind}/{id}")
    assert paused["state"] == "paused"
    run = paused["runs"][-1] if kind == "pipelines" else paused
    assert run["state"] == "paused", "the page said paused before it was confirmed"
    shown = wait_until(lambda: (s := steps(page))[-1:] == [run["progress"]["step"]] and s)
    restart(studio)
    expect(page.locator("connection-banner")).to_be_hidden(timeout=TRUTH_WITHIN_MS)
    assert steps(page) == shown
    page.get_by_role("button", name="Resume").click()
    return shown


@contextlib.contextmanager
def in_slices(studio: RunningStudio) -> Iterator[Callable[[], None]]:
    """A model of this size says all it has within a blink: its process is let run for a moment at a time, so that
    there is a middle of an answer to stop it in."""
    process = next(p for p in studio.processes() if "inference" in p.cmdline())

    def let_it_work() -> None:
        process.resume()
        time.sleep(0.01)
        process.suspend()
        time.sleep(0.1)  # the page shows what it has ten times a second

    process.suspend()
    try:
        yield let_it_work
    finally:
        process.resume()


def talk(page: Page, studio: RunningStudio, opening: str, longer: str) -> None:
    """Ask, see an answer, stop one in the middle, reload: the conversation is there."""
    answers = page.locator(".message.assistant .said")
    ask(page, opening)
    expect(answers).to_have_count(1, timeout=60_000)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=60_000)
    first = answers.first.inner_text().strip()
    assert len(first) > 3

    with in_slices(studio) as let_it_work:
        ask(page, longer)
        wait_until(lambda: let_it_work() or (answers.count() == 2 and answers.nth(1).inner_text().strip()))
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_text("stopped").first).to_be_visible()
    second = answers.nth(1).inner_text().strip()

    page.wait_for_url("**/chat/*")
    page.reload()
    expect(page.locator(".message.user")).to_have_count(2)
    expect(answers).to_have_count(2)
    assert answers.first.inner_text().strip() == first
    assert answers.nth(1).inner_text().strip() == second


def ask(page: Page, text: str) -> None:
    box = page.get_by_role("textbox", name="Your message")
    box.fill(text)
    box.press("Enter")


def test_the_first_model(page: Page, problems: Problems, studio: RunningStudio) -> None:
    problems.allow(AWAY)
    expect(page.get_by_role("heading", name="Train your first model")).to_be_visible()
    page.get_by_text("1 minute", exact=True).click()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/pipelines/*", timeout=60_000)
    pipeline_id = page.url.rpartition("/")[2]
    page.evaluate("window.neverReloaded = true")

    wait_until(lambda: len(steps(page)) >= 5)
    seen = len(steps(page))
    wait_until(lambda: len(steps(page)) >= seen + 5)
    shown = pause_and_restart(page, studio, "pipelines", pipeline_id)
    resumed = wait_until(lambda: len(s := steps(page)) > len(shown) and s)
    assert resumed == list(range(1, len(resumed) + 1)), "a gap or a point twice"
    assert page.evaluate("window.neverReloaded") is True

    expect(page.get_by_role("heading", name="Your model is ready")).to_be_visible(timeout=180_000)
    assert page.evaluate("window.neverReloaded") is True
    runs = studio.client.get(f"/pipelines/{pipeline_id}")["runs"]
    assert [r["state"] for r in runs] == ["completed", "completed"]
    assert not axe(page), "\n".join(axe(page))

    page.goto(f"/runs/{runs[0]['id']}")
    total = runs[0]["progress"]["total_steps"]
    assert wait_until(lambda: len(s := steps(page)) >= total and s) == list(range(1, total + 1))
    page.goto(f"/pipelines/{pipeline_id}")
    page.get_by_role("link", name="Chat with it").click()
    talk(page, studio, "Who are you?", "Tell me a story.")


@pytest.mark.slow
def test_own_text_and_the_form(page: Page, problems: Problems, studio: RunningStudio, tmp_path: Path) -> None:
    """The same with an uploaded file: datasets page, new-run form, run page."""
    problems.allow(AWAY)
    path = tmp_path / "proverbs.txt"
    path.write_text("\n\n".join(f"The {i}th day is {'sunny' if i % 3 else 'rainy'} and number {i} has a friend "
                                f"called {i + 1}." for i in range(1, 900)))
    page.goto("/datasets?add=1")
    page.locator("#upload-file").set_input_files(path)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("is ready:")).to_be_visible(timeout=60_000)
    dataset = studio.client.get("/datasets")["items"][0]
    assert dataset["rows"] == 899
    page.goto(f"/datasets/{dataset['id']}")
    page.get_by_role("link", name="Train on this").first.click()
    page.wait_for_url("**/runs/new?*")
    page.locator("label.segment", has_text="Minutes").click()
    page.locator("[name=max_minutes]").fill("1")
    page.get_by_role("button", name="Queue this run").click()
    page.wait_for_url(lambda url: "/runs/" in url and "/runs/new" not in url)
    run_id = page.url.rpartition("/")[2]
    wait_until(lambda: len(steps(page)) >= 5)
    shown = pause_and_restart(page, studio, "runs", run_id)
    wait_until(lambda: len(steps(page)) > len(shown))
    expect(page.locator(".page-head .state")).to_have_text("completed", timeout=180_000)
    total = studio.client.get(f"/runs/{run_id}")["progress"]["total_steps"]
    assert wait_until(lambda: len(s := steps(page)) >= total and s) == list(range(1, total + 1))
    page.get_by_role("link", name="Chat with it").click()
    talk(page, studio, "The 7th day is", "The 8th day is")
