"""The form of a new run in a browser: numbers while one types, problems beside their fields, one run queued."""

from __future__ import annotations

import json

from playwright.sync_api import Page, Route, expect

from tests.browser.pages import Problems, axe


def number(page: Page, name: str) -> str:
    return page.locator(f"preflight-card [data-n={name}]").inner_text()


def settle(page: Page) -> None:
    """Until the numbers are those of what stands in the form."""
    page.wait_for_timeout(350)
    expect(page.locator("preflight-card")).not_to_have_attribute("aria-busy", "true")


def test_numbers_follow_and_the_address_keeps_the_form(page: Page) -> None:
    page.goto("/runs/new?stage=pretrain&preset=tiny-cpu")
    expect(page.locator("preflight-card [data-n=parameters]")).to_have_text("927k")
    page.get_by_role("radio", name="Steps").check()
    button = page.locator("run-form [type=submit]")
    settle(page)
    expect(button).to_have_text("Say how many steps")
    page.get_by_role("textbox", name="Steps --max_steps").fill("60")
    page.get_by_text("Optimization", exact=True).click()
    page.get_by_role("textbox", name="Batch size").fill("8")
    page.get_by_role("textbox", name="Learning rate --learning_rate").fill("1e-3")
    settle(page)
    assert (number(page, "total_steps"), number(page, "tokens_per_step")) == ("60", "2,048")
    expect(page.locator("[data-group=optimization] summary")).to_contain_text("2 changed")
    expect(page.locator("#same-command")).to_have_text(
        "python train.py pretrain --preset tiny-cpu --max_steps 60 --batch_size 8 --learning_rate 0.001")
    expect(page.locator("#option-accumulation_steps")).to_have_attribute("placeholder", "auto (1)")
    page.reload()
    assert page.locator("#option-batch_size").input_value() == "8" and "learning_rate=1e-3" in page.url

    page.get_by_role("radio", name="Tokenizer").check()
    expect(page.locator("#option-vocab_size")).to_have_attribute("placeholder", "2048")
    assert page.locator("#option-batch_size").count() == 0
    page.get_by_role("radio", name="Fine-tuning").check()
    expect(page.locator("#option-batch_size")).to_have_value("8")
    expect(page.get_by_role("radio", name="Steps")).to_be_checked()
    expect(page.locator("[data-warnings]")).to_contain_text("random weights")

    page.locator("[data-group=optimization] summary").click()
    page.get_by_role("button", name="Reset Batch size").click()
    expect(page.locator("#option-batch_size")).to_be_focused()
    settle(page)
    assert number(page, "tokens_per_step") == "1,024" and "batch_size" not in page.url
    page.locator("main details").evaluate_all("all => all.forEach((each) => { each.open = true })")
    assert not axe(page), "\n".join(axe(page))
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_problems_stand_beside_their_fields(page: Page, problems: Problems) -> None:
    problems.allow("status of 422")
    page.goto("/runs/new?stage=pretrain&max_steps=60&hidden_size=100&num_attention_heads=3&grad_clip=0,5")
    wrong = page.locator("[data-field=grad_clip] .field-error")
    expect(wrong).to_contain_text("Write 0.5, with a point.")
    expect(page.locator("[data-field=hidden_size] .field-error")).to_contain_text("not divisible")
    button = page.locator("run-form [type=submit]")
    expect(button).to_have_text("Fix 2 things first")
    expect(page.locator("[data-group=model] summary")).to_contain_text("1 to fix")
    assert not axe(page), "\n".join(axe(page))
    button.click()
    expect(page.locator("#option-grad_clip")).to_be_focused()  # its closed group was opened
    expect(page.locator("#option-grad_clip")).to_have_attribute("aria-invalid", "true")
    page.locator("#option-grad_clip").fill("0.5")
    page.locator("[data-problems]").get_by_role("button", name="Hidden size").click()
    expect(page.locator("#option-hidden_size")).to_be_focused()
    page.locator("#option-hidden_size").fill("96")
    expect(button).to_have_text("Queue this run")
    expect(wrong).to_be_hidden()
    expect(page.locator("#option-hidden_size")).not_to_have_attribute("aria-invalid", "true")


