"""Checkpoints, system and its queue, API and patterns: what their scripts add to what the server wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.pages import Problems, axe
from tests.integration.studio import RunningStudio

TINY = {"preset": "tiny-cpu", "max_steps": 12, "max_minutes": 0.2}


@pytest.fixture(scope="module")
def run(studio: RunningStudio) -> Iterator[dict]:
    """A run that has saved a checkpoint."""
    made = studio.client.post("/runs", {"stage": "pretrain", "name": "Small run", "config": TINY})
    yield studio.client.wait_run(made["id"], timeout_s=180)


def test_checkpoints_can_be_copied_and_go_on(page: Page, studio: RunningStudio, run: dict) -> None:
    checkpoint = studio.client.get("/checkpoints")["items"][0]
    page.goto("/checkpoints")
    expect(page.get_by_role("link", name="Small run", exact=True)).to_be_visible()
    page.get_by_role("button", name=re.compile("Copy the path of step 12 of Small run")).click()
    expect(page.get_by_text("Copied.")).to_be_attached()
    page.goto("/api/docs")
    page.get_by_role("searchbox", name="Filter the API").press("Control+v")
    expect(page.get_by_role("searchbox", name="Filter the API")).to_have_value(checkpoint["path"])

    def older(route: Route) -> None:
        row = '<tr data-key="old"><th scope="row"><a href="/runs/old">An older one</a></th></tr>'
        route.fulfill(content_type="text/html", body=f"<div data-fragment><table><tbody>{row}</tbody></table></div>")

    page.route("**/checkpoints?cursor=next&part=rows", older)
    page.goto("/checkpoints")
    page.evaluate("""() => {  // as if there were more than a page of them
      const link = Object.assign(document.createElement("a"), { href: "?cursor=next", textContent: "Show more" });
      document.querySelector("live-fragment").append(link);
      link.outerHTML = `<p data-more>${link.outerHTML}</p>`;
    }""")
    page.get_by_role("link", name="Show more").click()
    expect(page.get_by_role("link", name="An older one")).to_be_focused()
    assert page.locator("tbody tr").count() == 2 and page.get_by_role("link", name="Show more").count() == 0


def test_the_system_page_is_live(page: Page, studio: RunningStudio, run: dict) -> None:
    client = studio.client
    page.goto("/system")
    page.evaluate("window.neverReloaded = true")
    expect(page.get_by_text("All free.")).to_be_visible()
    long = client.post("/runs", {"stage": "pretrain", "name": "Busy one", "config": TINY | {
        "max_steps": 100_000, "max_minutes": 5, "use_compile": False}})
    expect(page.get_by_role("link", name="CPU slot 0: used by Busy one")).to_be_visible(timeout=60_000)
    client.post("/runs", {"stage": "pretrain", "name": "Patient one", "config": TINY})
    expect(page.get_by_text("Waits for free devices, now used by Busy one.")).to_be_visible()
    dataset = client.post("/datasets", {"name": "Large world", "source": {"kind": "starter", "minutes": 1440}})
    page.get_by_role("button", name="Cancel: Import a dataset Large world").click()
    job = client.wait(f"/jobs/{dataset['job_id']}", lambda job: job["state"] in ("cancelled", "completed"))
    expect(page.locator(f"[data-key='{job['id']}'] .state")).to_have_text(job["state"])
    for item in client.get("/runs")["items"]:
        if item["state"] not in ("completed", "cancelled"):
            client.post(f"/runs/{item['id']}/cancel")
    client.wait_run(long["id"])
    expect(page.get_by_text("All free.")).to_be_visible(timeout=30_000)
    assert page.evaluate("window.neverReloaded") is True


def test_the_api_page_filters_and_tries(page: Page) -> None:
    """``page`` fails this test where Swagger UI breaks the Content-Security-Policy or asks anybody outside."""
    page.goto("/api/docs")
    page.get_by_role("searchbox", name="Filter the API").fill("checkpoint download")
    operation = page.locator("#get-api-v1-checkpoints-id-download")
    expect(operation).to_be_visible()
    expect(page.locator("#post-api-v1-runs")).to_be_hidden()
    expect(page.locator("[data-found]")).to_have_text(re.compile(r"^\d+ found$"))
    page.get_by_role("searchbox", name="Filter the API").fill("no such thing at all")
    expect(page.locator("[data-found]")).to_have_text("Nothing found.")
    page.get_by_role("searchbox", name="Filter the API").fill("")
    expect(page.locator("#post-api-v1-runs")).to_be_visible()

    page.get_by_role("button", name="Try it out").click()
    swagger = page.locator("#swagger")
    expect(swagger).to_be_focused(timeout=30_000)
    swagger.locator(".opblock-tag[data-tag=auth] button").click()
    me = swagger.locator(".opblock", has_text="/api/v1/me")
    me.locator("button.opblock-summary-control").click()
    me.get_by_role("button", name="Try it out").click()
    me.get_by_role("button", name="Execute").click()
    expect(me.locator(".live-responses-table .response-col_status").last).to_have_text("200")


def test_what_comes_and_goes(page: Page, problems: Problems) -> None:
    page.goto("/patterns")
    opener = page.get_by_role("button", name="Open a dialog")
    opener.click()
    expect(page.get_by_role("dialog", name="Delete this run?")).to_be_visible()
    assert not axe(page), "\n".join(axe(page))
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    page.get_by_role("button", name="Bad news").click()
    page.get_by_role("button", name="Good news").click()
    toasts = page.locator("toast-stack .notice")
    expect(toasts).to_have_count(2)
    assert not axe(page), "\n".join(axe(page))
    toasts.first.get_by_role("button", name="Close").click()
    expect(toasts).to_have_count(0, timeout=8000)


@pytest.fixture
def queued(studio: RunningStudio) -> Iterator[dict[str, str]]:
    """Three runs that wait because the queue is paused; the name of each and its id."""
    client = studio.client
    client.post("/system/queue", {"paused": True, "note": "a new disk"})
    runs = {name: client.post("/runs", {"stage": "pretrain", "name": name, "config": TINY})["id"]
            for name in ("First one", "Second one", "Third one")}
    yield runs
    for id in runs.values():
        client.post(f"/runs/{id}/cancel")
    client.post("/system/queue", {"paused": False})


def shown(page: Page) -> list[str]:
    return page.locator("ol.queue > li a.wrap").all_inner_texts()


def test_people_put_the_queue_in_their_order(page: Page, studio: RunningStudio, queued: dict[str, str]) -> None:
    page.goto("/system")
    page.evaluate("window.neverReloaded = true")
    assert shown(page) == ["First one", "Second one", "Third one"]
    up = page.get_by_role("button", name="Move Third one up")
    up.focus()
    page.keyboard.press("Enter")
    expect(page.locator("ol.queue > li a.wrap").nth(1)).to_have_text("Third one")
    expect(up).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("ol.queue > li a.wrap").first).to_have_text("Third one")
    expect(up).to_have_attribute("aria-disabled", "true")
    expect(page.get_by_role("button", name="Move Third one down")).to_be_focused()
    priority = page.get_by_role("spinbutton", name="Priority of Second one")
    priority.fill("7")
    priority.press("Enter")
    expect(page.locator("ol.queue > li a.wrap").first).to_have_text("Second one")
    assert studio.client.get(f"/runs/{queued['Second one']}")["priority"] == 7
    studio.client.post(f"/runs/{queued['Second one']}/move", {"to": "last"})  # somebody else
    expect(page.locator("ol.queue > li a.wrap").last).to_have_text("Second one", timeout=20_000)
    expect(priority).to_have_value("0")
    assert not axe(page), "\n".join(axe(page))
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("window.neverReloaded") is True


def test_the_queue_is_paused_and_resumed(page: Page, studio: RunningStudio, queued: dict[str, str]) -> None:
    page.goto(f"/runs/{queued['First one']}")
    expect(page.get_by_text("The queue is paused by local admin: a new disk")).to_be_visible()
    page.goto("/runs")
    page.get_by_role("button", name="Resume the queue").click()
    expect(page.get_by_text("The queue goes on.")).to_be_visible()
    expect(page.get_by_role("button", name="Resume the queue")).to_have_count(0)
    page.goto("/system")
    page.get_by_role("button", name="Pause the queue").click()
    dialog = page.get_by_role("dialog", name="Pause the queue?")
    dialog.get_by_label("Why, for everybody to read").fill("new cables")
    dialog.get_by_role("button", name="Pause the queue").click()
    expect(page.get_by_text("by local admin: new cables").first).to_be_visible()
    assert studio.client.get("/system")["queue"]["note"] == "new cables"
