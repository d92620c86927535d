"""Chromium on the pages of a running studio: ``page`` is logged in, and fails its test where anything goes wrong in it.

Without a browser the tests are skipped, loudly; ``STUDIO_TEST_REQUIRE=1`` makes that a failure.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import assets

PACKAGES = ("playwright", "fastapi", "sqlalchemy", "celery", "redis", "httpx2", "psutil")
HERE = Path(__file__).parent

if not os.environ.get("STUDIO_TEST_REQUIRE") and any(importlib.util.find_spec(name) is None for name in PACKAGES):
    collect_ignore_glob = ["test_*.py"]
else:
    from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

    from tests.browser.pages import ROOT, Problems, give_up, launch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium per module. Not per session: while Playwright runs, no other test could run an event loop."""
    if not assets.is_built(ROOT):
        give_up("static/dist is not built. Run 'node static/build.mjs', or start ./studio without STUDIO_PYTHON.")
    with sync_playwright() as playwright:
        running = launch(playwright)
        try:
            yield running
        finally:
            running.close()


@pytest.fixture
def context(browser: Browser, studio) -> Iterator[BrowserContext]:
    """A browser profile that nobody is logged in with."""
    with browser.new_context(base_url=studio.url, locale="en-GB", viewport={"width": 1280, "height": 800}) as made:
        made.set_default_timeout(15_000)
        yield made


@pytest.fixture
def problems(context: BrowserContext, studio) -> Iterator[Problems]:
    """What goes wrong in the pages of ``context``; fails the test at its end unless allowed."""
    seen = Problems(context, studio.url)
    yield seen
    if seen.unexpected:
        pytest.fail("in the page:\n" + "\n".join(seen.unexpected), pytrace=False)


@pytest.fixture
def page(context: BrowserContext, problems: Problems, studio) -> Iterator[Page]:
    """A page of the running studio, logged in through the address that ``./studio up`` printed."""
    opened = context.new_page()
    opened.goto(f"/?token={studio.login_token}")
    opened.wait_for_url(lambda url: "token=" not in url)
    yield opened
    opened.close()  # before the problems are counted, so that none comes late
