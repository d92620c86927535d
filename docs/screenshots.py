"""Makes the pictures of the README from the running product: ``.venv/bin/python docs/screenshots.py [--minutes 1]``.

Starts a studio of its own, trains the first model through the wizard as a user would, and takes pictures on the way.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright  # noqa: E402

from tests.browser.pages import launch  # noqa: E402
from tests.integration.studio import RunningStudio  # noqa: E402

PICTURES = ROOT / "docs" / "images"
QUESTIONS = ("Who are you?", "Where does Anna live?", "What is Tom's job?")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", choices=("1", "5"), default="1", help="which first model the wizard trains")
    args = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-") as directory, sync_playwright() as playwright:
        studio = RunningStudio(Path(directory))
        studio.start()
        try:
            browser = launch(playwright)
            context = browser.new_context(base_url=studio.url, viewport={"width": 1200, "height": 760}, locale="en-GB")
            page = context.new_page()
            page.goto(f"/?token={studio.login_token}")
            page.wait_for_url("**/start")
            take(page, studio, args.minutes)
            browser.close()
        finally:
            studio.close()
    return 0


def take(page: Page, studio: RunningStudio, minutes: str) -> None:
    page.get_by_text("1 minute" if minutes == "1" else "5 minutes", exact=True).click()
    save(page, "wizard")
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/pipelines/*", timeout=60_000)
    pipeline = page.url.rpartition("/")[2]
    run = studio.client.wait(f"/pipelines/{pipeline}", lambda p: p["runs"] and (
        (p["runs"][0]["progress"]["step"] or 0) >= 0.6 * (p["runs"][0]["progress"]["total_steps"] or 1e9)),
        timeout_s=60 * float(minutes) + 120)["runs"][0]
    page.goto(f"/runs/{run['id']}")
    page.locator("sample-timeline dd").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    save(page, "run")
    page.goto(f"/pipelines/{pipeline}")
    page.get_by_role("heading", name="Your model is ready").wait_for(timeout=60_000 * float(minutes) + 120_000)
    page.get_by_role("link", name="Chat with it").click()
    for question in QUESTIONS:
        box = page.get_by_role("textbox", name="Your message")
        box.fill(question)
        box.press("Enter")
        page.get_by_role("button", name="Stop").wait_for(state="hidden", timeout=60_000)
        page.wait_for_timeout(700)
    save(page, "chat")


def save(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.screenshot(path=PICTURES / f"{name}.png")
    print(f"docs/images/{name}.png")


if __name__ == "__main__":
    sys.exit(main())
