"""The printed address opens a page that works."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.pages import Problems, axe


def test_the_printed_address_opens_the_studio(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert "token=" not in page.url
    assert not axe(page), "\n".join(axe(page))


def test_without_a_login_there_is_a_door(context: BrowserContext, problems: Problems) -> None:
    problems.allow("status of 401")
    stranger = context.new_page()
    stranger.goto("/runs")
    expect(stranger.get_by_role("textbox", name="Password")).to_be_visible()
    assert not axe(stranger), "\n".join(axe(stranger))


def test_what_goes_wrong_in_a_page_is_noticed(page: Page, problems: Problems) -> None:
    """The fixture itself: an error that nobody catches, a breach of the policy, a foreign request."""
    with page.expect_event("pageerror"):
        page.evaluate("setTimeout(() => { throw new Error('provoked') }); 0")
    with page.expect_event("console", lambda message: "Content Security Policy" in message.text):
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">inline</p>'); 0")
    page.goto("data:text/html,<img src='http://127.0.0.1:9/x.png'>")
    for text in ("uncaught: Error: provoked", "Content Security Policy", "foreign request: http://127.0.0.1:9/"):
        assert any(text in found for found in problems.unexpected), (text, problems.found)
    problems.allow("provoked|Content Security Policy|127.0.0.1:9")
