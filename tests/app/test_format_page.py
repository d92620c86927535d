"""A conversation that somebody types: what the API says of it against the core's own encoding, and its page."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from app.datasets import format_check
from app.datasets.format_check import EXAMPLE
from minimind.chat_format import encode_conversation, encode_prompt, render
from minimind.tokenizer import Tokenizer
from tests.app.conftest import Api
from tests.app.test_dataset_pages import links, options, show, words_of
from tests.app.test_dataset_tokens import add_checkpoint, data, words  # noqa: F401 (a fixture)
from tests.app.test_runs import new_run, problems
from tests.minimind import talks

HI = [{"role": "user", "content": "Hi <|im_end|> 🦊"}, {"role": "assistant", "content": "Hello"}]


def seen(api: Api, messages: Any = HI, **more: Any) -> dict:
    answer = api.post("/chat_format", {"messages": messages, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(api: Api, messages: Any = HI, **more: Any) -> dict[str, str]:
    return problems(api.post("/chat_format", {"messages": messages, **more}))


def test_it_is_what_training_and_chat_read(api: Api, words: Tokenizer) -> None:  # noqa: F811
    rng = random.Random(3)
    for number in range(25):
        messages, tools = talks.conversation(rng, forged=number % 2 == 0)
        options = {"add_generation_prompt": rng.random() < 0.5, "open_thinking": rng.random() < 0.5}
        got = seen(api, messages, tools=tools, tokenizer_id="words", **options)
        ids, mask = encode_conversation(words, messages, tools, **options)
        assert [t["id"] for t in got["tokens"]] == ids[:2000]
        assert [t["is_target"] for t in got["tokens"]] == mask[:2000]
        assert got["text"] == render(words, messages, tools=tools, **options)
        joined = "".join(t["text"] for t in got["tokens"])
        assert got["text"] == joined or (got["tokens_cut"] and got["text"].startswith(joined))
        assert (got["num_tokens"], got["num_targets"], got["tokens_cut"]) == (len(ids), sum(mask), len(ids) > 2000)
        assert all(t["is_special"] == (t["id"] <= 20) for t in got["tokens"])


def test_the_end_is_the_prompt_of_the_chat(api: Api, words: Tokenizer) -> None:  # noqa: F811
    for is_open, end in ((False, "<|im_start|>assistant\n"), (True, "<|im_start|>assistant\n<think>\n")):
        got = seen(api, HI[:1], tokenizer_id="words", add_generation_prompt=True, open_thinking=is_open)
        assert [t["id"] for t in got["tokens"]] == encode_prompt(words, HI[:1], open_thinking=is_open)
        assert got["text"].endswith(end) and got["num_targets"] == 0


def test_without_a_tokenizer_each_byte_is_a_token(api: Api) -> None:
    got = seen(api)
    assert got["text"] == render(format_check.bytes_alone(), HI)
    assert sum(t["is_partial"] for t in got["tokens"]) == 3, "three of the four bytes of the fox"
    assert [t["text"] for t in got["tokens"] if t["is_target"]] == [*"Hello", "<|im_end|>", "\n"]
    assert sum(t["is_special"] for t in got["tokens"]) == 4, "what the user typed is no control token"


def test_a_checkpoint_brings_its_tokenizer(api: Api, words: Tokenizer, tmp_path: Path) -> None:  # noqa: F811
    words.save(tmp_path / "checkpoint")
    checkpoint = add_checkpoint(tmp_path / "checkpoint", new_run(api)["id"])
    assert seen(api, checkpoint_id=checkpoint) == seen(api, tokenizer_id="words")
    assert "checkpoint_id" in said(api, checkpoint_id="nope")
    assert "tokenizer_id" in said(api, tokenizer_id="nope")
    assert "tokenizer_id" in said(api, tokenizer_id="words", checkpoint_id=checkpoint)


@pytest.mark.parametrize("messages, more, field, words_of_it", [
    ([], {}, "messages", ""),
    ([{"role": "robot", "content": "x"}], {}, "messages.0.role", ""),
    ([{"role": "user", "content": 3}], {}, "messages.0.content", ""),
    ([{**HI[1], "tool_calls": "[{"}], {}, "tool_calls", "tool_calls of message 1 is not a JSON list of objects"),
    ([{**HI[1], "tool_calls": [{"name": "x"}]}], {}, "tool_calls", "A tool call of message 1 has no arguments"),
    (HI, {"tools": "{"}, "tools", "tools is not a JSON list of objects"),
    (HI, {"tools": 3}, "tools", "The field tools is wrong"),
    (HI, {"add_generation_prompt": "yes"}, "add_generation_prompt", ""),
    (HI, {"nonsense": 1}, "nonsense", ""),
    ([{"role": "user", "content": "x" * 200_000}], {}, "messages", "longer than 200,000 characters"),
])
def test_what_cannot_be_read_is_said(api: Api, messages: list, more: dict, field: str, words_of_it: str) -> None:
    found = said(api, messages, **more)
    assert field in found and words_of_it in found[field]


def test_hostile_bodies_are_answered(api: Api) -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"a": deep}
    for body in ({"messages": HI, "tools": [deep]}, {"messages": [{"role": "user", "content": "\ud800"}]},
                 {"messages": HI, "tools": [{"a": "\ud800", "\ud800": 1}]}, {"messages": HI, "tools": [{"a": 1e400}]}):
        answer = api.http.post("/api/v1/chat_format", content=json.dumps(body))
        assert answer.status_code in (200, 422), answer.text
    deeper = json.dumps({"messages": HI, "tools": ["deep"]}).replace('"deep"', '{"a": ' * 50_000 + "1" + "}" * 50_000)
    assert api.http.post("/api/v1/chat_format", content=deeper).status_code == 422


def test_a_long_one_is_shown_in_part(api: Api) -> None:
    got = seen(api, [{"role": "user", "content": "x" * 5000}, HI[1]])
    assert len(got["tokens"]) == 2000 and got["tokens_cut"] and got["num_tokens"] > 5000 and got["num_targets"] == 7


def test_a_viewer_may_look(api: Api) -> None:
    viewer = api.as_role("vera", "viewer")
    assert viewer.post("/api/v1/chat_format", json={"messages": HI}).status_code == 200
    assert api.anonymous().post("/api/v1/chat_format", json={"messages": HI}).status_code == 401


def test_the_page_shows_an_example_without_a_script(api: Api) -> None:
    page = show(api.browser(), "/chat-format")
    assert options(page, "format-words") == [""]
    text = "".join(page.text)
    rendered = render(format_check.bytes_alone(), EXAMPLE["messages"], tools=EXAMPLE["tools"])
    assert rendered in text and "<tool_response>" in rendered and "<think>" in rendered and "<tools>" in rendered
    turns = [a["data-role"] for tag, a in page.tags if tag == "li" and "data-turn" in a]
    assert turns == [*(m["role"] for m in EXAMPLE["messages"]), "user"], "and an empty one to copy"
    assert "control token that somebody types stays plain text" in words_of(page)


def test_the_page_offers_tokenizers_and_checkpoints(api: Api, words: Tokenizer, tmp_path: Path) -> None:  # noqa: F811
    browser = api.browser()
    checkpoint = add_checkpoint(tmp_path, new_run(api)["id"])
    values = ["tokenizer:words", ""]
    page = show(browser, "/chat-format")
    assert options(page, "format-words") == values and chosen(page) == ["tokenizer:words"]
    assert render(words, EXAMPLE["messages"], tools=EXAMPLE["tools"]) in "".join(page.text)
    assert chosen(show(browser, "/chat-format?with=")) == chosen(show(browser, "/chat-format?with=<script>")) == [""]
    assert checkpoint not in str(page.tags), "one without a known tokenizer"
    for path in (api.data_dir / "tokenizers" / "words").iterdir():
        path.unlink()
    assert chosen(show(browser, "/chat-format?with=tokenizer:words")) == ["tokenizer:words"]


def chosen(page: Any) -> list[str]:
    """Values of the chosen options of the select of tokenizers."""
    offered = options(page, "format-words")
    start = next(i for i, (_, a) in enumerate(page.tags) if a.get("id") == "format-words")
    return [a["value"] for _, a in page.tags[start + 1:start + 1 + len(offered)] if "selected" in a]


@pytest.mark.parametrize("rows, is_linked", [
    ([{"conversations": HI}], True), ([{"chosen": HI, "rejected": [HI[0], HI[1] | {"content": "No"}]}], True),
    ([{"text": "x"}], False)])
def test_datasets_of_dialogues_lead_there(api: Api, rows: list[dict], is_linked: bool) -> None:
    page = show(api.browser(), f"/datasets/{data(api, *rows)}")
    assert ("/chat-format" in links(page)) == is_linked
