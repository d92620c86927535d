"""The page of new pipelines: a recipe is chosen and started with the keyboard; a line of one's own names its stages."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.pages import Problems, axe
from tests.integration.studio import RunningStudio


@pytest.fixture(autouse=True)
def nothing_trains(studio: RunningStudio) -> Iterator[None]:
    """The first run of every line waits, and is cancelled with it."""
    studio.client.post("/system/queue", {"paused": True})
    yield
    for line in studio.client.get("/pipelines")["items"]:
        if line["state"] not in ("completed", "cancelled"):
            studio.client.post(f"/pipelines/{line['id']}/cancel")
    studio.client.post("/system/queue", {"paused": False})


def newest(studio: RunningStudio) -> dict:
    return studio.client.get("/pipelines")["items"][0]


def corner_of(part: Locator) -> tuple[float, float]:
    part.scroll_into_view_if_needed()
    box = part.bounding_box()
    return box["x"] + 5, box["y"] + 5


def test_a_recipe_is_started_with_the_keyboard(page: Page, problems: Problems, studio: RunningStudio) -> None:
    problems.allow("status of 422")
    page.goto("/pipelines/new")
    page.get_by_role("radio", name="Zero to chat").focus()
    minutes = page.get_by_label("Minutes of training, all stages together")
    expect(minutes).to_have_value("5")
    page.keyboard.press("ArrowDown")
    chosen = page.get_by_role("radio", name="Chat and preference")
    expect(chosen).to_be_checked()
    expect(minutes).to_have_value("6")  # the recipe's own time, until somebody has said another
    card = page.locator(".recipe-card", has=chosen)
    expect(card.locator("[data-share]")).to_have_text(["3.3 min", "1.8 min", "0.9 min"])
    expect(card).to_contain_text("held-out pairs won ≥ 0.9")
    assert not axe(page), "\n".join(axe(page))
    minutes.fill("0")
    minutes.press("Enter")
    expect(page.locator("[data-error=minutes]").first).to_contain_text("0.1")
    expect(minutes).to_be_focused()
    minutes.fill("20")
    expect(card.locator("[data-share]")).to_have_text(["11 min", "6 min", "3 min"])
    page.get_by_label("Language of its world").select_option("pt")
    minutes.press("Enter")
    page.wait_for_url("**/pipelines/*", wait_until="load")
    page.wait_for_url(lambda url: not url.endswith("/new"))
    line = newest(studio)
    assert page.url.endswith(line["id"]) and line["name"] == "Chat and preference, 20 min"
    assert [(s["stage"], s["config"]["languages"], s["config"]["starter_minutes"]) for s in line["stages"]] == [
        (stage, ["pt"], 17.0) for stage in ("pretrain", "sft", "dpo")]
    expect(page.get_by_text("held-out pairs won ≥ 0.9")).to_be_visible()
    assert not axe(page), "\n".join(axe(page))


def test_the_whole_card_chooses_and_the_page_fits_a_phone(page: Page, studio: RunningStudio) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/pipelines/new")
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert not axe(page), "\n".join(axe(page))
    card = page.locator(".recipe-card", has_text="Student: distillation")
    page.mouse.click(*corner_of(card.locator(".track").last))
    expect(page.get_by_role("radio", name="Teacher and student")).to_be_checked()
    page.get_by_role("button", name="Start the recipe").click()
    page.wait_for_url(lambda url: not url.endswith("/new"))
    expect(page.get_by_text("taught by stage 3")).to_be_visible()
    expect(page.get_by_text("starts from random weights")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_line_of_ones_own_with_a_teacher(page: Page, studio: RunningStudio) -> None:
    page.goto("/pipelines/new")
    form = page.locator("pipeline-form")
    form.get_by_role("button", name="Add a stage").click()
    form.get_by_role("button", name="Add a stage").click()
    rows = form.locator("[data-rows] > li")
    for place, stage in enumerate(("tokenizer", "pretrain", "pretrain", "distill")):
        rows.nth(place).get_by_label("Stage", exact=True).select_option(stage)
    rows.nth(2).get_by_label("Starts from").select_option("Random weights")
    rows.nth(2).get_by_label("Size of the model").select_option("tiny-cpu")
    expect(rows.nth(3).get_by_label("Size of the model")).to_be_hidden()
    rows.nth(3).get_by_label("Teacher").select_option("Stage 2: Pretraining")
    form.get_by_role("button", name="Add a stage").click()
    rows.nth(4).get_by_role("button", name="Remove").click()
    expect(rows.nth(3).get_by_label("Teacher")).to_have_value("1")
    assert not axe(page), "\n".join(axe(page))
    form.get_by_label("Name").fill("School")
    form.get_by_role("button", name="Start the pipeline").click()
    page.wait_for_url(lambda url: not url.endswith("/new"))
    stages = newest(studio)["stages"]
    assert stages[2]["from_stage"] == -1 and stages[2]["config"]["preset"] == "tiny-cpu"
    assert stages[3]["teacher_stage"] == 1 and "from_stage" not in stages[3]


def test_back_from_a_line_another_one_can_be_started(page: Page) -> None:
    page.route(re.compile("/pipelines/(?!new)"), lambda route: route.fulfill(status=204))  # the page stays
    page.goto("/pipelines/new")
    for name in ("Start the recipe", "Start the pipeline"):
        start, made = page.get_by_role("button", name=name), set()
        for _ in range(2):
            with page.expect_response("**/api/v1/pipelines") as answer:
                start.click()
            made.add(answer.value.json()["id"])
            expect(start).to_be_disabled()
            page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
            expect(start).to_be_enabled()
        assert len(made) == 2
