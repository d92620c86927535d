"""The page of a run that is being trained: what a reader chose stays while points come; the form for a pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import Problems, axe
from tests.browser.test_main_job import steps, wait_until
from tests.integration.studio import RunningStudio

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
#: quick steps without an end
CONFIG = {"preset": "tiny-cpu", "max_steps": 1_000_000, "hidden_size": 32, "num_hidden_layers": 1, "max_seq_len": 64,
          "sample_interval": 0, "save_interval": 50, "use_compile": False}


@pytest.fixture(scope="module")
def run(studio: RunningStudio) -> Iterator[dict]:
    made = studio.client.post("/runs", {"stage": "pretrain", "config": CONFIG, "name": HOSTILE, "notes": HOSTILE})
    yield made
    studio.client.post(f"/runs/{made['id']}/cancel")


def view_of(page: Page) -> list[float]:
    return page.evaluate("(({min, max}) => [min, max])(document.querySelector('metric-chart').chart.scales.x)")


def test_what_the_reader_chose_stays(page: Page, run: dict) -> None:
    page.goto(f"/runs/{run['id']}")
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    wait_until(lambda: len(steps(page)) > 60)
    plot = page.locator("metric-chart .u-over").first
    box = plot.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, y, steps=4)
    page.mouse.up()
    expect(page).to_have_url(re.compile(r"from=.*to="))
    wait_until(lambda: page.evaluate("!document.querySelector('run-charts').feed.isLoading"))
    zoomed = view_of(page)
    before = page.locator(".facts.big dd").first.inner_text()
    wait_until(lambda: page.locator(".facts.big dd").first.inner_text() != before)
    assert view_of(page) == zoomed and zoomed[0] > 1, "a new point moved the view"

    page.reload()
    wait_until(lambda: len(steps(page)) > 0 and view_of(page) == zoomed)
    page.get_by_role("button", name="Log scale").click()
    expect(page).to_have_url(re.compile(r"log=1"))
    page.get_by_role("button", name="Whole run").click()
    expect(page).not_to_have_url(re.compile(r"from="))
    wait_until(lambda: steps(page)[:1] == [1])
    page.get_by_label("Horizontal axis").select_option("tokens")
    expect(page).to_have_url(re.compile(r"x=tokens"))
    page.get_by_label("Horizontal axis").select_option("step")


def test_the_chart_has_words_a_keyboard_and_a_table(page: Page, run: dict) -> None:
    page.goto(f"/runs/{run['id']}?smooth=0")
    wait_until(lambda: len(steps(page)) > 60)
    chart = page.locator("metric-chart").first
    chart.locator(".chart-plot").focus()
    page.keyboard.press("Home")
    expect(chart.locator(".chart-values")).to_contain_text("Step 1:")
    page.keyboard.press("ArrowRight")
    expect(chart.locator("[aria-live]")).to_contain_text("Step 2:")
    chart.get_by_text("Numbers").click()
    expect(chart.get_by_role("columnheader", name="training loss")).to_be_visible()
    with page.expect_download() as download:
        chart.get_by_role("button", name="CSV").click()
    rows = download.value.path().read_text().splitlines()
    assert rows[0] == "Step,each step,training loss,held-out loss" and rows[1].startswith("1,")


def test_more_curves_open_and_stay_open(page: Page, run: dict) -> None:
    """A closed group says its newest values, an open one is drawn, and the address keeps which are open."""
    page.goto(f"/runs/{run['id']}")
    wait_until(lambda: len(steps(page)) > 0)
    machine = page.locator("details.chart-group").filter(has_text="Use of the machine")
    expect(machine.locator("> summary")).to_contain_text(re.compile(r"MFU [\d.]+ % · peak memory \d+ MB"))
    expect(page.locator("details.chart-group").filter(has_text="Experts")).to_have_count(0)
    expect(page.locator("canvas")).to_have_count(4)
    machine.locator("> summary").click()
    expect(machine.locator("canvas")).to_have_count(2)
    expect(page).to_have_url(re.compile(r"open=machine$"))
    page.reload()
    expect(machine.locator("canvas")).to_have_count(2)
    expect(machine.get_by_text("Model FLOPs utilization")).to_be_visible()
    axis = machine.locator("metric-chart").last.evaluate("(it) => [it.chart.scales.y.min, it.chart.width]")
    assert axis[0] == 0 and axis[1] > 250, "drawn while it was closed"
    assert not axe(page), "\n".join(axe(page))
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_labels_are_edited_in_a_dialog(page: Page, run: dict) -> None:
    page.goto(f"/runs/{run['id']}")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Name", exact=True).fill("renamed")
    page.get_by_label("Tags").fill("first, second")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("renamed")
    expect(page.locator(".page-head .tag")).to_have_text(["first", "second"])
    page.get_by_role("button", name="Cancel").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_model_in_training_is_asked(page: Page, studio: RunningStudio, run: dict) -> None:
    """It says nothing by itself here. Once it is paused, it cannot be asked."""
    page.goto(f"/runs/{run['id']}")
    ask = page.get_by_role("button", name="Ask it now")
    expect(ask).to_be_visible(timeout=60_000)
    expect(page.locator("sample-timeline dd")).to_have_count(0)
    ask.click()
    expect(page.locator("sample-timeline dd")).to_have_count(3, timeout=30_000)
    expect(ask).not_to_have_attribute("aria-busy", "true")
    step = page.locator("sample-timeline output").text_content()
    ask.click()
    expect(page.locator("sample-timeline output")).not_to_have_text(step, timeout=30_000)
    studio.client.post(f"/runs/{run['id']}/pause")
    expect(ask).to_be_hidden(timeout=30_000)
    studio.client.wait_run(run["id"], ("paused",))
    studio.client.post(f"/runs/{run['id']}/resume")
    expect(ask).to_be_visible(timeout=60_000)


def test_what_belongs_to_scripts_outlives_every_change_of_state(page: Page, run: dict) -> None:
    """Notices come and go above charts, samples and log; these must not be made anew, nor lose what was chosen."""
    page.goto(f"/runs/{run['id']}")
    wait_until(lambda: len(steps(page)) > 0)
    parts = ["run-charts", "sample-timeline", "log-tail"]
    for part in parts:
        page.evaluate("part => { document.querySelector(part).isOld = true; }", part)
    page.get_by_role("button", name="Pause").click()
    resume = page.get_by_role("button", name="Resume")
    expect(resume).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Paused: everything is saved")).to_be_visible()
    expect(resume).to_be_focused()
    resume.press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Paused: everything is saved")).to_be_hidden()
    expect(page.locator(".page-head .state")).to_have_text("running", timeout=30_000)
    assert [page.evaluate("part => document.querySelector(part).isOld === true", part) for part in parts] == [True] * 3


def test_hostile_log_lines_and_samples_are_text(page: Page, run: dict) -> None:
    """What a library printed, or a model said, is shown and does nothing."""
    texts = [HOSTILE, "javascript:alert(1)", "<svg onload=alert(1)>", "\x1b]0;title\x07\x1b[31mred", "\u202egnp.exe",
             "<style>*{display:none}</style>", "</pre></main><h1>mine</h1>", "{{ 7 * 7 }}", "x" * 5000]
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.route("**/logs?*", lambda route: route.fulfill(json={
        "items": [] if "after=" in route.request.url else [{"attempt": 1, "text": text} for text in texts],
        "next_cursor": "1:1"}))
    page.route("**/samples", lambda route: route.fulfill(json={"next_cursor": None, "items": [
        {"step": 1, "tokens": 1, "attempt": 1, "t": 1.0, "prompt": text, "text": text, "prompt_index": index}
        for index, text in enumerate(texts)]}))
    page.goto(f"/runs/{run['id']}")
    expect(page.locator("sample-timeline dd")).to_have_count(len(texts))
    assert page.locator("sample-timeline dd").all_text_contents() == texts
    log = page.locator(".log").text_content()
    assert all(text in log for text in texts)
    assert page.locator("h1").count() == 1 and page.locator("main img, main svg[onload], main style").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_pipeline_of_ones_own(page: Page, problems: Problems, studio: RunningStudio) -> None:
    problems.allow("status of 422")
    page.goto("/pipelines/new")
    page.get_by_label("Name").fill("mine")
    first = page.locator(".station-forms > li").first
    first.get_by_label("Minutes of training").fill("-1")
    page.get_by_role("button", name="Start the pipeline").click()
    expect(first.get_by_label("Minutes of training")).to_have_attribute("aria-invalid", "true")
    expect(first.get_by_label("Minutes of training")).to_be_focused()
    first.get_by_label("Minutes of training").fill("0.5")
    page.get_by_role("button", name="Add a stage").click()
    page.locator(".station-forms > li").nth(2).get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Start the pipeline").click()
    page.wait_for_url(re.compile(r"/pipelines/(?!new)"))
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the pipeline").click()
    expect(page.locator(".page-head .state")).to_have_text("cancelled")
