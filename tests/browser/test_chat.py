"""The chat page against a model that says what the test wants: nothing is trained here.

Conversations are really kept by the studio; only what a model would answer is made up, inside the page's own
``fetch`` (piece by piece) or as a routed answer of ``/v1``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from app.core.db import engine_for, session_factory, transaction
from app.core.models import LOCAL_ADMIN_ID, Checkpoint, Event, Run
from tests.browser.pages import Problems, axe
from tests.integration.studio import RunningStudio

TUNED, BASE = "ckpttuned", "ckptbase"
CHAT = re.compile(r"/chat/[\w-]{12}$")
#: answers to every question, one word each 20 ms; window.asked has the requests, window.answer the next text
MODEL = """(() => {
  const real = window.fetch;
  window.asked = [];
  window.answer = "It is a **small** answer.";
  window.pauseMs = 20;
  window.fetch = async (path, options) => {
    if (!String(path).startsWith("/v1/")) return real(path, options);
    const body = JSON.parse(options.body);
    window.asked.push({ path, body });
    const chat = path.includes("chat");
    const words = window.answer.match(/\\S+\\s*|\\s+/g) ?? [];
    const lines = words.map((text) => ({ choices: [chat ? { delta: { content: text } } : { text }] }));
    lines.push({ choices: [{ delta: {}, text: "", finish_reason: "stop" }] });
    lines.push({ choices: [], usage: { prompt_tokens: 7, completion_tokens: words.length, total_tokens: 0 } });
    const encoder = new TextEncoder();
    return new Response(new ReadableStream({
      async pull(controller) {
        await new Promise((resolve) => setTimeout(resolve, window.pauseMs));
        if (options.signal.aborted) return controller.error(new DOMException("stopped", "AbortError"));
        if (!lines.length) {
          controller.enqueue(encoder.encode("data: [DONE]\\n\\n"));
          return controller.close();
        }
        controller.enqueue(encoder.encode(`data: ${JSON.stringify(lines.shift())}\\n\\n`));
      },
    }));
  };
})()"""


@pytest.fixture(scope="module", autouse=True)
def models(studio: RunningStudio) -> None:
    """Two runs with a checkpoint each: one that continues text, and a newer one that was taught to answer."""
    url = studio.database_url
    with transaction(session_factory(url)) as session:
        at = time.time()
        for name, stage, checkpoint in (("Base", "pretrain", BASE), ("Tuned", "sft", TUNED)):
            session.add(Run(id=f"run{stage}", name=name, user_id=LOCAL_ADMIN_ID, stage=stage, config={}, devices="auto",
                            state="completed", created_at=at, updated_at=at, ended_at=at))
            session.flush()
            session.add(Checkpoint(id=checkpoint, run_id=f"run{stage}", attempt=1, stage=stage, step=20, tokens=1,
                                   bytes=1, eval_loss=1.5, path="/nowhere", state="ready", created_at=at))
        session.add(Event(topic="run:runsft", seq=1, type="sample", attempt=1, t=at, step=20, tokens=1, data={
            "prompt": "Who are you?", "text": "I am.", "prompt_index": 0}))
    engine_for(url).dispose()


@pytest.fixture
def chat(page: Page) -> Iterator[Page]:
    page.add_init_script(MODEL)
    page.goto("/chat")
    yield page


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def answers(page: Page):
    return page.locator(".message.assistant .said")


def finished(page: Page, count: int) -> None:
    expect(answers(page)).to_have_count(count)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def kept(page: Page, studio: RunningStudio, text: str, count: int) -> None:
    """Wait until the studio has ``count`` messages of the open conversation, the last one with ``text`` and an end."""
    deadline = time.monotonic() + 10
    messages: list[dict] = []
    while len(messages) != count or text not in messages[-1]["content"] or not messages[-1]["finish_reason"]:
        assert time.monotonic() < deadline, messages
        page.wait_for_timeout(50)
        if CHAT.search(page.url):
            messages = studio.client.get(f"/conversations/{page.url.rpartition('/')[2]}")["messages"]


def asked(page: Page) -> dict:
    return page.evaluate("window.asked.at(-1)")


def test_what_is_sent_before_the_scripts_are_here_is_sent(page: Page) -> None:
    page.add_init_script(MODEL)
    held: list[Route] = []
    page.route(re.compile("/dist/chat-[^/]*\\.js"), lambda route: held.append(route))
    page.goto("/chat", wait_until="commit")
    ask(page, "Am I too early?")
    expect(page.get_by_label("Your message")).to_have_value("Am I too early?\n")
    held[0].continue_()
    finished(page, 1)
    expect(page.locator(".message.user .said")).to_have_text("Am I too early?")
    expect(page.get_by_label("Your message")).to_have_value("")


def test_a_talk(chat: Page, studio: RunningStudio) -> None:
    page = chat
    assert not axe(page), "\n".join(axe(page))
    page.get_by_role("button", name="Who are you?").click()
    finished(page, 1)
    expect(page).to_have_url(CHAT)
    expect(page.get_by_role("heading", level=1)).to_have_text("Who are you?")
    expect(page.locator("chat-list").get_by_role("link", name="Who are you?")).to_be_visible()
    expect(answers(page).locator("strong")).to_have_text("small")
    expect(page.locator(".message.assistant")).to_contain_text(re.compile(r"Tuned, step 20 · 5 tokens · \d+ tokens/s"))
    expect(page.get_by_role("status").filter(has_text="It is a small answer.")).to_be_attached()
    assert asked(page)["path"] == "/v1/chat/completions" and asked(page)["body"]["model"] == TUNED

    field = page.get_by_label("Your message")
    field.fill("one")
    field.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True})
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(field).to_have_value("one\ntwo")
    page.evaluate("window.answer = 'word '.repeat(500)")
    page.keyboard.press("Enter")
    expect(answers(page).nth(1)).to_contain_text("word word word")
    page.keyboard.press("Escape")
    expect(page.locator(".message.assistant").nth(1)).to_contain_text("stopped")
    finished(page, 2)
    partial = answers(page).nth(1).inner_text().strip()
    assert 3 <= len(partial.split()) < 400
    kept(page, studio, partial, 4)
    page.reload()
    expect(answers(page).nth(1)).to_have_text(partial)
    expect(page.locator(".message.assistant").nth(1)).to_contain_text("stopped")
    assert not axe(page), "\n".join(axe(page))

    page.evaluate("window.answer = '<think>Let me see.</think>Another one.'")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    expect(answers(page).nth(1)).to_contain_text("Another one.")
    finished(page, 2)
    assert [m["role"] for m in asked(page)["body"]["messages"]] == ["user", "assistant", "user"]
    thought = page.locator(".thoughts").get_by_text("Let me see.")
    expect(thought).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(thought).to_be_visible()

    page.get_by_role("button", name="Edit this message").first.click()
    expect(page.get_by_text("The 3 messages after this one will be removed.")).to_be_visible()
    page.get_by_role("textbox", name="Edit this message").fill("Who else?")
    page.get_by_role("button", name="Send again").click()
    finished(page, 1)
    assert asked(page)["body"]["messages"] == [{"role": "user", "content": "Who else?"}]


def test_settings_title_and_deletion(chat: Page, studio: RunningStudio) -> None:
    page = chat
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("3")
    page.get_by_label("Seed").fill("7")
    expect(page.get_by_text("less than or equal to 2")).to_be_visible()
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_label("Temperature")).to_be_focused()  # what is wrong keeps the dialog open
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("System prompt").fill("Be kind.")
    assert not axe(page), "\n".join(axe(page))
    page.get_by_role("button", name="Done").click()
    ask(page, "Hello")
    finished(page, 1)
    body = asked(page)["body"]
    assert (body["temperature"], body["seed"], "top_k" in body) == (0, 7, False)
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Title").fill("My talk")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("My talk")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("My talk")
    expect(page.locator("#s-temperature")).to_have_value("0")
    id = page.url.rpartition("/")[2]
    assert studio.client.get(f"/conversations/{id}")["system"] == "Be kind."
    page.get_by_role("button", name="Delete").first.click()
    page.get_by_role("button", name="Delete it").click()
    expect(page).to_have_url(re.compile("/chat$"))
    assert id not in [c["id"] for c in studio.client.get("/conversations")["items"]]


def test_a_model_that_only_continues_text(chat: Page) -> None:
    page = chat
    page.get_by_label("Model that answers").select_option(BASE)
    expect(page.get_by_text("This model has not been taught to answer yet: it continues text.")).to_be_visible()
    page.evaluate("window.answer = ' was **a** fox. '")
    ask(page, "Once upon a time there")
    finished(page, 1)
    assert asked(page)["path"] == "/v1/completions"
    assert asked(page)["body"]["prompt"] == "Once upon a time there"
    expect(answers(page)).to_contain_text("was **a** fox.")
    page.get_by_role("button", name="Go on").click()
    expect(answers(page)).to_contain_text("was **a** fox.  was **a** fox.", use_inner_text=False)
    finished(page, 1)
    assert asked(page)["body"]["prompt"] == "Once upon a time there was **a** fox. "
    page.evaluate("() => { window.model = window.fetch; window.fetch = () => Promise.reject(new TypeError('away')) }")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Try again").wait_for()
    page.evaluate("() => { window.fetch = window.model; window.answer = 'The end.' }")
    page.get_by_role("button", name="Try again").click()  # what was there stays
    expect(answers(page)).to_contain_text("was **a** fox.  was **a** fox. The end.", use_inner_text=False)
    finished(page, 1)
    page.get_by_role("button", name="Chat", exact=True).click()
    ask(page, "And you?")
    finished(page, 2)
    assert asked(page)["path"] == "/v1/chat/completions"


def test_what_fails_is_said_and_nothing_is_lost(page: Page, problems: Problems, studio: RunningStudio) -> None:
    problems.allow("status of (429|400|503)|net::ERR_FAILED")
    refusals = [(429, {"message": "16 requests wait.", "code": "server_busy"}, {"Retry-After": "2"}),
                (400, {"message": "Too many tokens.", "code": "context_length_exceeded"}, {})]

    def model(route: Route) -> None:
        if refusals:
            status, error, headers = refusals.pop(0)
            route.fulfill(status=status, json={"error": error}, headers=headers)
        else:
            route.fulfill(body=stream("All is well."), content_type="text/event-stream")

    page.route("**/v1/chat/completions", model)
    page.route("**/api/v1/conversations", lambda route: route.abort())
    page.goto("/chat")
    ask(page, "Are you there?")
    expect(page.locator("chat-thread").get_by_text("16 requests wait.")).to_be_visible()
    expect(page.get_by_text("It may work again in 2 s. Your message is kept.")).to_be_visible()
    expect(page.get_by_text("This conversation could not be saved")).to_be_visible()
    expect(page.locator(".message.user .said")).to_have_text("Are you there?")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("Begin a new chat, or edit an earlier message")).to_be_visible()
    assert not axe(page), "\n".join(axe(page))
    page.unroute("**/api/v1/conversations")
    page.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_have_text("All is well.")
    expect(page.get_by_text("This conversation could not be saved")).to_be_hidden()
    kept(page, studio, "All is well.", 2)
    page.reload()
    expect(answers(page)).to_have_text("All is well.")


def test_two_tabs(chat: Page, context: BrowserContext, problems: Problems, studio: RunningStudio) -> None:
    problems.allow("status of 409")
    ask(chat, "First")
    finished(chat, 1)
    expect(chat).to_have_url(CHAT)
    kept(chat, studio, "answer", 2)
    other = context.new_page()
    other.add_init_script(MODEL)
    other.goto(chat.url)
    ask(other, "From the other tab")
    finished(other, 2)
    kept(other, studio, "answer", 4)
    ask(chat, "From this tab")
    expect(chat.get_by_text("This conversation was changed in another tab.")).to_be_visible()
    finished(chat, 2)
    chat.get_by_role("button", name="Show the other version").click()
    expect(chat.locator(".message.user .said").nth(1)).to_have_text("From the other tab")
    ask(other, "Once more")
    finished(other, 3)
    kept(other, studio, "answer", 6)
    ask(chat, "No, mine")
    chat.get_by_role("button", name="Keep mine").click()
    finished(chat, 3)
    expect(chat.get_by_text("This conversation was changed in another tab.")).to_be_hidden()
    other.get_by_role("button", name="Edit this message").first.click()
    other.get_by_role("textbox", name="Edit this message").fill("half a thought")
    other.evaluate("dispatchEvent(new Event('focus'))")  # looked at again
    other.wait_for_timeout(300)
    expect(other.get_by_role("textbox", name="Edit this message")).to_have_value("half a thought")
    other.keyboard.press("Escape")
    other.evaluate("dispatchEvent(new Event('focus'))")
    expect(other.locator(".message.user .said").nth(2)).to_have_text("No, mine")


def test_on_a_phone(chat: Page) -> None:
    page = chat
    page.set_viewport_size({"width": 390, "height": 844})
    wide = f"{'w' * 300} https://example.org/{'x' * 300}\n\n|{'c' * 90}|{'d' * 90}|\n|-|-|\n\n```\n{'code' * 90}\n```"
    page.evaluate("text => { window.answer = text; window.pauseMs = 1 }", wide)
    ask(page, f"{'宽' * 200} {'🦊' * 100} {'y' * 300}")
    finished(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator("chat-list a[aria-current]")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not axe(page), "\n".join(axe(page))


RUN = "(window.ran=1,alert(1))"
EVIL = "//evil.example/x"
#: what a model could be made to say; each would set window.ran, open a dialog or ask another host if it were believed
PAYLOADS = [
    f"<script>{RUN}</script>", f"<SCRIPT SRC=http:{EVIL}.js></SCRIPT>", f"<script>{RUN}",
    f"<img src=x onerror={RUN}>", f"<img src=http:{EVIL}.png>", f"<img srcset='http:{EVIL}.png 1x'>",
    f"<IMG \"\"\"><SCRIPT>{RUN}</SCRIPT>\">", f"<svg onload={RUN}>", f"<svg><script>{RUN}</script></svg>",
    f"<svg><a xlink:href='javascript:{RUN}'><text>x</text></a></svg>",
    f"<svg><use href='data:image/svg+xml,<svg id=x onload={RUN}>#x'></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s></svg>",
    f"<svg><style><img src=x onerror={RUN}></style></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}></style></mglyph></table></mtext></math>",
    f"<math><a xlink:href='javascript:{RUN}'>x</a></math>", f"<iframe src='javascript:{RUN}'></iframe>",
    "<iframe srcdoc='<script>parent.ran=1</script>'></iframe>", f"<iframe src=http:{EVIL}></iframe>",
    f"<object data='data:text/html,<script>{RUN}</script>'></object>", f"<embed src=http:{EVIL}.swf>",
    f"<link rel=stylesheet href=http:{EVIL}.css>", f"<style>@import 'http:{EVIL}.css';</style>",
    f"<style>body{{background:url(http:{EVIL}.png)}}</style>", f"<p style='background:url(http:{EVIL}.png)'>x</p>",
    f"<meta http-equiv=refresh content='0;url=http:{EVIL}'>", f"<base href=http:{EVIL}/>",
    f"<form action=http:{EVIL}><button autofocus onfocus={RUN}>x</button></form>", f"<input autofocus onfocus={RUN}>",
    f"<select autofocus onfocus={RUN}></select>", f"<textarea autofocus onfocus={RUN}></textarea>",
    f"<details open ontoggle={RUN}><summary>x</summary></details>",
    f"<video src=http:{EVIL}.mp4 onerror={RUN} autoplay></video>",
    f"<audio src=http:{EVIL}.mp3 onerror={RUN} autoplay></audio>", f"<video><source onerror={RUN} src=x></video>",
    f"<body onload={RUN}>", f"<marquee onstart={RUN}>x</marquee>", f"<template><script>{RUN}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'></noscript>", f"<a href='javascript:{RUN}'>x</a>",
    f"<div contenteditable onblur={RUN} tabindex=1 autofocus>x</div>", f"[x](javascript:{RUN})",
    f"[x](JaVaScRiPt:{RUN})", f"[x](java&#x09;script:{RUN})", f"[x](&#106;avascript:{RUN})",
    f"[x](<java\tscript:{RUN}>)", f"<javascript:{RUN}>", f"[x](data:text/html,<script>{RUN}</script>)",
    f"[x](vbscript:{RUN})", f"[x](//evil.example 'a\" onmouseover=\"{RUN}')",
    f"[x](https://example.org/\"onfocus=\"{RUN}\"autofocus=\")", f"![x](http:{EVIL}.png)",
    f"![x](x \"\\\" onerror=\\\"{RUN}\")", f"![x\" onerror=\"{RUN}](http:{EVIL}.png)",
    f"[![x](http:{EVIL}.png)](javascript:{RUN})", f"![x][1]\n\n[1]: http:{EVIL}.png",
    f"[x][1]\n\n[1]: javascript:{RUN}", f"```html\n</code></pre><img src=x onerror={RUN}>\n```",
    f"```\"><img/src=x/onerror={RUN}>\ncode\n```", f"`</code><img src=x onerror={RUN}>`",
    f"|<img src=x onerror={RUN}>|\n|-|\n|<script>{RUN}</script>|",
    f"# <img src=x onerror={RUN}>\n> <svg onload={RUN}>",
    f"<think><img src=x onerror={RUN}></think><script>{RUN}</script>", f"<think>![x](http:{EVIL}.png)",
    f"<pre><img src=x onerror={RUN}></pre>", f"*<b onclick={RUN}>*_<i>_</b>**<img src=x onerror={RUN}>**",
    f"<!--><img src=x onerror={RUN}>-->", f"<![CDATA[><img src=x onerror={RUN}>]]>", f"<?xml ?><x onclick={RUN}>",
    f"<a\u2028href='javascript:{RUN}'>x</a>", "{{constructor.constructor('ran=1')()}} ${window.ran=1}",
    f"\u202e<img src=x onerror={RUN}>\ufeff", f"<x-<img src=x onerror={RUN}>",
    "<chat-page data-view='{}'></chat-page>", f"https://example.org/<img src=x onerror={RUN}>",
    f"<b>{'<div>' * 300}<img src=x onerror={RUN}>",
]
FORBIDDEN = ("script, img, svg, math, iframe, object, embed, link, style, meta, base, form, input, select, video, "
             "audio, source, template, noscript, marquee, [style], [onerror], [onload], [onclick], chat-page")


def stream(text: str) -> str:
    """An answer of ``/v1/chat/completions``, in pieces of seven characters."""
    chunks = [{"choices": [{"delta": {"content": text[i:i + 7]}}]} for i in range(0, len(text), 7)]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def test_whatever_a_model_says_is_only_shown(page: Page, problems: Problems, studio: RunningStudio) -> None:
    """Every payload as an answer, and as a question; then all of them again from the studio, and as one text."""
    assert len(PAYLOADS) >= 60 and len(set(PAYLOADS)) == len(PAYLOADS)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        body=stream(route.request.post_data_json["messages"][-1]["content"]), content_type="text/event-stream"))
    page.goto("/chat")
    for number, payload in enumerate(PAYLOADS, 1):
        ask(page, payload)
        expect(page.locator(".message.assistant[aria-busy=false]")).to_have_count(number)
    expect(page).to_have_url(CHAT)
    assert_only_shown(page)
    assert answers(page).filter(has_text=f"<img src=x onerror={RUN}>").count() >= 10, "shown as it was written"
    kept(page, studio, "", 2 * len(PAYLOADS))
    page.reload()
    expect(page.locator(".message.assistant[aria-busy=false]")).to_have_count(len(PAYLOADS))
    for summary in page.get_by_text("Thoughts", exact=True).all():
        summary.click()
    for link in page.locator(".said a").all():
        link.dispatch_event("mouseover")
    assert_only_shown(page)
    page.goto("/chat")
    ask(page, "\n\n".join(PAYLOADS))
    expect(page.locator(".message.assistant[aria-busy=false]")).to_have_count(1)
    assert_only_shown(page)
    assert not dialogs
    assert not problems.unexpected, problems.unexpected


def assert_only_shown(page: Page) -> None:
    assert page.evaluate("window.ran") is None
    assert page.locator("chat-thread").locator(FORBIDDEN).evaluate_all("found => found.map(e => e.outerHTML)") == []
    links = page.locator("chat-thread a").evaluate_all(
        "found => found.map(a => Object.fromEntries(a.getAttributeNames().map(name => [name, a.getAttribute(name)])))")
    for link in links:
        assert re.match(r"(https?://|mailto:)", link.pop("href")), link
        assert link == {"rel": "noopener noreferrer nofollow", "target": "_blank"}
