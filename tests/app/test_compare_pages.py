"""Pages that compare: who stands beside whom, the way of a run, votes; hostile text that stays text."""

from __future__ import annotations

import json
from pathlib import Path

from app.chat import travel
from app.core.db import transaction
from app.core.models import Checkpoint, Run
from tests.app.conftest import Api, statements
from tests.app.test_chat_pages import HTML, add_checkpoint, manifest, show
from tests.app.test_pages import HOSTILE, Reader
from tests.app.test_runs import new_run
from tests.app.test_votes import answer, body, vote


def view_of(page: Reader) -> dict:
    return json.loads(next(a["data-view"] for tag, a in page.tags if tag in ("compare-page", "travel-page")))


def columns(page: Reader) -> list[str]:
    """As an address names them."""
    return ["+".join(filter(None, (c["model"], c["adapter"]))) for c in view_of(page)["columns"]]


def said(page: Reader) -> str:
    return " ".join(" ".join(page.text).split())


def test_without_a_model_every_page_leads_to_the_first_one(api: Api) -> None:
    browser = api.browser()
    for path in ("/chat/compare", "/chat/travel"):
        assert "/start" in [a.get("href") for _, a in show(browser, path).tags if a.get("class") == "button primary"]
    assert "You have not voted yet" in said(show(browser, "/chat/votes"))
    assert "not there (any more)" in said(show(browser, "/chat/travel?run=nothing"))


def test_two_to_four_stand_side_by_side(api: Api) -> None:
    browser, base, tuned = api.browser(), new_run(api, name="Base"), new_run(api, name="Tuned")
    early = add_checkpoint(base, stage="pretrain", step=10, age_s=50)
    assert columns(show(browser, "/chat/compare")) == [early, early], "one alone answers twice"
    late = add_checkpoint(base, stage="pretrain", step=20, age_s=40)
    taught = add_checkpoint(tuned, step=30, age_s=30)
    page = show(browser, "/chat/compare")
    assert columns(page) == [taught, late] and not view_of(page)["is_blind"]
    assert "Tuned, 30" in said(page) and "Base, 20" in said(page)
    assert columns(show(browser, f"/chat/compare?checkpoint={late}")) == [late, early], "the one before it"
    many = "&".join(f"checkpoint={id}" for id in (early, late, taught, late, early))
    assert columns(show(browser, f"/chat/compare?{many}")) == [early, late, taught, late]
    page = show(browser, f"/chat/compare?checkpoint={taught}&checkpoint=gone&checkpoint=../x&checkpoint=%00")
    assert columns(page) == [taught, late] and "no longer there" in said(page)
    assert browser.get("/chat/compare?" + "&".join(["checkpoint=a"] * 21), headers=HTML).status_code == 422


def test_a_run_that_stands_on_another_is_compared_with_it(api: Api) -> None:
    base, tuned = new_run(api, name="Base"), new_run(api, name="Tuned")
    start = add_checkpoint(base, stage="pretrain", step=10, age_s=90)
    add_checkpoint(base, stage="pretrain", step=20, age_s=80)
    with transaction() as session:
        session.get(Run, tuned["id"]).base_checkpoint_id = start
    taught = add_checkpoint(tuned, step=5)
    assert columns(show(api.browser(), "/chat/compare")) == [taught, start]


def test_an_adapter_lies_over_a_column(api: Api, tmp_path: Path) -> None:
    browser, runs = api.browser(), [new_run(api, name=name) for name in ("Base", "Mine", "Wide")]
    base = add_checkpoint(runs[0], stage="pretrain", path=manifest(tmp_path / "base"))
    mine = add_checkpoint(runs[1], stage="lora", path=manifest(tmp_path / "mine", adapter=True))
    wide = add_checkpoint(runs[2], stage="lora", path=manifest(tmp_path / "wide", layers=3, adapter=True))
    for plus in ("%2B", "+", "%20"):
        page = show(browser, f"/chat/compare?checkpoint={base}{plus}{mine}&checkpoint={base}")
        assert columns(page) == [f"{base}+{mine}", base]
        assert "Base, 3 + Mine, 3" in said(page) and "no longer there" not in said(page)
    page = show(browser, f"/chat/compare?checkpoint={base}&checkpoint={base}%2B{wide}")
    assert columns(page) == [base, base] and "does not fit" in said(page)


def test_a_blind_page_names_nobody(api: Api) -> None:
    browser, run = api.browser(), new_run(api, name="Tuned")
    one, two = add_checkpoint(run, step=1), add_checkpoint(run, step=2)
    page = show(browser, f"/chat/compare?checkpoint={one}&checkpoint={two}&blind=1")
    assert view_of(page)["is_blind"] and said(page).count("Hidden until the vote") == 2 and "Tuned, 2" not in said(page)
    page = show(browser, f"/chat/compare?checkpoint={one}&checkpoint={two}&checkpoint={one}&blind=1")
    assert not view_of(page)["is_blind"], "a vote is between two"


