"""Adapters as people meet them: brought in, chosen beside a model, exported. Real checkpoints, nothing made up."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.core.db import engine_for, session_factory, transaction
from app.core.models import LOCAL_ADMIN_ID, Checkpoint, Run
from minimind.formats.adapter_files import write_peft
from minimind.formats.adapters import read_adapter
from tests.browser.pages import axe
from tests.checkpoint_rig import make_adapter, make_checkpoint
from tests.integration.studio import RunningStudio

BASE = "ckptbasemodel"


@pytest.fixture(scope="module")
def peft(studio: RunningStudio) -> Iterator[Path]:
    """A run whose checkpoint is a base, and an adapter for it as peft saves one, which the studio does not know."""
    url = studio.database_url
    place = studio.data_dir / "runs" / "runbase"
    base = make_checkpoint(place / "checkpoints" / "step-00000020-a1", seed=1)
    with transaction(session_factory(url)) as session:
        at = time.time()
        session.add(Run(id="runbase", name="Plain words", user_id=LOCAL_ADMIN_ID, stage="pretrain", config={},
                        devices="auto", state="completed", created_at=at, updated_at=at, ended_at=at))
        session.flush()
        session.add(Checkpoint(id=BASE, run_id="runbase", attempt=1, stage="pretrain", step=20, tokens=1, bytes=1,
                               path=str(base), state="ready", created_at=at))
    engine_for(url).dispose()
    adapter = make_adapter(place / "made", base, seed=3)
    yield write_peft(place / "peft", *read_adapter(adapter))


def ask(page: Page, text: str) -> str:
    """The answer to ``text``, when it is whole."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=60_000)
    return page.locator(".message.assistant .said").last.inner_text()


