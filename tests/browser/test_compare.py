"""Models side by side, votes that become a DPO run, time travel: real checkpoints with random weights, which answer
through the real inference process. Only what has to come slowly, or fail, is made up inside the page's ``fetch``."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Page, expect

from app.core.db import engine_for, session_factory, transaction
from app.core.models import LOCAL_ADMIN_ID, Checkpoint, Run
from tests.browser.pages import Problems, axe
from tests.checkpoint_rig import make_checkpoint
from tests.integration.studio import RunningStudio

#: answers word by word, one each window.pauseMs; window.fails names models that give an error instead
MODEL = """(() => {
  const real = window.fetch;
  Object.assign(window, { asked: [], fails: [], pauseMs: 20, words: 6 });
  window.fetch = async (path, options) => {
    if (!String(path).startsWith("/v1/")) return real(path, options);
    const body = JSON.parse(options.body);
    window.asked.push({ path, body });
    if (window.fails.includes(body.model)) {
      return new Response(JSON.stringify({ error: { message: "It cannot be read.", code: "x" } }), { status: 400 });
    }
    const lines = Array.from({ length: window.words }, (_, at) => ({ choices: [path.includes("chat")
      ? { delta: { content: `${body.model}-${at} ` } } : { text: `${body.model}-${at} ` }] }));
    lines.push({ choices: [{ delta: {}, text: "", finish_reason: "stop" }] });
    lines.push({ choices: [], usage: { prompt_tokens: 7, completion_tokens: window.words, total_tokens: 0 } });
    const encoder = new TextEncoder();
    return new Response(new ReadableStream({
      async pull(controller) {
        await new Promise((resolve) => setTimeout(resolve, window.pauseMs));
        if (options.signal.aborted) return controller.error(new DOMException("stopped", "AbortError"));
        const line = lines.shift();
        controller.enqueue(encoder.encode(`data: ${line ? JSON.stringify(line) : "[DONE]"}\\n\\n`));
        if (!line) controller.close();
      },
    }));
  };
})()"""


@pytest.fixture(scope="module", autouse=True)
def models(studio: RunningStudio) -> None:
    """A run that read texts, and one that went on from its last checkpoint and was taught to answer."""
    url, at = studio.database_url, time.time()
    rows = []
    for number, (run, stage, step) in enumerate((("base", "pretrain", 20), ("base", "pretrain", 40),
                                                 ("tuned", "sft", 10), ("tuned", "sft", 20))):
        place = studio.data_dir / "runs" / run / "checkpoints" / f"step-{step:08d}-a1"
        make_checkpoint(place, seed=number, positions=2000)
        rows.append(Checkpoint(id=f"{run}{step}", run_id=run, attempt=1, stage=stage, step=step, tokens=step * 4096,
                               bytes=1, eval_loss=4 - number / 2, path=str(place), state="ready",
                               created_at=at + number))
    with transaction(session_factory(url)) as session:
        for id, stage, base in (("base", "pretrain", None), ("tuned", "sft", "base40")):
            session.add(Run(id=id, name=id.title(), user_id=LOCAL_ADMIN_ID, stage=stage, config={}, devices="auto",
                            state="completed", created_at=at, updated_at=at, ended_at=at, base_checkpoint_id=base))
        session.flush()
        session.add_all(rows)
    engine_for(url).dispose()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message to all models").fill(text)
    page.keyboard.press("Enter")


def settings(page: Page, **values: str) -> None:
    page.locator(".compare-settings > summary").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.locator(".compare-settings > summary").click()


def columns(page: Page):
    return page.locator("compare-column")


def answers(page: Page):
    return page.locator("compare-column .message.assistant .said")


def asked(page: Page) -> list[dict]:
    return page.evaluate("window.asked")


@pytest.mark.slow  # browser tests have ten minutes
def test_models_answer_side_by_side(page: Page, problems: Problems) -> None:
    problems.allow("status of 400")
    page.add_init_script(MODEL)
    page.goto("/chat/compare?checkpoint=tuned20&checkpoint=base40")
    expect(columns(page)).to_have_count(2)
    page.get_by_role("button", name="Add a model").click()
    page.get_by_label("Model C", exact=True).select_option("tuned10")
    page.evaluate("window.fails = ['tuned10']")
    ask(page, "Who is there?")
    expect(answers(page)).to_have_text(["tuned20-0 tuned20-1 tuned20-2 tuned20-3 tuned20-4 tuned20-5",
                                        "base40-0 base40-1 base40-2 base40-3 base40-4 base40-5"])
    expect(columns(page).nth(2).get_by_role("alert")).to_contain_text("It cannot be read.")
    expect(page.get_by_role("status").filter(has_text="Not all have answered.")).to_be_attached()
    assert not axe(page), "\n".join(axe(page))
    page.evaluate("window.fails = []")
    columns(page).nth(2).get_by_role("button", name="Try again").click()
    expect(answers(page)).to_have_count(3)
    expect(page.get_by_role("button", name="Stop all")).to_be_hidden()
    seen = asked(page)
    assert [(a["body"]["model"], a["path"]) for a in seen[:2]] == [
        ("tuned20", "/v1/chat/completions"), ("base40", "/v1/completions")]
    assert len({a["body"]["seed"] for a in seen}) == 1
    expect(page.get_by_text(f"Seed {seen[0]['body']['seed']}", exact=True)).to_be_visible()
    expect(columns(page).first).to_contain_text(re.compile(r"6 tokens · \d+ tokens/s · first after [\d.]+ s · seed"))

    page.evaluate("Object.assign(window, { words: 500, asked: [] })")
    ask(page, "And now?")
    expect(answers(page)).to_have_count(6)
    expect(columns(page).nth(2)).to_contain_text("tuned10-9")
    assert [m["content"] for m in asked(page)[0]["body"]["messages"]][0::2] == ["Who is there?", "And now?"]
    page.get_by_role("button", name="Stop all").click()
    expect(page.get_by_text("Stopped.")).to_have_count(3)
    page.evaluate("Object.assign(window, { words: 3, asked: [] })")
    page.get_by_role("button", name="Answer again").last.click()
    expect(page.get_by_role("button", name="Stop all")).to_be_hidden()
    assert len(asked(page)) == 3
    page.get_by_role("button", name="Remove model A").click()
    expect(page).to_have_url(re.compile(r"checkpoint=base40&checkpoint=tuned10$"))
    expect(page.get_by_role("button", name="As good")).to_be_visible()
    page.evaluate("window.asked = []")
    page.get_by_label("Model B", exact=True).select_option("tuned20")
    expect(answers(page).nth(3)).to_have_text("tuned20-0 tuned20-1 tuned20-2")
    expect(page.get_by_role("button", name="Stop all")).to_be_hidden()
    assert len(asked(page)) == 2, "it answers both turns"
    for width, scheme in ((390, "dark"), (390, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert not axe(page), "\n".join(axe(page))
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_votes_become_a_run_that_learns_from_them(page: Page, studio: RunningStudio) -> None:
    page.goto("/chat/compare?checkpoint=tuned20")
    page.get_by_role("button", name="Two answers of one model").click()
    expect(page.get_by_role("button", name="Blind test")).to_have_attribute("aria-pressed", "true")
    settings(page, Longest_answer="6", System_prompt="Be brief.")
    for prompt, key in (("Who are you?", "1"), ("Where is the lamp?", "ArrowRight"), ("Is it green?", "3")):
        ask(page, prompt)
        expect(page.get_by_role("button", name="A is better")).to_be_focused(timeout=60_000)
        expect(columns(page).first).to_contain_text("Hidden until the vote")
        expect(page.get_by_text("Tuned, step 20")).to_have_count(0)
        expect(page.get_by_role("combobox", name="Model A")).to_have_count(0)
        page.keyboard.press(key)
        expect(page.get_by_role("heading", name="A Tuned, step 20")).to_be_visible()
        expect(page.get_by_role("button", name="Next prompt (N)")).to_be_focused()
        page.keyboard.press("n")
        expect(page.get_by_label("Message to all models")).to_be_focused()
        expect(answers(page)).to_have_count(0)
    ask(page, "Really?")
    expect(page.get_by_role("button", name="A is better")).to_be_focused(timeout=60_000)
    page.keyboard.press("4")
    page.get_by_role("button", name="Take the vote back").click()
    expect(page.get_by_role("button", name="A is better")).to_be_focused()
    kept = studio.client.get("/votes")["items"]
    assert [v["verdict"] for v in kept] == ["tie", "b", "a"] and all(v["is_blind"] for v in kept)
    assert kept[0]["messages"] == [{"role": "system", "content": "Be brief.", "reasoning_content": None},
                                   {"role": "user", "content": "Is it green?", "reasoning_content": None}]
    assert kept[0]["answers"][0]["sampling"]["seed"] != kept[0]["answers"][1]["sampling"]["seed"]

    page.goto("/chat/votes")
    assert not axe(page), "\n".join(axe(page))
    page.get_by_role("button", name="Delete the vote on: Is it green?").click()
    expect(page.get_by_role("row")).to_have_count(3)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the pairs").click()
    assert download.value.path().read_text(encoding="utf-8").count('"chosen"') == 2
    page.get_by_role("button", name="Train on these").click()
    page.wait_for_url(re.compile(r"/runs/new\?stage=dpo&dataset_id="), timeout=60_000)
    [dataset] = studio.client.get("/datasets")["items"]
    assert (dataset["layout"], dataset["rows"]) == ("dpo", 2)
    page.goto(f"{page.url}&max_steps=2&batch_size=1&max_seq_len=128&use_compile=false&eval_interval=0&sample_interval=0")
    page.get_by_role("button", name="Queue this run").click()
    page.wait_for_url(re.compile(r"/runs/[\w-]{12}$"), timeout=30_000)
    run = studio.client.wait_run(page.url.rpartition("/")[2], timeout_s=120)
    assert (run["state"], run["stage"], run["dataset_id"], run["base_checkpoint_id"]) == (
        "completed", "dpo", dataset["id"], "tuned20"), run


def test_a_comparison_survives_a_reload(page: Page) -> None:
    page.add_init_script(MODEL)
    page.goto("/chat/compare?checkpoint=tuned20&checkpoint=tuned10&blind=1")
    page.evaluate("window.words = 3")
    settings(page, Temperature="0.5", System_prompt="Be brief.")
    ask(page, "Who is there?")
    expect(page.get_by_role("button", name="A is better")).to_be_focused()
    said = answers(page).all_inner_texts()
    page.get_by_label("Message to all models").fill("half a thought")
    page.reload()
    expect(answers(page)).to_have_text(said)
    expect(columns(page).first).to_contain_text("Hidden until the vote")
    summary = "temperature 0.5 · one seed for all · with a system prompt"
    expect(page.locator("[data-part=summary]")).to_have_text(summary)
    expect(page.get_by_label("Message to all models")).to_have_value("half a thought")
    assert asked(page) == [], "who has answered is not asked again"
    page.get_by_role("button", name="B is better").click()
    expect(page.get_by_role("heading", name=f"B Tuned, step {said[1][5:7]}")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name=f"B Tuned, step {said[1][5:7]}")).to_be_visible()
    page.get_by_role("button", name="Take the vote back").click()
    expect(page.get_by_role("button", name="A is better")).to_be_visible()
    page.evaluate("Object.assign(window, { words: 500, asked: [] })")
    ask(page, "And now?")
    expect(answers(page).nth(3)).to_contain_text("-9 ")
    seeds = [request["body"]["seed"] for request in asked(page)]
    page.reload()  # in the middle of both answers
    expect(page.get_by_role("button", name="A is better")).to_be_focused()
    expect(answers(page)).to_have_count(4)
    assert [request["body"]["seed"] for request in asked(page)] == seeds
    assert [m["content"] for m in asked(page)[0]["body"]["messages"]][1::2] == ["Who is there?", "And now?"]


def test_a_long_name_stays_in_its_column(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto("/chat/compare?checkpoint=tuned20&checkpoint=tuned10")
    choice = page.get_by_label("Model A", exact=True)
    expect(choice).to_be_visible()
    choice.evaluate("(menu) => { menu.selectedOptions[0].text = 'A model with a name like a novel '.repeat(4) }")
    column, menu = columns(page).first.bounding_box(), choice.bounding_box()
    assert menu["x"] + menu["width"] <= column["x"] + column["width"], (column, menu)


@pytest.mark.slow  # browser tests have ten minutes
def test_a_way_survives_a_reload(page: Page) -> None:
    page.add_init_script(MODEL)
    page.goto("/chat/travel?run=tuned")
    page.get_by_label("Prompt for every checkpoint").fill("The lamp")
    page.get_by_label("Chance").select_option("seed")
    page.get_by_label("Mark what changed").uncheck()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_text("4 of 4 have answered")).to_be_visible()
    page.get_by_role("button", name="The checkpoint before").click()
    said = page.locator("[data-part=answer]").inner_text()
    page.reload()
    expect(page.get_by_text("4 of 4 have answered")).to_be_visible()
    expect(page.locator("[data-part=answer]")).to_have_text(said)
    expect(page.locator("[data-part=prompt]")).to_have_text("The lamp")
    expect(page.get_by_label("Prompt for every checkpoint")).to_have_value("The lamp")
    expect(page.get_by_label("Chance")).to_have_value("seed")
    expect(page.get_by_label("Mark what changed")).not_to_be_checked()
    assert asked(page) == []


def test_a_way_is_travelled(page: Page, studio: RunningStudio, problems: Problems) -> None:
    problems.allow("status of 404")
    page.goto("/runs/tuned")
    page.get_by_role("link", name="Time travel: ask all of them the same").click()
    expect(page.get_by_role("heading", level=1, name="Time travel")).to_be_visible()
    with transaction(session_factory(studio.database_url)) as session:  # after the page was made
        session.get(Checkpoint, "base20").state = "deleted"
    engine_for(studio.database_url).dispose()
    page.get_by_label("Prompt for every checkpoint").fill("The lamp")
    page.keyboard.press("Enter")
    expect(page.get_by_text("3 of 4 have answered")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    expect(page.locator("travel-strip circle[data-state=answered]")).to_have_count(3)
    expect(page.locator("travel-strip polyline")).to_have_count(2)
    slider, answer = page.get_by_label("Checkpoint", exact=True), page.locator("[data-part=answer]")
    texts = {}
    slider.focus()
    for named in ("Tuned, step 20", "Tuned, step 10", "Base, step 40", "Base, step 20"):
        expect(slider).to_have_attribute("aria-valuetext", named)
        expect(page.locator("[data-part=facts]")).to_contain_text(f"{named} · ")
        texts[named] = answer.inner_text()
        page.keyboard.press("ArrowLeft")
    assert texts.pop("Base, step 20") == "This checkpoint was deleted meanwhile."
    assert len(set(texts.values())) == 3 and all(texts.values())
    page.get_by_role("button", name="The checkpoint after").click()
    expect(answer.locator("ins")).to_have_count(0)
    page.keyboard.press("Tab")
    slider.fill("2")
    expect(answer.locator("ins")).to_have_count(0)
    page.locator("travel-strip circle").last.click()
    expect(answer.locator("ins").first).to_be_visible()
    page.get_by_label("Mark what changed").uncheck()
    expect(answer.locator("ins")).to_have_count(0)
    expect(page.get_by_role("link", name="Chat with this one")).to_have_attribute("href", "/chat?checkpoint=tuned20")
    for width, scheme in ((1280, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert not axe(page), "\n".join(axe(page))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Play").click()
    expect(slider).to_have_attribute("aria-valuetext", "Base, step 20")
    expect(slider).to_have_attribute("aria-valuetext", "Tuned, step 20", timeout=10_000)
    expect(page.get_by_role("button", name="Play")).to_have_attribute("aria-pressed", "false")
