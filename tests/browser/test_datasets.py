"""Datasets as a user meets them: a file is dropped in, what is wrong is named, rows are read as text and as tokens."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.pages import Problems, axe

PWNED = "window.pwned = true"
HOSTILE = [
    f"<script>{PWNED}</script>", f"<img src=x onerror='{PWNED}'>", f"<svg onload='{PWNED}'>",
    f"\"><script>{PWNED}</script>",
    f"javascript:{PWNED}", f"<a href='javascript:{PWNED}'>go</a>",
    f"<iframe srcdoc='<script>{PWNED}</script>'></iframe>",
    f"<details open ontoggle='{PWNED}'>", f"<input autofocus onfocus='{PWNED}'>", "<style>* { display: none }</style>",
    "</li></ol><h1>mine</h1>", "<!--", "]]>", "{{ 7 * 7 }}", "${7 * 7}", "&lt;b&gt;&amp;", "\u202egnp.exe", "a\u0000b",
    "<base href='//evil.example/'>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
]
IMPORTED_WITHIN_MS = 60_000


def jsonl(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def choose(page: Page, name: str, content: bytes) -> None:
    page.locator("#upload-file").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": content})


def upload(page: Page, name: str, content: bytes) -> None:
    """Add a file on the list's page; returns when it was taken in."""
    page.goto("/datasets?add=1")
    choose(page, name, content)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("is ready:")).to_be_visible(timeout=IMPORTED_WITHIN_MS)


def dialogue(answer: str, **more: object) -> dict:
    return {"conversations": [{"role": "user", "content": "Where is the ferry?"},
                              {"role": "assistant", "content": answer, **more}]}


def test_a_file_comes_in_and_a_bad_one_is_explained(page: Page) -> None:
    page.goto("/datasets")
    if page.locator("#add-data[open]").count() == 0:
        page.get_by_text("Add data", exact=True).click()
    choose(page, "letter.docx", b"PK\x03\x04")
    expect(page.get_by_text("letter.docx is a document, not plain text.")).to_be_visible()
    page.get_by_role("button", name="Upload", exact=True).click()
    choose(page, "empty.txt", b"")
    expect(page.get_by_text("empty.txt is empty.")).to_be_visible()
    choose(page, "bad.jsonl", jsonl({"text": "one"}, {"text": "two"}, {"text": 3}))
    expect(page.get_by_text("is empty")).to_be_hidden()
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("bad.jsonl line 3: text is number, not text.")).to_be_visible(timeout=IMPORTED_WITHIN_MS)
    expect(page.get_by_text("Line 3 · field text")).to_be_visible()
    expect(page.get_by_text("Correct line 3 in the file and upload it again.")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    choose(page, "harbour.jsonl", jsonl(*({"text": f"Ferry {i} left."} for i in range(1, 24))))
    page.get_by_label("Name").first.fill("Harbour")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("Harbour is ready: 23 rows.")).to_be_visible(timeout=IMPORTED_WITHIN_MS)
    row = page.get_by_role("row", name=re.compile("^Harbour"))
    expect(row).to_contain_text("ready")  # the list below has followed by itself
    expect(page.get_by_role("row", name=re.compile("^bad.jsonl"))).to_contain_text("line 3")
    assert not axe(page), "\n".join(axe(page))
    page.get_by_role("link", name="Look at it").click()
    expect(page.get_by_text("Ferry 10 left.")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("Rows 11 to 20 of 23")).to_be_visible()
    page.reload()  # the place stands in the address
    expect(page.get_by_text("Ferry 11 left.")).to_be_visible()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    expect(page.get_by_role("link", name="Train on this").first).to_have_attribute(
        "href", re.compile(r"^/runs/new\?stage=pretrain&dataset_id=\w+$"))


