"""A teacher writes a dataset from the page: a real small server answers, its key is given once and seen by nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import Problems, axe
from tests.teacher_rig import Server, completion

KEY = "sk-a-secret-of-this-test"
READY_WITHIN_MS = 60_000


@pytest.fixture
def server() -> Iterator[Server]:
    def reply(body: dict, count: int) -> tuple:
        if body["messages"][-1]["content"].endswith("third?"):
            return completion("an answer that is cut", "length")
        return completion(f"<b>{body['messages'][-1]['content']}</b>", reasoning_content="Well.")

    running = Server(reply)
    yield running
    running.shutdown()
    running.server_close()


def test_a_teacher_is_asked_from_the_page(page: Page, problems: Problems, server: Server) -> None:
    page.goto("/datasets?add=1")
    with page.expect_response("**/api/v1/datasets"):
        page.locator("#upload-file").set_input_files({
            "name": "asked.txt", "mimeType": "text/plain", "buffer": b"the first?\n\nthe second?\n\nthe third?\n"})
        page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("asked.txt is ready:")).to_be_visible(timeout=READY_WITHIN_MS)
    page.goto("/datasets?add=1")
    card = page.locator("dataset-teacher")
    expect(card.get_by_role("group", name="Languages of the questions")).to_be_visible()
    card.get_by_text("More", exact=True).click()
    card.get_by_label("Minutes of training").fill("")  # asked for with questions of the starter corpus alone
    card.get_by_label("Questions", exact=True).select_option(label="asked.txt · 3 rows")
    expect(card.get_by_role("group", name="Languages of the questions")).to_be_hidden()
    expect(card.get_by_label("A model of yours")).to_be_disabled()  # nothing has been trained here
    assert not axe(page), "\n".join(axe(page))

    ask = card.get_by_role("button", name="Ask the teacher")
    ask.click()
    expect(card.get_by_text("Give the address of the server.")).to_be_visible()
    expect(card.get_by_text("Name a model that the server has.")).to_be_visible()
    card.get_by_label("Address").fill("http://169.254.169.254/v1")
    card.get_by_label("Model").last.fill("small")
    problems.allow("status of 422")
    ask.click()
    expect(card.get_by_text("leads to 169.254.169.254, where no teacher may be.")).to_be_visible()
    expect(card.get_by_label("Address")).to_be_focused()

    card.get_by_label("Address").fill(server.url)
    card.get_by_label("Key").fill(KEY)
    card.get_by_label("Temperature").fill("9")
    ask.click()
    expect(card.get_by_label("Temperature")).to_be_focused()
    expect(card.get_by_label("Key")).to_have_value(KEY)  # a refusal asks for nothing twice
    card.get_by_label("Temperature").fill("")
    ask.click()
    expect(card.get_by_text("asked.txt answered by small is ready: 2 rows.")).to_be_visible(timeout=READY_WITHIN_MS)
    expect(card.get_by_text("1 question was left out: 1 cut off by max_tokens.")).to_be_visible()
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in page.content() and page.locator("#teacher-key").input_value() == ""
    card.get_by_role("link", name="Look at it").click()
    expect(page.get_by_text("<b>the second?</b>")).to_be_visible()
    expect(page.get_by_text("Answers of small to the questions of asked.txt")).to_be_visible()
    expect(page.get_by_text("Well.").first).to_be_visible()


def test_what_is_sent_before_the_scripts_are_here_stays_in_the_form(page: Page, problems: Problems) -> None:
    """A form sends itself to its own page otherwise: what was typed would be lost, and a key stand in the address."""
    problems.allow("ERR_FAILED")
    page.route("**/*.js", lambda route: route.abort())
    page.goto("/datasets?add=1")
    key = page.get_by_label("Key")
    key.fill(KEY)
    key.press("Enter")
    page.get_by_role("button", name="Ask the teacher").click()
    page.wait_for_timeout(100)
    assert page.url.endswith("/datasets?add=1")
    expect(key).to_have_value(KEY)
    for path in ("/start", "/pipelines/new", "/runs/new"):
        page.goto(path)
        for form in page.locator("main form").all():
            assert form.get_attribute("method") == "dialog", path
