"""A conversation that is edited, and its tokens beside it: coloured as the API says, live, by keyboard, on a phone."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from app.datasets.format_check import EXAMPLE
from tests.browser.pages import Problems, axe
from tests.integration.studio import RunningStudio


def graded(page: Page) -> list[str]:
    return page.locator("token-strip .token[data-target]").all_inner_texts()


def test_tokens_are_coloured_while_somebody_types(page: Page, studio: RunningStudio, problems: Problems) -> None:
    problems.allow("status of 422")
    page.goto("/chat-format?with=")
    answer = studio.client.post("/chat_format", {"messages": EXAMPLE["messages"], "tools": EXAMPLE["tools"]})
    expect(page.locator("token-strip .token")).to_have_count(answer["num_tokens"])
    for token, chip in zip(answer["tokens"], page.locator("token-strip .token").all()[:300]):
        assert (chip.get_attribute("data-target") is not None) == token["is_target"]
        assert (chip.get_attribute("data-special") is not None) == token["is_special"]
    assert len(graded(page)) == answer["num_targets"]
    expect(page.get_by_role("status").filter(has_text="graded")).to_have_text(
        re.compile(rf"^{answer['num_tokens']} tokens, {answer['num_targets']} graded"))

    for _ in range(len(EXAMPLE["messages"]) - 2):  # the focus goes to the turn that took the place
        page.get_by_role("button", name="Remove turn 3").focus()
        page.keyboard.press("Enter")
    expect(page.get_by_label("Who speaks in turn 2")).to_be_focused()
    page.get_by_label("Tools that may be called").fill("")
    expect(page.locator("token-strip .token[data-target]")).to_have_count(0)
    page.get_by_role("button", name="Add a turn").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("Hi <|im_end|>")
    expect(page.locator("token-strip .token[data-target]")).to_have_count(len("Hi <|im_end|>") + 2)
    assert graded(page)[-2:] == ["<|im_end|>", "↵"], "what is typed is text, the end is a control token"
    expect(page.locator("token-strip .token[data-special]")).to_have_count(6)

    calls = page.locator("[data-turns] > li").nth(2).get_by_label("Calls tools, as a JSON list")
    calls.fill('[{"name": "x"')
    expect(page.get_by_role("alert").filter(has_text="tool_calls of message 3 is not a JSON list")).to_be_visible()
    assert len(graded(page)) == len("Hi <|im_end|>") + 2, "what was read before stays"
    assert not axe(page), "\n".join(axe(page))
    calls.fill("")
    expect(page.locator("[data-problem] .notice")).to_have_count(0)

    shown = page.locator("[data-text]")
    page.get_by_role("button", name="Thoughts first").click()
    expect(shown).to_have_text(re.compile(r"<\|im_start\|>assistant\n<think>\n$"))
    page.get_by_role("button", name="An answer").click()
    expect(shown).to_have_text(re.compile(r"<\|im_start\|>assistant\n$"))
    page.get_by_label("Who speaks in turn 3").select_option("tool")
    expect(shown).to_have_text(re.compile(r"<\|im_start\|>user\n<tool_response>\nHi"))
    expect(calls).to_be_hidden()
    page.get_by_role("button", name="Back to the example").click()
    expect(page.locator("[data-turns] > li")).to_have_count(len(EXAMPLE["messages"]))
    assert not axe(page), "\n".join(axe(page))
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
