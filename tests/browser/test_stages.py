"""Stages after pretraining in a browser: what each needs is asked for, explained, and linked to its source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from app.runs.explain import explain
from minimind.config import STAGES
from tests.browser.pages import axe
from tests.integration.studio import RunningStudio

TINY = {"preset": "tiny-cpu", "max_steps": 2, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_seq_len": 64}


@pytest.fixture(scope="module")
def checkpoint(studio: RunningStudio) -> Iterator[dict]:
    """One that was really trained; then the queue stands still, so that what is queued here stays queued."""
    made = studio.client.post("/runs", {"stage": "pretrain", "config": TINY, "name": "reader"})
    assert studio.client.wait_run(made["id"], timeout_s=180)["state"] == "completed"
    studio.client.post("/system/queue", {"paused": True})
    yield studio.client.get("/checkpoints", run_id=made["id"])["items"][0]
    studio.client.post("/system/queue", {"paused": False})


def settle(page: Page) -> None:
    page.wait_for_timeout(350)
    expect(page.locator("preflight-card")).not_to_have_attribute("aria-busy", "true")


def body(page: Page) -> dict:
    return json.loads(page.locator("#same-body").text_content())


def test_what_a_stage_needs_is_asked_for_and_stays_over_a_switch(page: Page, checkpoint: dict) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/preflight" in request.url else None)
    page.goto("/runs/new?stage=lora&max_steps=3")
    button, base = page.locator("run-form [type=submit]"), page.locator("#place-base_checkpoint_id")
    expect(button).to_have_text("Choose a base checkpoint")
    expect(page.locator("[data-trouble]")).to_have_text("The numbers come once this is chosen: Base checkpoint.")
    assert not asked, "there is nothing to compute yet"
    expect(page.locator("details[data-group=about]")).to_have_attribute("open", "")
    button.click()
    expect(base).to_be_focused()
    expect(base).to_have_attribute("aria-invalid", "true")
    base.select_option(checkpoint["id"])
    settle(page)
    expect(button).to_have_text("Queue this run")
    expect(page.locator("[data-n=own]")).to_contain_text("numbers are learnt")
    assert body(page)["base_checkpoint_id"] == checkpoint["id"]

    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        page.get_by_label(name, exact=True).uncheck()
    expect(page.locator("[data-field=lora_targets] .field-error")).to_contain_text("Choose one at least.")
    page.get_by_label("v_proj", exact=True).check()
    settle(page)
    assert body(page)["config"]["lora_targets"] == ["v_proj"] and "lora_targets=v_proj" in page.url

    page.locator("details[data-group=about] summary").click()  # closed: it stays so
    page.get_by_role("radio", name="Preferences (DPO)").check()
    expect(page.locator("#option-loss_type")).to_be_visible()
    expect(page.locator("#help-dataset_id")).to_contain_text("can learn from: preference pairs.")
    expect(base).to_have_value(checkpoint["id"])
    assert not page.locator("details[data-group=about]").evaluate("details => details.open")
    settle(page)
    expect(page.locator("[data-n=own]")).to_contain_text("two sequences")
    assert not axe(page), "\n".join(axe(page))

    page.get_by_role("radio", name="Distillation").check()
    teacher = page.locator("#place-teacher_checkpoint_id")
    expect(button).to_have_text("Choose a teacher")
    teacher.select_option(checkpoint["id"])
    settle(page)
    expect(page.locator("[data-n=own]")).to_contain_text("reads every token too")
    expect(page.locator("[data-bar=memory]")).to_contain_text("teacher")
    page.reload()
    expect(teacher).to_have_value(checkpoint["id"])
    button.click()
    page.wait_for_url(re.compile(r"/runs/(?!new)"))
    expect(page.locator("main")).to_contain_text("Taught by")
    run = page.request.get(f"/api/v1/runs/{page.url.rsplit('/', 1)[1]}").json()
    assert (run["stage"], run["teacher_checkpoint_id"]) == ("distill", checkpoint["id"])
    titles = page.locator("metric-chart h3").all_inner_texts()
    assert titles[:3] == ["Loss", "Surprise at the data", "Distance from the teacher"]
    page.get_by_text("What happens here").click()
    expect(page.locator(".stage-about math")).to_be_visible()


def test_a_checkpoint_offers_every_way_on(page: Page, checkpoint: dict) -> None:
    page.goto("/checkpoints")
    button = page.get_by_role("button", name=re.compile("^Train on from step"))
    menu = page.locator(f"#train-on-{checkpoint['id']}")
    expect(menu).to_be_hidden()
    button.first.focus()
    page.keyboard.press("Enter")
    expect(menu).to_be_visible()
    assert not axe(page), "\n".join(axe(page))
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    button.first.click()
    menu.get_by_role("link", name="Distillation, as the teacher").click()
    expect(page.locator("#place-teacher_checkpoint_id")).to_have_value(checkpoint["id"])


def test_every_stage_leads_to_its_source(page: Page) -> None:
    page.goto("/stages")
    for stage in STAGES:
        page.goto(f"/stages/{stage}")
        formula = page.locator("math")
        assert formula.bounding_box()["height"] > 15 and formula.get_attribute("aria-label") == explain(stage).spoken
        assert not axe(page), "\n".join(axe(page))
        link = page.locator(".stage-links a[href^='/source/']").first
        name = explain(stage).places[0].name
        link.click()
        page.wait_for_url(re.compile("/source/minimind/.*#L"))
        line = page.locator(".source-line:target")
        expect(line).to_be_in_viewport()
        expect(line).to_contain_text(name)
    assert not axe(page), "\n".join(axe(page))
    page.set_viewport_size({"width": 390, "height": 844})
    for address in ("/stages", "/stages/dpo", "/source", "/source/minimind/objectives.py", "/runs/new?stage=distill"):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address


def test_a_stage_that_was_chosen_before_the_scripts_are_here(page: Page) -> None:
    held: list[Route] = []
    is_here: list[bool] = []
    page.route("**/*.js", lambda route: route.continue_() if is_here else held.append(route))
    page.goto("/runs/new?stage=sft", wait_until="commit")
    page.get_by_role("radio", name="LoRA").check()
    is_here.append(True)
    for route in held:
        route.continue_()
    expect(page.locator("#option-lora_rank")).to_be_visible()
    expect(page.locator("run-form [type=submit]")).to_have_text("Choose a base checkpoint")
    assert body(page)["stage"] == "lora"