def test_an_adapter_is_brought_in_chosen_and_taken_along(page: Page, studio: RunningStudio, peft: Path) -> None:
    page.goto("/checkpoints")
    page.get_by_role("button", name="Import", exact=True).click()
    dialog = page.get_by_role("dialog", name="Import a model or an adapter")
    assert not axe(page), "\n".join(axe(page))
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog.get_by_text("Choose a file first.")).to_be_visible()
    dialog.get_by_label("Files").set_input_files(sorted(peft.iterdir()))
    dialog.get_by_label("Name").fill("Pirate")
    page.route("**/api/v1/checkpoints/import", lambda route: None)  # nothing is answered
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog.get_by_role("button", name="Cancel the import")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("The upload was cancelled. Nothing was stored.")).to_be_visible()
    expect(dialog.get_by_role("button", name="Import", exact=True)).to_be_focused()
    page.unroute_all()
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog.get_by_text("This is an adapter, which changes a model and is none by itself.")).to_be_visible(
        timeout=60_000)
    dialog.get_by_label("Model that the adapter was trained on").select_option(BASE)
    dialog.get_by_role("button", name="Import", exact=True).click()
    expect(dialog.get_by_text("The adapter is here.")).to_be_visible(timeout=60_000)
    expect(dialog.get_by_role("link", name="Chat with it")).to_be_focused()
    dialog.get_by_role("link", name="Show it").click()
    expect(page.get_by_role("heading", level=1, name="Pirate")).to_be_visible()
    [adapter] = studio.client.get("/checkpoints")["items"][:1]
    assert adapter["run_name"] == "Pirate" and adapter["stage"] == "lora"

    page.goto(f"/chat?checkpoint={BASE}")
    expect(page.get_by_role("button", name="Continue text")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill("8")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Chat", exact=True).click()
    plain = ask(page, "Who are you?")
    menu = page.get_by_label("Adapter over the model")
    page.get_by_label("Model that answers").focus()
    page.keyboard.press("Tab")
    expect(menu).to_be_focused()
    menu.select_option(label="+ Pirate · step 0")
    expect(page.get_by_role("button", name="Chat", exact=True)).to_have_attribute("aria-pressed", "true")
    changed = ask(page, "Who are you?")
    assert changed and changed != plain
    expect(page.get_by_text("Plain words, step 20 + Pirate, step 0").last).to_be_visible()
    page.wait_for_url(re.compile(r"/chat/[\w-]{12}$"))
    id = page.url.rpartition("/")[2]
    deadline = time.monotonic() + 10
    while (kept := studio.client.get(f"/conversations/{id}"))["adapter_checkpoint_id"] != adapter["id"] \
            or len(kept["messages"]) != 4 or not kept["messages"][-1]["finish_reason"]:
        assert time.monotonic() < deadline, kept
        page.wait_for_timeout(100)
    assert [m["adapter_checkpoint_id"] for m in kept["messages"]] == [None, None, None, adapter["id"]]
    page.reload()
    expect(menu).to_have_value(adapter["id"])
    for width, scheme in ((390, "dark"), (390, "light"), (1280, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert not axe(page), "\n".join(axe(page))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_label("Model that answers").select_option(adapter["id"])
    expect(menu).to_be_hidden()

    page.goto("/checkpoints")
    page.get_by_role("button", name="Export step 0 of Pirate").click()
    page.get_by_role("button", name="Adapter for peft").click()
    link = page.get_by_role("link", name="Download Adapter for peft")
    expect(link).to_be_visible(timeout=60_000)
    assert not axe(page), "\n".join(axe(page))
    with page.expect_download() as download:
        link.click()
    with zipfile.ZipFile(io.BytesIO(download.value.path().read_bytes())) as archive:
        assert sorted(archive.namelist()) == [f"Pirate-step-0/{p.name}" for p in sorted(peft.iterdir())]
        [weights] = [n for n in archive.namelist() if n.endswith(".safetensors")]
        assert archive.read(weights) == (peft / "adapter_model.safetensors").read_bytes()
    page.get_by_role("button", name="Adapter for MiniMind").click()
    expect(page.get_by_text("Upstream has adapters beside q_proj and o_proj alone")).to_be_visible(timeout=60_000)


def test_an_export_is_made_listed_and_deleted(page: Page, studio: RunningStudio, peft: Path) -> None:
    """Its size is told before; what runs it is there to copy; one that waits can be cancelled."""
    page.goto("/checkpoints")
    menu = page.get_by_role("group", name="Export step 20 of Plain words")
    page.get_by_role("button", name="Export step 20 of Plain words").click()
    expect(menu.get_by_role("button", name="GGUF file, small")).to_contain_text("about 48.2 kB")
    menu.get_by_role("button", name="GGUF file, small").click()
    expect(menu.get_by_role("link", name="Download GGUF file, small")).to_be_visible(timeout=60_000)
    menu.get_by_text("Modelfile", exact=True).click()
    with page.expect_download() as download:
        menu.get_by_role("link", name="Download", exact=True).click()
    assert download.value.suggested_filename == "Plain-words-step-20-q8_0.Modelfile"
    assert download.value.path().read_text().startswith("FROM ./Plain-words-step-20-q8_0.gguf\n")
    page.route("**/api/v1/exports/*", lambda route: route.fulfill(json={**made, "state": "running", "progress": {
        "done": 3_000_000, "total": 9_000_000, "unit": "bytes", "message": "Writing the weights"}}))
    [made] = [one for one in studio.client.get("/exports")["items"] if one["format"] == "gguf"]
    page.route("**/api/v1/checkpoints/*/export", lambda route: route.fulfill(status=202, json={
        **made, "state": "running", "progress": {}}))
    menu.get_by_role("button", name="GGUF file, small").click()
    expect(menu.get_by_text("Writing the weights · 3 MB of 9 MB")).to_be_visible()
    assert menu.get_by_role("progressbar").get_attribute("value") == "3000000"
    page.route("**/api/v1/jobs/*/cancel", lambda route: route.fulfill(status=202, json={}))
    menu.get_by_role("button", name="Cancel the export").click()
    page.route("**/api/v1/exports/*", lambda route: route.fulfill(json={**made, "state": "failed", "error": {
        "message": "Cancelled.", "hint": None}}))
    expect(menu.get_by_text("It was cancelled.")).to_be_visible()
    page.unroute_all()

    menu.get_by_role("link", name="Exports made of it").click()
    expect(page.get_by_role("heading", level=1, name="Exports")).to_be_visible()
    row = page.get_by_role("row", name="Plain-words-step-20-q8_0.gguf")
    row.get_by_text("How to run it").click()
    expect(row.get_by_text("llama-server -m Plain-words-step-20-q8_0.gguf")).to_be_visible()
    for width, scheme in ((390, "dark"), (1440, "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert not axe(page), "\n".join(axe(page))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    with page.expect_download() as download:
        row.get_by_role("link", name="Download Plain-words-step-20-q8_0.gguf").click()
    assert download.value.path().stat().st_size == made["bytes"]
    row.get_by_role("button", name="Delete the export").click()
    expect(page.get_by_text("Nothing has been exported yet")).to_be_visible()
    assert made["id"] not in [one["id"] for one in studio.client.get("/exports")["items"]]