def test_an_upload_can_be_cancelled(page: Page, problems: Problems) -> None:
    problems.allow("ERR_FAILED|ERR_ABORTED")
    page.goto("/datasets?add=1")
    page.route("**/api/v1/datasets", lambda route: None)  # never answered: it is on its way for ever
    choose(page, "long.txt", b"words\n" * 1000)
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_role("button", name="Cancel the upload").click()
    expect(page.get_by_text("The upload was cancelled. Nothing was stored.")).to_be_visible()
    expect(page.get_by_role("button", name="Upload", exact=True)).to_be_focused()
    assert "long.txt" not in page.locator("live-fragment").inner_text()


def test_rows_as_tokens_say_what_is_graded(page: Page) -> None:
    tools = {"tools": [{"name": "tides", "description": "High or low."}]}
    upload(page, "talk.jsonl", jsonl(dialogue("At the pier.\nIt waits.", reasoning_content="Look outside."),
                                     dialogue("船在港口。🚢") | tools))
    page.get_by_role("link", name="Look at it").click()
    expect(page.get_by_text("Look outside.")).to_be_visible()
    expect(page.get_by_text("May use tides")).to_be_visible()
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.locator('[data-opens="learn-dialog"]').first.click()
    page.get_by_label("Size of the vocabulary").fill("10")
    page.get_by_role("button", name="Learn it").click()
    expect(page.get_by_text("Give a whole number from 292 to 200,000.")).to_be_visible()
    page.get_by_label("Size of the vocabulary").fill("300")
    page.get_by_role("button", name="Learn it").click()
    tokens = page.locator("token-strip").first.get_by_role("option")
    expect(tokens.first).to_be_visible(timeout=IMPORTED_WITHIN_MS)
    shown = tokens.evaluate_all("""chips => chips.map((chip) => ({ text: chip.textContent,
        target: chip.hasAttribute("data-target"), special: chip.hasAttribute("data-special") }))""")
    said = "".join(token["text"] for token in shown)
    assert "<|im_start|>user↵Where·is·the·ferry?<|im_end|>↵<|im_start|>assistant↵" in said
    graded = "".join(token["text"] for token in shown if token["target"])
    assert graded.endswith("At·the·pier.↵It·waits.<|im_end|>↵") and "Where" not in graded
    assert {token["text"] for token in shown if token["special"]} >= {"<|im_start|>", "<|im_end|>"}
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator(".token-tip").first).to_have_text(re.compile(r"^id \d+ · read only$"))
    page.get_by_role("button", name="Count all tokens").click()
    counted = page.get_by_text("tokens in one pass over the data.")
    expect(counted).to_be_visible()
    expect(page.locator("[data-token-count]")).to_have_text((counted.text_content() or "").split(" ")[0])
    assert not axe(page), "\n".join(axe(page))
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def assert_harmless(page: Page) -> None:
    made = page.locator("main").locator("img, iframe, style, base, meta, script, input[autofocus]").count()
    assert (page.evaluate("window.pwned ?? null"), made) == (None, 0)
    assert page.locator("h1").count() == 1


def test_hostile_rows_are_text(page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a row opened a dialog: {dialog.message}"))
    name = f"<img src=x onerror='{PWNED}'>.jsonl"
    upload(page, name, jsonl(*({"text": text, text: text} for text in HOSTILE)))
    expect(page.locator("live-fragment")).to_contain_text(name)
    assert_harmless(page)
    page.get_by_role("link", name="Look at it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.locator(".preview-text")).to_have_text(HOSTILE[:10], use_inner_text=False)
    assert_harmless(page)
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("Rows 11 to 20 of 20")).to_be_visible()
    assert page.locator(".preview-text").all_text_contents() == HOSTILE[10:]
    assert_harmless(page)
    page.get_by_role("button", name="Learn a tokenizer from this").click()
    page.get_by_label("Size of the vocabulary").fill("292")
    page.get_by_role("button", name="Learn it").click()
    expect(page.locator("token-strip")).to_have_count(10, timeout=IMPORTED_WITHIN_MS)
    expect(page.locator("token-strip").last).to_contain_text("evil.example")
    expect(page.get_by_label("In the words of")).to_contain_text(f"{name} 292")
    assert_harmless(page)
    talk = [{"conversations": [
        {"role": "system", "content": text, "tools": json.dumps([{"name": text, "description": text}])},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "reasoning_content": text,
         "tool_calls": [{"name": text, "arguments": {text: text}}]}]} for text in HOSTILE]
    upload(page, "talk.jsonl", jsonl(*talk))
    page.get_by_role("link", name="Look at it").click()
    expect(page.locator(".preview-row")).to_have_count(10)
    expect(page.get_by_text(f"Calls {HOSTILE[1]}", exact=True)).to_be_visible()
    assert_harmless(page)
    page.get_by_role("button", name="Tokens", exact=True).click()
    expect(page.locator("token-strip")).to_have_count(10)
    assert_harmless(page)


