"""A model for the chat page that says what a test wants, inside the page's own ``fetch``; and what the tests of that
page do all the time. Conversations are really kept by the studio."""

from __future__ import annotations

import re
import time

from playwright.sync_api import Page, expect

from app.core.db import engine_for, session_factory, transaction
from app.core.models import LOCAL_ADMIN_ID, Checkpoint, Event, Run
from tests.integration.studio import RunningStudio

TUNED, BASE = "ckpttuned", "ckptbase"
CHAT = re.compile(r"/chat/[\w-]{12}$")
#: answers to every question, one word each 20 ms; window.asked has the requests, window.answer the next text, or
#: window.script the pieces of the next answers, one list each
MODEL = """(() => {
  const real = window.fetch;
  window.asked = [];
  window.answer = "It is a **small** answer.";
  window.pauseMs = 20;
  window.script = [];
  window.fetch = async (path, options) => {
    if (!String(path).startsWith("/v1/")) return real(path, options);
    const body = JSON.parse(options.body);
    window.asked.push({ path, body });
    const chat = path.includes("chat");
    const words = window.answer.match(/\\S+\\s*|\\s+/g) ?? [];
    const lines = words.map((text) => ({ choices: [chat ? { delta: { content: text } } : { text }] }));
    lines.push({ choices: [{ delta: {}, text: "", finish_reason: "stop" }] });
    if (window.script.length) lines.splice(0, lines.length, ...window.script.shift());
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


def make_models(studio: RunningStudio) -> None:
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
