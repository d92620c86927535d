"""Every page, wide and narrow, light and dark: nothing that axe calls serious, no sideways scrolling, one main
heading, no error; and everything that can be pressed is reached by Tab and shows that it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from app.main import create_app
from tests.app.test_pages import routes_of_pages
from tests.browser.pages import Problems, axe
from tests.integration.studio import RunningStudio

WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
#: Notes what a reader gets to by Tab, and whether anything about it, or about the box round it, looks different then.
WATCH_FOCUS = """() => {
  const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")];
  const groups = new Set();
  const wanted = all.filter((element) => {
    if (element.disabled || element.tabIndex < 0 || element.closest("[inert]")) return false;
    if (!element.checkVisibility({ checkVisibilityCSS: true })) return false;
    if (element.type !== "radio") return true;
    const isFirst = !groups.has(element.name);
    groups.add(element.name);  // one of a group is enough: arrows reach the others
    return isFirst;
  });
  const state = (window.focusWatch = { left: new Set(wanted), unseen: new Set() });
  const look = (element) => {
    const chain = [element, element.parentElement, element.parentElement?.parentElement].filter(Boolean);
    return chain.map((each) => {
      const { outline, boxShadow, borderColor, backgroundColor } = getComputedStyle(each);
      return [outline, boxShadow, borderColor, backgroundColor].join();
    }).join();
  };
  const focused = new Map();
  document.addEventListener("focusin", ({ target }) => {
    for (const element of [...state.left]) {
      if (element === target || (target.type === "radio" && element.name === target.name)) state.left.delete(element);
    }
    focused.set(target, look(target));
  });
  document.addEventListener("focusout", ({ target }) => setTimeout(() => {
    if (target.isConnected && look(target) === focused.get(target)) state.unseen.add(target);
  }));
  return wanted.length;
}"""
FOCUS_LEFT = """async () => {
  document.activeElement.blur();
  await new Promise((resolve) => setTimeout(resolve, 50));
  const name = (element) => element.outerHTML.slice(0, 120);
  const { left, unseen } = window.focusWatch;
  // what a live page has replaced meanwhile cannot be reached any more
  const isThere = (element) => element.isConnected && element.checkVisibility();
  return { left: [...left].filter(isThere).map(name), unseen: [...unseen].map(name) };
}"""


@pytest.fixture(scope="module")
def paths(studio: RunningStudio) -> list[str]:
    """Every page of the studio, with a run, its checkpoint, a dataset, a pipeline and a conversation to look at."""
    client = studio.client
    dataset = client.post("/datasets", {"name": "World", "source": {"kind": "starter", "minutes": 0.2}})
    run = client.post("/runs", {"stage": "pretrain", "name": "小模型 " + "x" * 60,
                                "config": {"preset": "tiny-cpu", "max_steps": 12, "max_minutes": 0.2}})
    client.wait_ready("datasets", dataset["id"])
    assert client.wait_run(run["id"], timeout_s=180)["state"] == "completed"
    pipeline = client.post("/pipelines", {"name": "Line", "stages": [
        {"stage": "pretrain", "config": {"preset": "tiny-cpu", "max_steps": 2, "max_minutes": 0.2}}]})
    client.post(f"/pipelines/{pipeline['id']}/cancel")
    checkpoint = client.get("/checkpoints")["items"][0]
    conversation = client.post("/conversations", {"checkpoint_id": checkpoint["id"]})
    ids = {"/runs/{id}": run["id"], "/datasets/{id}": dataset["id"], "/pipelines/{id}": pipeline["id"],
           "/chat/{id}": conversation["id"], "/stages/{name}": "dpo", "/source/{path:path}": "minimind/mlp.py"}
    routes = sorted(set(routes_of_pages(create_app(own_process=False))))
    return [re.sub(r"\{[\w:]+\}", ids[path] if "{" in path else "", path) for path in routes]


@pytest.fixture
def visitor(browser: Browser, studio: RunningStudio) -> Iterator[Page]:
    """Logged in, in a wide window of a browser that prefers light pages."""
    with browser.new_context(base_url=studio.url, locale="en-GB", color_scheme="light", viewport=WIDE) as context:
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.goto(f"/?token={studio.login_token}")
        page.wait_for_url(lambda url: "token=" not in url)
        yield page


def settle(page: Page, path: str) -> None:
    page.goto(path)
    page.wait_for_load_state("load")
    page.wait_for_timeout(250)  # elements fetch what they show


def flaws(page: Page, width: dict[str, int]) -> list[str]:
    page.set_viewport_size(width)
    page.wait_for_timeout(80)
    scroll, room, headings = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth,"
        " document.querySelectorAll('h1').length]")
    found = [] if scroll <= room else [f"scrolls sideways: {scroll} > {room}"]
    found += [] if headings == 1 else [f"{headings} main headings"]
    found += axe(page)
    if width == WIDE:
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(80)
        found += [f"dark: {flaw}" for flaw in axe(page, rules=["color-contrast"])]  # colours are all that changes
        page.emulate_media(color_scheme="light")
    return [f"{width['width']} px: {flaw}" for flaw in found]


def test_every_page_is_for_everybody(visitor: Page, studio: RunningStudio, paths: list[str]) -> None:
    problems = Problems(visitor.context, studio.url)
    found = {}
    for path in paths:
        settle(visitor, path)
        found[path] = [flaw for width in (WIDE, NARROW) for flaw in flaws(visitor, width)]
        visitor.set_viewport_size(WIDE)
        found[path] += problems.unexpected
        problems.found.clear()
    assert not any(found.values()), "\n".join(f"{path}: {flaw}" for path, all in found.items() for flaw in all)


@pytest.mark.slow  # half a minute on every page's every element
def test_everything_is_reached_by_tab(visitor: Page, paths: list[str]) -> None:
    found = []
    for path in paths:
        settle(visitor, path)
        for _ in range(visitor.evaluate(WATCH_FOCUS) + 40):
            visitor.keyboard.press("Tab")
            if visitor.evaluate("window.focusWatch.left.size") == 0:
                break
        seen = visitor.evaluate(FOCUS_LEFT)
        found += [f"{path}: never reached: {name}" for name in seen["left"]]
        found += [f"{path}: focus is not seen: {name}" for name in dict.fromkeys(seen["unseen"])]
    assert not found, "\n".join(found)
