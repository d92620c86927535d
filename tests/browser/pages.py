"""What the browser tests share: finding Chromium, noticing what goes wrong inside a page, asking axe."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Playwright, Request, WebSocket

ROOT = Path(__file__).resolve().parents[2]
#: programs on PATH that are Chromium; after them comes Playwright's own download
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")


def give_up(why: str) -> None:
    """Skip, loudly. (Where nothing may be left out, ``tests/conftest.py`` makes a failure of it.)"""
    pytest.skip(f"THE PAGES WERE NOT TESTED IN A BROWSER: {why}")


def launch(playwright: Playwright) -> Browser:
    """Chromium without a window."""
    program = next((path for path in map(shutil.which, PROGRAMS) if path), None)
    # As root its sandbox refuses to start; a small /dev/shm (containers) would crash its pages.
    arguments = [*(["--no-sandbox"] if os.geteuid() == 0 else []), "--disable-dev-shm-usage"]
    try:
        return playwright.chromium.launch(executable_path=program, args=arguments)
    except Error as error:
        if program is None:
            give_up("there is no Chromium. Install one ('apt install chromium', or 'python -m playwright install "
                    "--with-deps chromium').")
        pytest.fail(f"{program} does not start: {error.message.splitlines()[0]}", pytrace=False)


class Problems:
    """Everything that went wrong in the pages of one context.

    Uncaught errors, console errors (those of the Content-Security-Policy among them), and requests to any host but
    the studio's. A test that provokes some lists them first: ``problems.allow("status of 404")``.
    """

    def __init__(self, context: BrowserContext, url: str):
        self.found: list[str] = []
        self._allowed: list[str] = []
        self._host = urlsplit(url).netloc
        context.on("weberror", lambda event: self._note(f"uncaught: {event.error.stack or event.error.message}"))
        context.on("console", self._on_console)
        context.on("request", self._on_request)
        context.on("page", lambda page: page.on("websocket", self._on_request))

    def allow(self, pattern: str) -> None:
        """Problems in whose text this regular expression is found are expected."""
        self._allowed.append(pattern)

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.found if not any(re.search(pattern, text) for pattern in self._allowed)]

    def _note(self, text: str) -> None:
        self.found.append(text)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" or "Content Security Policy" in message.text:
            place = message.location
            self._note(f"console: {message.text} ({place['url']}:{place['lineNumber'] + 1})")

    def _on_request(self, request: Request | WebSocket) -> None:
        asked = urlsplit(request.url)
        if asked.scheme not in ("data", "blob") and asked.netloc != self._host:
            self._note(f"foreign request: {request.url}")


def axe(page: Page, rules: list[str] | None = None) -> list[str]:
    """Serious and critical violations that axe finds in the page (of all its rules, or of ``rules``), as text; empty
    where there are none."""
    if not AXE.is_file():
        give_up("axe-core is not in node_modules. Run 'npm ci --ignore-scripts'.")
    page.evaluate(AXE.read_text())  # the policy of the pages forbids a script tag, but not the debugger
    only = {"runOnly": rules} if rules else {}
    result = page.evaluate("(only) => axe.run(document, { resultTypes: ['violations'], ...only })", only)
    return [f"{found['impact']} {found['id']}: {found['help']}\n" + "\n".join(
        f"    {' '.join(map(str, node['target']))}  {node['html'][:160]}\n"
        f"        {node['failureSummary'].replace(chr(10), chr(10) + '        ')}" for node in found["nodes"])
        for found in result["violations"] if found["impact"] in SERIOUS]
