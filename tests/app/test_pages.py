"""Pages: hostile text stays text, nothing inline that the Content-Security-Policy would stop, all of it served here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from app.rendering import STATIC, environment
from tests import database_rig
from tests.app.conftest import Api
from tests.app.test_runs import new_run

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(environment.list_templates())
SCRIPTS = sorted((ROOT / "static" / "js").rglob("*.js"))
HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; alert(1); '", "javascript:alert(1)",
           "{{ 7 * 7 }}", "{% raw %}", "</td></table><h1>mine</h1>", "&lt;b&gt;", "\u202egnp.exe", "<!--"]


class Reader(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def is_paper(tag: str, attributes: dict) -> bool:
    """A paper is a link that nobody follows by himself, and that tells it nothing of this studio."""
    return (tag == "a" and attributes.get("rel") == "noreferrer"
            and re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", attributes["href"]) is not None)


def assert_clean(html: str) -> Reader:
    """No inline script or style, no event attribute, nothing from elsewhere."""
    page = read(html)
    for tag, attributes in page.tags:
        assert tag not in ("style", "iframe", "object", "embed", "base"), tag
        assert not [a for a in attributes if a.startswith("on") or a == "style" or a.startswith("hx-on")], attributes
        if tag == "script":
            assert attributes.get("src", "").startswith("/static/"), attributes
        for name in ("href", "src", "action", "formaction"):
            if name in attributes and not is_paper(tag, attributes):
                assert re.match(r"^(/(?!/)|#|\?)", attributes[name]), attributes[name]
                if attributes[name].startswith("/static/"):
                    assert (STATIC / attributes[name].removeprefix("/static/")).is_file()
    return page


def routes_of_pages(app: Any) -> Iterator[str]:
    """Every address that a browser can be sent to; those of one thing have its id in braces."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            hidden = not route.include_in_schema and "GET" in route.methods
            if hidden and route.path != "/favicon.ico" and not route.path.startswith("/v1/"):
                yield route.path
        elif hasattr(route, "original_router"):  # FastAPI keeps an included router as one route
            yield from routes_of_pages(route.original_router)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_hold_nothing_inline(name: str) -> None:
    source = environment.loader.get_source(environment, name)[0]
    assert not re.search(r"\bstyle\s*=|\son[a-z]+\s*=|<style|javascript:|\|\s*safe\b|autoescape|Markup", source)
    assert all(re.search(r"\bsrc=", tag) for tag in re.findall(r"<script\b[^>]*>", source))
    assert len(source.splitlines()) <= 150


def test_every_template_is_looked_at() -> None:
    assert set(TEMPLATES) == {str(p.relative_to(ROOT / "templates")) for p in (ROOT / "templates").rglob("*.html")}
    assert environment.autoescape is True or all(environment.autoescape(name) for name in [*TEMPLATES, None])


@pytest.mark.parametrize("path", SCRIPTS, ids=[p.name for p in SCRIPTS])
def test_scripts_hold_to_the_policy_too(path: Path) -> None:
    """Text goes in as text; nothing is kept in the browser; one behaviour per file."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "localStorage",
                      "sessionStorage", "eval(", "new Function", 'setAttribute("style"'):
        assert forbidden not in code, forbidden
    if path.parent.name == "elements":
        assert len(path.read_text().splitlines()) <= 250


def test_scripts_that_pages_name_exist() -> None:
    for name in TEMPLATES:
        source = environment.loader.get_source(environment, name)[0]
        for wanted in re.findall(r"set page_scripts = \[([^\]]*)\]", source):
            for script in re.findall(r'"([^"]+)"', wanted):
                assert (STATIC / "js" / script).is_file(), f"{name} names {script}"


def test_hostile_names_are_text(api: Api) -> None:
    for name in HOSTILE:
        new_run(api, name=name, notes=name, tags=[name[:50]])
    database_rig.add_host("<b>host</b>")
    browser = api.browser()
    runs = assert_clean(browser.get("/runs").text)
    system = assert_clean(browser.get("/system").text)
    for page in (runs, system):
        text = "".join(page.text)
        for name in HOSTILE:
            assert name in text
        assert sum(t == "h1" for t, _ in page.tags) == 1
        assert {a["src"] for t, a in page.tags if t == "img"} == {"/static/favicon.svg"}
    assert "<b>host</b>" in "".join(system.text)
    for run in api.get("/runs").json()["items"]:
        assert run["name"] in HOSTILE
        page = assert_clean(browser.get(f"/runs/{run['id']}").text)
        assert run["name"] in "".join(page.text)


def test_every_page_is_clean(api: Api) -> None:
    """Every address without an id, whatever features there are."""
    browser = api.browser()
    paths = [path for path in routes_of_pages(api.app) if "{" not in path]
    assert {"/", "/login", "/runs", "/checkpoints", "/system", "/api/docs", "/patterns"} <= set(paths)
    for path in [*paths, "/nowhere/<script>alert(1)</script>", "/?token=%3Cscript%3E"]:
        answer = browser.get(path, headers={"Accept": "text/html"})
        assert answer.status_code < 500 and answer.headers["content-type"].startswith("text/html"), path
        page = assert_clean(answer.text)
        assert "<script>alert" not in answer.text
        assert sum(t == "h1" for t, _ in page.tags) == 1, path
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids)), (path, sorted(i for i in ids if ids.count(i) > 1))
        for _, attributes in page.tags:  # what points at something of the page points at something that is there
            for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
                assert set(attributes.get(name, "").split()) <= set(ids), (path, attributes)


def test_every_page_needs_a_login(api: Api) -> None:
    for path in routes_of_pages(api.app):
        answer = api.anonymous().get(re.sub(r"\{\w+\}", "x", path), headers={"Accept": "text/html"})
        assert answer.status_code == (200 if path == "/login" else 401), path


def test_pages_name_their_twin(api: Api) -> None:
    browser = api.browser()
    new_run(api)
    for path in ("/runs", "/checkpoints", "/exports", "/system", "/api/docs", "/datasets"):
        page = read(browser.get(path).text)
        twins = [a["href"] for t, a in page.tags if t == "link" and a.get("rel") == "alternate"]
        assert len(twins) == 1 and browser.get(twins[0]).headers["content-type"] == "application/json", path


def test_static_files_may_be_kept_and_answers_may_not(api: Api) -> None:
    assert "cache-control" not in api.anonymous().get("/static/css/app.css").headers
    assert api.anonymous().get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert api.browser().get("/runs").headers["cache-control"] == "no-store"


def test_signs_of_life(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.anonymous().get("/healthz").json() == {"status": "ok"}
    new_run(api)
    database_rig.add_host('quote"host')
    text = api.http.get("/metrics").text
    assert 'studio_runs{state="queued"} 1' in text and 'studio_host_up{host="quote\\"host"} 1' in text
    assert "studio_disk_free_bytes " in text
    system = api.get("/system").json()
    assert system["hosts"][0]["is_alive"] and system["runs"]["queued"] == 1 and system["broker"] is False
    assert system["database"] in ("sqlite", "postgresql") and system["installation"] == "installation-1"
