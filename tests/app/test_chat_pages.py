"""The chat page: who is offered, who is chosen, whose conversations, and hostile text that stays text."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.testclient import TestClient

from app.checkpoints.adapters import SHAPE
from app.core.db import now, transaction
from app.core.models import Checkpoint, Run
from minimind.manifest import Manifest
from tests.app.conftest import Api
from tests.app.test_pages import HOSTILE, Reader, assert_clean
from tests.app.test_runs import new_run

HTML = {"Accept": "text/html"}


def add_checkpoint(run: dict, *, stage: str = "sft", step: int = 3, attempt: int = 1, age_s: float = 0,
                   state: str = "ready", path: str = "/nowhere") -> str:
    with transaction() as session:
        row = Checkpoint(run_id=run["id"], attempt=attempt, stage=stage, step=step, tokens=1, bytes=1, loss=2.0,
                         eval_loss=1.25, path=path, state=state, created_at=now(session) - age_s)
        session.add(row)
    return row.id


def show(browser: TestClient, path: str = "/chat", status: int = 200) -> Reader:
    answer = browser.get(path, headers=HTML)
    assert answer.status_code == status, answer.text
    page = assert_clean(answer.text)
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    return page


def view_of(page: Reader) -> dict:
    return json.loads(next(attributes["data-view"] for tag, attributes in page.tags if tag == "chat-page"))


def chosen(page: Reader) -> str:
    selected = [a["value"] for tag, a in page.tags if tag == "option" and "selected" in a and len(a["value"]) > 8]
    assert selected[0] == view_of(page)["checkpoint_id"]
    return selected[0]


def pressed(page: Reader) -> str:
    return next(a["data-mode"] for _, a in page.tags if "data-mode" in a and a["aria-pressed"] == "true")


def test_without_a_model_it_leads_to_the_first_one(api: Api) -> None:
    page = show(api.browser())
    assert "chat-notices" in [tag for tag, _ in page.tags], "a failed renaming is said here too"
    assert "/start" in [a.get("href") for _, a in page.tags if a.get("class") == "button primary"]
    assert view_of(page) == {"conversation": None, "checkpoints": [], "checkpoint_id": None,
                             "adapter_checkpoint_id": None, "user_id": "local"}
    assert not [a for _, a in page.tags if a.get("id") == "chat-text"]
    assert ("link", {"rel": "alternate", "type": "application/json", "href": "/api/v1/conversations"}) in page.tags


def test_the_newest_that_was_taught_to_answer_is_chosen(api: Api) -> None:
    browser, base, tuned = api.browser(), new_run(api, name="Base"), new_run(api, name="Tuned")
    old = add_checkpoint(base, stage="pretrain", age_s=50)
    page = show(browser)
    assert chosen(page) == old and pressed(page) == "text"
    early, late = add_checkpoint(tuned, step=10, age_s=40), add_checkpoint(tuned, step=20, age_s=30)
    gone = add_checkpoint(tuned, step=30, age_s=20, state="deleted")
    newest = add_checkpoint(base, stage="pretrain", step=9, age_s=10)
    page = show(browser)
    assert chosen(page) == late and pressed(page) == "chat"
    assert [a["label"] for tag, a in page.tags if tag == "optgroup"] == ["Base", "Tuned"]
    assert [c["id"] for c in view_of(page)["checkpoints"]] == [newest, old, late, early]
    text = " ".join(" ".join(page.text).split())
    assert "Tuned · step 20 · Fine-tuning · held-out loss 1.25" in text
    assert chosen(show(browser, f"/chat?checkpoint={early}")) == early
    assert "no longer there" not in text
    for missing in (gone, "nothing", "../x", "%00"):
        page = show(browser, f"/chat?checkpoint={missing}")
        assert chosen(page) == late and "no longer there" in " ".join(page.text)


def test_an_old_checkpoint_can_still_be_asked_for(api: Api, monkeypatch) -> None:
    monkeypatch.setattr("app.chat.pages.CHECKPOINTS_OFFERED", 2)
    run = new_run(api)
    old = add_checkpoint(run, step=1, age_s=90)
    newer = [add_checkpoint(run, step=step, age_s=90 - step) for step in (2, 3)]
    assert [c["id"] for c in view_of(show(api.browser()))["checkpoints"]] == newer[::-1]
    assert chosen(show(api.browser(), f"/chat?checkpoint={old}")) == old
    superseding = add_checkpoint(run, step=2, attempt=2)
    assert view_of(show(api.browser()))["checkpoints"][0]["id"] == superseding


def manifest(place: Path, *, layers: int = 2, tokenizer: str = "t", adapter: bool = False) -> str:
    """A directory whose manifest says this; returns its path."""
    place.mkdir()
    model = dict.fromkeys(SHAPE, 4) | {"num_hidden_layers": layers}
    Manifest(stage="", step=3, tokens=1, attempt=1, world_size=1, loss=None, eval_loss=None, model=model,
             config_fingerprint="", data_fingerprint="", tokenizer_fingerprint=tokenizer, lineage={}, versions={},
             created_at=1.0, adapter={"rank": 1} if adapter else None).seal(place)
    return str(place)


def adapters_of(page: Reader) -> tuple[list[str], str, bool]:
    """Ids that the second menu offers, the chosen one, and whether it is shown."""
    menu = next(a for tag, a in page.tags if a.get("id") == "chat-adapter")
    at = [a for _, a in page.tags].index(menu)
    options = [a for tag, a in page.tags[at + 1:] if tag == "option"][:50]
    after = next((n for n, a in enumerate(options) if a["value"] == "" and n), len(options))
    chosen = next((a["value"] for a in options[:after] if "selected" in a), "")
    assert chosen == (view_of(page)["adapter_checkpoint_id"] or "")
    return [a["value"] for a in options[1:after]], chosen, "hidden" not in menu


def test_adapters_that_fit_are_offered_beside_the_model(api: Api, tmp_path: Path) -> None:
    browser = api.browser()
    runs = {name: new_run(api, name=name) for name in ("Base", "Other", "Big", "Mine", "Theirs", "Wide", "Words")}
    base = add_checkpoint(runs["Base"], stage="pretrain", age_s=90, path=manifest(tmp_path / "base"))
    other = add_checkpoint(runs["Other"], age_s=80, path=manifest(tmp_path / "other"))
    big = add_checkpoint(runs["Big"], age_s=70, path=manifest(tmp_path / "big", layers=3))
    page = show(browser, f"/chat?checkpoint={base}")
    assert adapters_of(page) == ([], "", False)

    def adapter(name: str, trained_on: str, **facts: object) -> str:
        with transaction() as session:
            session.get(Run, runs[name]["id"]).base_checkpoint_id = trained_on
        return add_checkpoint(runs[name], stage="lora", age_s=len(name),
                              path=manifest(tmp_path / name, adapter=True, **facts))

    mine, theirs = adapter("Mine", base), adapter("Theirs", other)
    wide = adapter("Wide", big, layers=3)
    adapter("Words", base, tokenizer="another")
    page = show(browser, f"/chat?checkpoint={base}")
    assert adapters_of(page) == ([mine, theirs], "", True) and pressed(page) == "text"
    assert adapters_of(show(browser, f"/chat?checkpoint={other}"))[0] == [theirs, mine], "its own come first"
    assert adapters_of(show(browser, f"/chat?checkpoint={big}"))[0] == [wide]
    page = show(browser, f"/chat?checkpoint={base}&adapter={theirs}")
    assert adapters_of(page) == ([mine, theirs], theirs, True)
    assert pressed(page) == "chat", "an adapter was taught to answer"
    assert "without it" not in " ".join(page.text)
    for unfit in (wide, other, "nothing", "%00"):
        page = show(browser, f"/chat?checkpoint={base}&adapter={unfit}")
        assert adapters_of(page)[1] == "" and "answers now come without it" in " ".join(page.text)
    page = show(browser, f"/chat?checkpoint={mine}")
    assert chosen(page) == mine and pressed(page) == "chat", "one of the stage lora is a model by itself"
    assert adapters_of(page) == ([], "", False)

    talk = api.post("/conversations", {"checkpoint_id": base, "adapter_checkpoint_id": mine}).json()
    assert adapters_of(show(browser, f"/chat/{talk['id']}"))[1] == mine


def test_a_kept_conversation_is_there_before_any_script(api: Api) -> None:
    checkpoint = add_checkpoint(new_run(api, name="Tuned"))
    said = [{"role": "user", "content": "Where is Anna?"}, {"role": "assistant", "content": "In **Lisbon**."}]
    talk = api.post("/conversations", {"messages": said, "checkpoint_id": checkpoint, "system": "Be kind."}).json()
    other = api.post("/conversations", {"title": "Another"}).json()
    page = show(api.browser(), f"/chat/{talk['id']}")
    text = "".join(page.text)
    assert "Where is Anna?" in text and "In **Lisbon**." in text
    assert chosen(page) == checkpoint and view_of(page)["conversation"] == talk
    kept = {f"/chat/{other['id']}", f"/chat/{talk['id']}"}
    links = [a for tag, a in page.tags if tag == "a" and a["href"] in kept]
    assert [a["href"] for a in links] == [f"/chat/{other['id']}", f"/chat/{talk['id']}"]
    assert [a.get("aria-current") for a in links] == [None, "page"]
    api.http.patch(f"/api/v1/conversations/{talk['id']}", json={"checkpoint_id": "gone"})
    page = show(api.browser(), f"/chat/{talk['id']}")
    assert chosen(page) == checkpoint and "no longer there" in "".join(page.text)


def test_conversations_are_their_users_own(api: Api) -> None:
    talk = api.post("/conversations", {"title": "Secret plans"}).json()
    stranger = api.as_role("somebody", "admin")
    assert "Secret plans" not in stranger.get("/chat", headers=HTML).text
    for path in (f"/chat/{talk['id']}", "/chat/nothing", "/chat/%00"):
        answer = stranger.get(path, headers=HTML)
        assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/html")
    assert api.anonymous().get("/chat", headers=HTML).status_code == 401


def test_hostile_text_stays_text(api: Api) -> None:
    for name in HOSTILE:
        add_checkpoint(new_run(api, name=name))
        said = [{"role": role, "content": f"{name}\r\n\u2028"} for role in ("user", "assistant")]
        talk = api.post("/conversations", {"title": name, "messages": said, "system": name}).json()
        page = show(api.browser(), f"/chat/{talk['id']}")
        assert view_of(page)["conversation"] == talk
        assert "".join(page.text).count(name) >= 4
        assert not [t for t, _ in page.tags if t == "img"][2:], "only the studio's own sign"


def test_templates_hold_nothing_inline() -> None:
    source = (Path(__file__).resolve().parents[2] / "templates/pages/chat.html").read_text()
    assert "|safe" not in source.replace(" ", "") and len(source.splitlines()) <= 150