def way(api: Api, run: dict) -> dict:
    answer = api.get(f"/runs/{run['id']}/way")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_way_of_a_run_begins_where_its_model_did(api: Api) -> None:
    base, tuned = new_run(api, name="Base"), new_run(api, name="Tuned")
    first = [add_checkpoint(base, stage="pretrain", step=step) for step in (10, 20, 30)]
    with transaction() as session:
        session.get(Run, tuned["id"]).base_checkpoint_id = first[1]
        session.get(Checkpoint, first[0]).eval_loss = float("nan")
    add_checkpoint(tuned, step=4, state="deleted")
    add_checkpoint(tuned, step=9), add_checkpoint(tuned, step=5, attempt=1)
    second = [add_checkpoint(tuned, step=step, attempt=2) for step in (6, 8)]
    seen = way(api, tuned)
    assert [p["id"] for p in seen["points"][:2]] == first[:2], "not what came behind its beginning"
    assert [(p["step"], p["is_own"], p["continues_text"]) for p in seen["points"]] == [
        (10, False, True), (20, False, True), (5, True, False), (6, True, False), (8, True, False)]
    assert [p["id"] for p in seen["points"][3:]] == second, "a later attempt supersedes what stood at its steps"
    assert (seen["gone"], seen["points"][0]["eval_loss"], seen["run_name"]) == (1, None, "Tuned")
    assert api.get("/runs/nothing/way").status_code == 404
    page = show(api.browser(), f"/chat/travel?run={tuned['id']}")
    assert view_of(page) == seen and "1 checkpoint on this way was deleted" in said(page)
    slider = next(a for _, a in page.tags if a.get("type") == "range")
    assert (slider["max"], slider["value"]) == ("4", "4")


def test_a_way_has_an_end_and_bounds(api: Api, monkeypatch) -> None:
    one, two = new_run(api, name="One"), new_run(api, name="Two")
    ids = [add_checkpoint(run, step=step) for run in (one, two) for step in range(1, 8)]
    with transaction() as session:  # each from the other: no database forbids it
        session.get(Run, one["id"]).base_checkpoint_id = ids[-1]
        session.get(Run, two["id"]).base_checkpoint_id = ids[6]
    assert len(way(api, one)["points"]) == 14
    monkeypatch.setattr(travel.thinned, "__defaults__", (5,))
    seen = way(api, one)
    assert len(seen["points"]) == 5 and seen["thinned"] == 9
    assert (seen["points"][0]["id"], seen["points"][-1]["id"]) == (ids[7], ids[6])
    assert statements(api, f"/runs/{one['id']}/way") < 14


def test_votes_are_shown_with_how_sure_they_are(api: Api) -> None:
    run = new_run(api, name="Tuned")
    one, two = sorted([add_checkpoint(run, step=1), add_checkpoint(run, step=2)])
    made = vote(api, answers=[answer("Yes.", one), answer("No.", two)])
    page = show(api.browser(), "/chat/votes")
    assert "too few votes to tell" in said(page) and "Is it raining?" in said(page)
    assert [a["data-base"] for tag, a in page.tags if tag == "compare-votes"] == [one]
    assert [a["data-delete"] for _, a in page.tags if "data-delete" in a] == [made["id"]]
    for _ in range(5):
        vote(api, answers=[answer("Yes.", one), answer("No.", two)])
    page = show(api.browser(), "/chat/votes")
    assert "The first one is better." in said(page)
    assert "100 % of 6 won; the true share lies between 61 % and 100 % with 95 % confidence." in said(page)
    assert "No vote fits" in said(show(api.browser(), "/chat/votes?verdict=bad"))
    assert "Is it raining?" in said(show(api.browser(), "/chat/votes?verdict=nonsense"))


def test_hostile_words_stay_words(api: Api) -> None:
    run = new_run(api, name=HOSTILE[0])
    checkpoint = add_checkpoint(run)
    for text in HOSTILE:
        made = api.post("/votes", body(first=text, second=f"{text} too") | {
            "messages": [{"role": "system", "content": text}, {"role": "user", "content": text}]})
        assert made.status_code == 201
    vote(api, answers=[answer("Yes.", checkpoint), answer("No.", checkpoint)])
    browser = api.browser()
    page = show(browser, "/chat/votes")
    for text in HOSTILE:
        assert text in "".join(page.text)
    for path in ("/chat/compare", f"/chat/travel?run={run['id']}"):
        assert HOSTILE[0] in "".join(show(browser, path).text)
    viewer = show(api.as_role("looker", "viewer"), "/chat/votes")
    assert not [a for _, a in viewer.tags if "data-delete" in a], "another's votes"
