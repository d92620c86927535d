"""Pages: hostile text stays text, nothing inline that the Content-Security-Policy would stop, all of it served here."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from app.web import STATIC, environment
from tests import database_rig
from tests.app.conftest import Api
from tests.app.test_runs import new_run

TEMPLATES = sorted(p.name for p in (Path(__file__).resolve().parents[2] / "templates").glob("*.html"))
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


def assert_clean(html: str) -> Reader:
    """No inline script or style, no event attribute, nothing from elsewhere."""
    page = read(html)
    for tag, attributes in page.tags:
        assert tag not in ("style", "iframe", "object", "embed", "base"), tag
        assert not [a for a in attributes if a.startswith("on") or a == "style" or a.startswith("hx-on")], attributes
        if tag == "script":
            assert attributes.get("src", "").startswith("/static/"), attributes
        for name in ("href", "src", "action"):
            if name in attributes:
                assert re.match(r"^(/(?!/)|#)", attributes[name]), attributes[name]
                if attributes[name].startswith("/static/"):
                    assert (STATIC / attributes[name].removeprefix("/static/")).is_file()
    return page


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_hold_nothing_inline(name: str) -> None:
    source = environment.loader.get_source(environment, name)[0]
    assert not re.search(r"\bstyle=|\son[a-z]+=|<style|javascript:|\|\s*safe|autoescape false", source)
    assert len(source.splitlines()) <= 150


def test_hostile_names_are_text(api: Api) -> None:
    for name in HOSTILE:
        new_run(api, name=name, notes=name, tags=[name[:50]])
    database_rig.add_host("<b>host</b>")
    html = api.browser().get("/").text
    page = assert_clean(html)
    text = "".join(page.text)
    for name in HOSTILE:
        assert name in text
    assert "<b>host</b>" in text and "49" not in text
    assert not [t for t, _ in page.tags if t == "img"] and sum(t == "h1" for t, _ in page.tags) == 1
    for run in api.get("/runs").json()["items"]:
        assert run["name"] in HOSTILE


def test_every_page_is_clean(api: Api) -> None:
    browser = api.browser()
    for path in ("/", "/api/docs", "/login", "/nowhere/<script>alert(1)</script>", "/?token=%3Cscript%3E"):
        answer = browser.get(path, headers={"Accept": "text/html"})
        assert answer.headers["content-type"].startswith("text/html"), path
        assert_clean(answer.text)
        assert "<script>alert" not in answer.text


def test_the_api_documents_itself(api: Api) -> None:
    html = api.browser().get("/api/docs").text
    schema = api.get("/openapi.json").json()
    page = assert_clean(html)
    text = "".join(page.text)
    for path, methods in schema["paths"].items():
        for method, said in methods.items():
            assert f"{method.upper()} {path}" in text
            assert said.get("tags") and (said.get("description") or said.get("summary")), path
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")} <= anchors
    runs = schema["paths"]["/api/v1/runs"]["post"]
    assert "RunCreate" in str(runs["requestBody"]) and "Idempotency-Key" in str(runs["parameters"])


def test_static_files_may_be_kept_and_answers_may_not(api: Api) -> None:
    assert "cache-control" not in api.anonymous().get("/static/css/studio.css").headers
    assert api.anonymous().get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert api.browser().get("/").headers["cache-control"] == "no-store"


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
