"""What a stage does, in words that agree with the program: every source it names is there, and no other file is."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from app import source
from app.rendering import stage_word
from app.runs.explain import explain
from app.runs.form import OWN_GROUPS, stage_form
from minimind.config import STAGES
from tests.app.conftest import Api
from tests.app.test_new_run_page import Tree
from tests.app.test_pages import assert_clean
from tests.app.test_run_pages import text_of
from tests.app.test_runs import add_checkpoint, new_run

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = re.compile(r"[.!?](?=\s|$)")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_explained(stage: str) -> None:
    about = explain(stage)
    assert len(about.sentences) == 3 and all(len(SENTENCE.findall(s)) == 1 and s.endswith(".") for s in about.sentences)
    assert about.healthy.endswith(".") and about.spoken.endswith(".") and about.sketch.label.endswith(".")
    assert stage_word(stage) != stage, "a stage has a name"
    for place in about.places:
        assert place.name in source.definitions(place.path), place
    for line in about.sketch.lines:
        points = [tuple(map(float, point.split(","))) for point in line.points.split()]
        assert len(points) > 20 and all(0 <= x <= 360 and 0 <= y <= 170 for x, y in points), line.label
        assert all(a[0] < b[0] for a, b in zip(points, points[1:], strict=False))


@pytest.mark.parametrize("stage", STAGES)
def test_its_page_has_one_formula_a_curve_and_sources_that_answer(api: Api, stage: str) -> None:
    browser = api.browser()
    answer = browser.get(f"/stages/{stage}")
    assert answer.status_code == 200
    assert_clean(answer.text)
    page = Tree(answer.text).root
    (formula,) = page.all("math")
    assert formula.attributes["aria-label"] == explain(stage).spoken and formula.all("mi")
    assert [svg.attributes["aria-label"] for svg in page.all("svg", role="img")] == [explain(stage).sketch.label]
    links = [a.attributes["href"] for a in page.all("a") if a.attributes["href"].startswith("/source/")]
    assert len(links) == len(explain(stage).places)
    for link in links:
        path, _, line = link.partition("#")
        shown = browser.get(path)
        assert shown.status_code == 200 and f'id="{line}"' in shown.text, link
    assert page.all("a", href=f"/runs/new?stage={stage}")
    for name in (f.name for g in stage_form(stage).groups if g.name in OWN_GROUPS for f in g.fields):
        assert f"--{name}" in answer.text


def test_the_line_that_a_link_names_is_where_it_begins() -> None:
    text = (ROOT / "minimind/lora.py").read_text().splitlines()
    line = source.definitions("minimind/lora.py")["LoRALinear"]
    assert text[line - 1].startswith("class LoRALinear")


def test_every_file_of_the_core_is_shown_as_it_is(api: Api) -> None:
    assert set(source.files()) == {p.relative_to(ROOT).as_posix() for p in (ROOT / "minimind").rglob("*.py")}
    for path, file in source.files().items():
        lines = ["".join(piece.text for piece in pieces) for pieces in source.lines(path)]
        assert lines == file.read_text().splitlines(), path
    browser = api.browser()
    page = browser.get("/source/minimind/lora.py").text
    assert_clean(page)
    body = page.partition('<pre class="source">')[2].partition("</pre>")[0]
    shown = html.unescape(re.sub(r"<[^>]+>", "", body))
    assert shown.strip("\n") == (ROOT / "minimind/lora.py").read_text().strip("\n")
    listed = browser.get("/source").text
    assert all(f"/source/{path}" in listed for path in source.files())


@pytest.mark.parametrize("path", [
    "minimind/../app/main.py", "minimind/..%2fapp%2fmain.py", "%2e%2e/etc/passwd", "/etc/passwd", "etc/passwd",
    "app/main.py", "minimind", "minimind/", "minimind/lora.pyc", "minimind/lora.py/", "minimind//lora.py",
    "%2e/minimind/lora.py", "minimind/lora.py%00", "minimind/LORA.py", "minimind%5clora.py", "studio", ".env",
    "%F0%9F"])
def test_no_other_file_is_shown(api: Api, path: str) -> None:
    for client in (api.http, api.browser()):
        answer = client.get(f"/source/{path}", follow_redirects=False)
        assert answer.status_code == 404, (path, answer.text[:200])
        assert "root:" not in answer.text and "import " not in answer.text


def test_who_is_not_logged_in_sees_none_of_it(api: Api) -> None:
    for path in ("/stages", "/stages/dpo", "/source", "/source/minimind/lora.py"):
        assert api.anonymous().get(path).status_code == 401, path
        assert api.as_role(f"guest{path.replace('/', '-').replace('.', '')}", "viewer").get(path).status_code == 200
    assert "/runs/new" not in api.as_role("watcher", "viewer").get("/stages/dpo").text
    assert api.http.get("/stages/rlhf").status_code == 404


def test_it_is_shown_where_a_run_is_made_and_watched(api: Api) -> None:
    browser = api.browser()
    for stage in STAGES:
        about = explain(stage)
        for address in (f"/runs/new?stage={stage}", f"/runs/new?stage={stage}&part=stage"):
            new = Tree(browser.get(address).text).root
            (part,) = new.all("section", data_stage_part="about")
            (details,) = part.all("details")
            assert "open" in details.attributes and about.sentences[0] in details.text
            assert details.all("a", href=f"/stages/{stage}") and details.all("math")
    run = new_run(api)
    page = browser.get(f"/runs/{run['id']}").text
    (details,) = Tree(page).root.all("details", data_key="about")
    assert "open" not in details.attributes and explain("pretrain").sentences[0] in details.text
    assert "/stages" in browser.get("/api/docs").text
    listed = text_of(browser.get("/stages").text)
    assert all(stage_word(stage) in listed for stage in STAGES)


def test_a_checkpoint_can_go_on_in_every_stage(api: Api, tmp_path: Path) -> None:
    run = new_run(api)
    id = add_checkpoint(tmp_path, run["id"])
    browser = api.browser()
    for address in (f"/runs/{run['id']}", "/checkpoints"):
        menu = Tree(browser.get(address).text).root.all("div", id=f"train-on-{id}")[0]
        links = {a.attributes["href"] for a in menu.all("a")}
        assert links == {f"/runs/new?stage={s}&base_checkpoint_id={id}" for s in STAGES if s != "tokenizer"} | {
            f"/runs/new?stage=distill&teacher_checkpoint_id={id}"}
        for link in links:
            assert f'value="{id}" selected' in browser.get(link).text, link