def test_what_uses_a_dataset_keeps_it(page: Page, problems: Problems, studio) -> None:
    problems.allow("status of 409")
    upload(page, "kept.jsonl", jsonl({"text": "The ferry waits at the pier."}))
    page.get_by_role("link", name="Look at it").click()
    page.wait_for_url("**/datasets/*")
    id = page.url.rpartition("/")[2]
    run = studio.client.post("/runs", {"stage": "pretrain", "dataset_id": id, "config": {"preset": "tiny-cpu"}})
    studio.client.post(f"/runs/{run['id']}/cancel", {})
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Delete").click()
    expect(dialog.get_by_text("1 run uses this dataset.")).to_be_visible()
    studio.client.delete(f"/runs/{run['id']}")
    dialog.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/datasets")
    expect(page.get_by_role("link", name="kept.jsonl")).to_have_count(0)


def test_a_foreign_file_is_shown_before_it_is_sent(page: Page) -> None:
    page.goto("/datasets?add=1")
    preview = page.locator("upload-preview")
    answer = f"I am {{{{name}}}}. <img src=x onerror='{PWNED}'>"
    rows = [{"instruction": f"Who is {i}?", "input": "", "output": answer} for i in range(1200)]
    choose(page, "identity.json", json.dumps(rows).encode())
    expect(preview).to_contain_text(
        "Alpaca: instructions with answers · 1,200 rows · json · UTF-8 · read as conversations")
    expect(preview.locator(".preview-row")).to_have_count(5)
    preview.get_by_label("In the place of {{name}}").fill("Mini")
    preview.get_by_label("In the place of {{name}}").blur()
    expect(preview.locator(".preview-text").nth(1)).to_contain_text("I am Mini. <img")
    assert_harmless(page)
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("identity.json is ready: 1,200 rows.")).to_be_visible(timeout=IMPORTED_WITHIN_MS)
    page.get_by_role("link", name="Look at it").click()
    expect(page.locator(".preview-text").nth(1)).to_contain_text("I am Mini. <img")


def test_columns_that_are_not_known_are_asked_for(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/datasets?add=1")
    preview = page.locator("upload-preview")
    table = "place,asked,said\n" + "".join(f"港口{i},船几点开？,九点开。\n" for i in range(20))
    choose(page, "harbour.csv", table.encode("gbk"))
    expect(preview.get_by_text("The columns of this file are not known. Is this what they mean?")).to_be_visible()
    expect(preview.get_by_text("GB18030 (GBK), because it is not UTF-8")).to_be_visible()
    preview.get_by_label("Question").select_option("asked")
    expect(preview.locator(".preview-text").first).to_have_text("船几点开？")
    preview.get_by_label("Answer").select_option("said")
    expect(preview.locator(".preview-text").nth(1)).to_have_text("九点开。")
    assert not axe(page), "\n".join(axe(page))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.get_by_text("harbour.csv is ready: 20 rows.")).to_be_visible(timeout=IMPORTED_WITHIN_MS)