def test_a_switch_of_the_stage_is_whole(page: Page) -> None:
    """Nothing of the old stage is sent meanwhile, and long notes outlive it."""
    page.goto("/runs/new?stage=pretrain&preset=tiny-cpu&max_steps=3")
    settle(page)
    tags, notes = ",".join(f"{n:02}-{'tag' * 10}" for n in range(18)), "why " * 500
    page.locator("#place-tags").evaluate("(input, text) => { input.value = text; }", tags)
    page.locator("#place-notes").evaluate("(input, text) => { input.value = text; }", notes)
    waiting: list[Route] = []
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.route("**/runs/new?*part=stage*", lambda route: waiting.append(route))
    page.get_by_role("radio", name="Fine-tuning").check()
    parts = page.locator("[data-stage-part]")
    assert parts.evaluate_all("all => all.map((part) => part.inert)") == [True] * 3
    page.locator("#place-name").fill("meanwhile")
    page.locator("run-form [type=submit]").click()
    page.wait_for_timeout(400)
    assert waiting and not sent
    waiting[0].continue_()
    expect(page.locator("preflight-card")).not_to_have_attribute("aria-busy", "true")
    assert parts.evaluate_all("all => all.map((part) => part.inert)") == [False] * 3
    body = json.loads(page.locator("#same-body").text_content())
    assert (body["stage"], body["name"], body["notes"], ",".join(body["tags"])) == (
        "sft", "meanwhile", notes.strip(), tags)
    waiting.clear()
    page.get_by_role("radio", name="Pretraining").check()
    page.wait_for_function("document.querySelector('[data-stage-part]').inert")
    page.wait_for_timeout(100)
    waiting[0].fulfill(status=200, content_type="text/html", body="<p>Some other page</p>")
    expect(page.locator("[data-failure]")).to_contain_text("could not be loaded")
    expect(page.get_by_role("radio", name="Fine-tuning")).to_be_checked()
    assert parts.evaluate_all("all => all.map((part) => part.inert)") == [False] * 3


def test_an_answer_to_an_old_question_is_not_shown(page: Page) -> None:
    page.goto("/runs/new?stage=pretrain&preset=tiny-cpu&max_steps=3")
    settle(page)
    held: list[Route] = []
    page.route("**/api/v1/preflight", lambda route: held.append(route) if not held else route.continue_())
    steps = page.get_by_role("textbox", name="Steps --max_steps")
    steps.fill("60")
    page.wait_for_timeout(400)
    steps.fill("70")  # aborts the question: its answer comes to nobody
    held[0].fulfill(status=500, body="{}")
    page.wait_for_timeout(50)
    assert page.locator("preflight-card").get_attribute("aria-busy") == "true"
    settle(page)
    assert number(page, "total_steps") == "70"


def test_a_run_is_queued_once_and_copied(page: Page, problems: Problems) -> None:
    problems.allow("status of 50[37]")
    page.goto("/runs/new?stage=pretrain&preset=tiny-cpu&max_steps=3&name=<b>first</b>&seed=7")
    button = page.locator("run-form [type=submit]")
    keys: list[str | None] = []

    def refuse_at_first(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key"))
        if len(keys) > 1:
            route.continue_()
            return
        error = {"message": "The disk is full.", "hint": "Free some space.", "code": "DISK_FULL"}
        route.fulfill(status=507, content_type="application/json", body=json.dumps({"error": error}))

    page.route("**/api/v1/runs", refuse_at_first)
    settle(page)
    button.click()
    expect(page.get_by_role("alert")).to_contain_text("The disk is full. Free some space.")
    assert page.locator("#place-name").input_value() == "<b>first</b>"
    button.click()
    page.wait_for_url(lambda url: "/runs/new" not in url)
    assert keys[0] and keys == [keys[0]] * 2
    id = page.url.rsplit("/", 1)[1]
    run = page.request.get(f"/api/v1/runs/{id}").json()
    assert run["name"] == "<b>first</b>" and run["config"]["max_steps"] == 3 and run["config"]["seed"] == 7

    page.goto(f"/runs/new?clone={id}")
    expect(page.locator("#place-name")).to_have_value("<b>first</b> (copy)")
    body = json.loads(page.locator("#same-body").inner_text() or page.locator("#same-body").text_content())
    assert body == {"stage": "pretrain", "name": "<b>first</b> (copy)",
                    "config": {"preset": "tiny-cpu", "max_steps": 3, "seed": 7}}
    page.locator("[data-field=seed] [data-reset]").evaluate("button => button.click()")
    settle(page)
    page.reload()
    assert page.locator("#option-seed").input_value() == "", "what was reset stays so in a copy's address"
