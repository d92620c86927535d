"""What clients of ``/v1`` get: reasoning, calls, several answers, logprobs, usage; streamed and whole alike."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.inference import GenerationRequest, Reply
from app.openai import service
from minimind.tokenizer import Tokenizer
from tests.app.conftest import Api
from tests.app.openai_rig import HELLO, V1, said, scripted_v1, token
from tests.inference_rig import Broker

TOOLS = [{"type": "function", "function": {"name": "add"}}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
def v1(api: Api, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[V1]:
    monkeypatch.setattr("app.core.settings.Settings.broker_url", broker.url)
    yield from scripted_v1(api, broker, monkeypatch)


def put_together(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that a client makes of a stream, by index."""
    choices: dict[int, dict[str, Any]] = defaultdict(
        lambda: {"content": "", "reasoning": "", "calls": [], "tokens": []})
    for chunk in chunks:
        for part in chunk["choices"]:
            choice, delta = choices[part["index"]], part["delta"]
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", []):
                assert call["index"] == len(choice["calls"]) and call["type"] == "function"
                choice["calls"].append(call["function"])
            choice["tokens"] += (part["logprobs"] or {"content": []})["content"]
            assert "finish_reason" not in choice or part["finish_reason"] is None and not delta
            if part["finish_reason"]:
                choice["finish_reason"] = part["finish_reason"]
    return [choices[index] for index in sorted(choices)]


def as_put_together(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"content": c["message"]["content"] or "", "reasoning": c["message"].get("reasoning_content", ""),
             "calls": [call["function"] for call in c["message"].get("tool_calls", [])],
             "tokens": (c["logprobs"] or {"content": []})["content"], "finish_reason": c["finish_reason"]}
            for c in answer["choices"]]


@pytest.mark.parametrize("text, sent, message, reason", [
    ("Here.", {}, {"content": "Here."}, "stop"),
    ("<think>\nHm.\n</think>\n\nHere.", {}, {"content": "Here.", "reasoning_content": "Hm."}, "stop"),
    ("<think>\n\n</think>\n\nHere.", {}, {"content": "Here."}, "stop"),
    ("Hm.\n</think>\n\nHere.", {"chat_template_kwargs": {"open_thinking": True}},
     {"content": "Here.", "reasoning_content": "Hm."}, "stop"),
    ("Here.", {"chat_template_kwargs": {"open_thinking": True}, "response_format": {"type": "json_object"}},
     {"content": "Here."}, "stop"),
    ("</think> is a tag", {}, {"content": "</think> is a tag"}, "stop"),
    (CALL, {"tools": TOOLS}, {"content": None, "tool_calls": ['{"a": 1}']}, "tool_calls"),
    (f"So:\n{CALL}\n{CALL}", {"tools": TOOLS}, {"content": "So:", "tool_calls": ['{"a": 1}'] * 2}, "tool_calls"),
    (f"So:\n{CALL}\n{CALL}", {"tools": TOOLS, "parallel_tool_calls": False},
     {"content": "So:", "tool_calls": ['{"a": 1}']}, "tool_calls"),
    (CALL, {}, {"content": CALL}, "stop"), (CALL, {"tools": TOOLS, "tool_choice": "none"}, {"content": CALL}, "stop"),
    ("<tool_call>add</tool_call>", {"tools": TOOLS}, {"content": "<tool_call>add</tool_call>"}, "stop"),
])
def test_answers_are_taken_apart(v1: V1, text: str, sent: dict, message: dict, reason: str) -> None:
    v1.process.script = lambda request: said(*text)  # a character at a time
    choice = v1.chat(**sent)["choices"][0]
    calls = choice["message"].pop("tool_calls", None)
    if calls is not None:
        assert all(c["id"].startswith("call_") and set(c) == {"id", "type", "function"} for c in calls)
        assert len({c["id"] for c in calls}) == len(calls)
        choice["message"]["tool_calls"] = [c["function"]["arguments"] for c in calls]
    assert choice == {"index": 0, "message": {"role": "assistant", "refusal": None, **message},
                      "finish_reason": reason, "logprobs": None}


PIECES = ["<think>", "</think>", CALL, "<tool_call>", "</tool_call>", "\n", "so", " ", "ß", "<", "{}"]


@pytest.mark.parametrize("seed", range(12))
def test_a_stream_put_together_is_the_whole_answer(v1: V1, seed: int) -> None:
    draw = random.Random(seed)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(14))) for _ in range(3)]
    sent = {"n": 3, "seed": 0, "logprobs": True, "chat_template_kwargs": {"open_thinking": draw.random() < 0.5},
            **({"tools": TOOLS} if draw.random() < 0.7 else {})}

    def script(request: GenerationRequest) -> list[Reply]:
        rest, deltas = texts[request.sampling.seed], []
        while rest:
            size = draw.randrange(1, 9)
            deltas.append(Reply(type="delta", text=rest[:size], tokens=[token(rest[:size])]))
            rest = rest[size:]
        return said(*deltas)

    v1.process.script = script
    state = draw.getstate()
    whole = v1.chat(**sent)
    draw.setstate(state)
    chunks = v1.stream(**sent)
    streamed, plain = put_together(chunks), as_put_together(whole)
    for choice in (*streamed, *plain):
        choice["tokens"] = "".join(t["token"] for t in choice["tokens"])
    assert streamed == plain
    assert [choice["tokens"] for choice in plain] == texts, "every token, also of what was held back"


def test_the_shape_of_a_stream(v1: V1) -> None:
    v1.process.script = lambda request: said("One ", "two.", finish="length")
    chunks = v1.stream(n=2, stream_options={"include_usage": True})
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    assert chunks[-1]["choices"] == [] and all(c["usage"] is None for c in chunks[:-1])
    assert chunks[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11,
                                   "prompt_tokens_details": {"cached_tokens": 2}}, "the prompt counts once"
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        said_in = [c["delta"].get("content") for c in own[1:]]
        assert "".join(said_in[:-1]) == "One two." and all(said_in[:-1]) and said_in[-1] is None
        assert [c["finish_reason"] for c in own] == [*[None] * (len(own) - 1), "length"]
    assert [c for c in chunks if "timings" in c] == [chunks[-2]]
    assert not any("usage" in c for c in v1.stream())


def test_usage_and_timings(v1: V1) -> None:
    v1.process.script = lambda request: said("a", "b", "c", "d", "e", prompt_tokens=len(request.prompt or "....."))
    answer = v1.text(prompt=["xx", "yyyy"], n=2)
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 20, "total_tokens": 26,
                               "prompt_tokens_details": {"cached_tokens": 4}}
    timings = v1.chat()["timings"]
    assert 0 <= timings.pop("first_token_s") < 5
    assert timings == {"queue_s": 0.25, "prefill_s": 0.5, "decode_s": 2.0, "tokens_per_s": 2.0}


def test_several_prompts_in_order(v1: V1) -> None:
    v1.process.script = lambda request: said(f"<{request.prompt}{request.sampling.seed}>")
    answer = v1.text(prompt=["a", "b"], n=2, seed=5)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "<a5>"), (1, "<a6>"), (2, "<b5>"), (3, "<b6>")]
    texts: dict[int, str] = defaultdict(str)
    for chunk in v1.stream("/completions", prompt=["a", "b"], n=2, seed=5):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "<a5>", 1: "<a6>", 2: "<b5>", 3: "<b6>"}


def test_one_that_fails_ends_the_others(v1: V1) -> None:
    v1.process.pace_s = 0.01

    def script(request: GenerationRequest) -> list[Reply]:
        if request.prompt == "bad":
            return [Reply(type="error", kind="context_length", message="Too long.", param="prompt")]
        return said(*["x"] * 1000)

    v1.process.script = script
    answer = v1.post("/completions", {"prompt": ["a", "bad", "c"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    endless = {r.id for r in v1.process.asked if r.prompt != "bad"}
    v1.process.script = lambda request: said("x")
    v1.text()
    assert endless <= set(v1.process.left)


def test_log_probabilities_of_a_chat(v1: V1) -> None:
    half, rest = "ß".encode()[:1], "ß".encode()[1:]
    v1.process.script = lambda request: said(
        Reply(type="delta", text="A", tokens=[token("A", 1, -0.5, A=-0.5, B=-1.5)]),
        Reply(type="delta", text="", tokens=[token(half)]), Reply(type="delta", text="ß", tokens=[token(rest)]),
        Reply(type="delta", text="", tokens=[token("<|im_end|>", logprob=float("-inf"))]))
    logprobs = v1.chat(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert logprobs["content"][0] == {
        "token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": [
            {"token": "A", "logprob": -0.5, "bytes": [65]}, {"token": "B", "logprob": -1.5, "bytes": [66]}]}
    assert [(t["token"], t["bytes"]) for t in logprobs["content"][1:3]] == [("\ufffd", [0xC3]), ("\ufffd", [0x9F])]
    assert logprobs["content"][3]["logprob"] == -9999, "JSON knows no infinity"
    chunks = v1.stream(logprobs=True, top_logprobs=2)
    assert put_together(chunks)[0]["tokens"] == logprobs["content"]
    with_text = [c["choices"][0] for c in chunks if c["choices"][0]["delta"].get("content")]
    for part in with_text:  # however many pieces came at once
        spelt = b"".join(bytes(t["bytes"]) for t in part["logprobs"]["content"]).decode()
        assert spelt.startswith(part["delta"]["content"]), "half a letter waits for its text"


def test_log_probabilities_of_a_text(v1: V1) -> None:
    """As lm-evaluation-harness reads them: an entry a token, the first of the prompt null."""
    half, rest = "ß".encode()[:1], "ß".encode()[1:]
    prompt = [token("The", logprob=None), token(half, logprob=-2.0), token(rest, logprob=-3.0, lamp=-0.25)]
    last = Reply(type="delta", text=" x", tokens=[token(" x", logprob=-1.0, y=-0.5)])
    v1.process.script = lambda request: said(last, prompt=prompt if request.echo else None)
    choice = v1.text(prompt=[5, 6, 7], echo=True, logprobs=1, max_tokens=1)["choices"][0]
    assert choice["text"] == "Theß x"
    assert choice["logprobs"] == {
        "tokens": ["The", "bytes:\\xc3", "bytes:\\x9f", " x"], "token_logprobs": [None, -2.0, -3.0, -1.0],
        "top_logprobs": [None, {"bytes:\\xc3": -2.0}, {"lamp": -0.25, "bytes:\\x9f": -3.0}, {"y": -0.5, " x": -1.0}],
        "text_offset": [0, 3, 3, 4]}
    pieces = [c["choices"][0] for c in v1.stream("/completions", prompt=[5, 6, 7], echo=True, logprobs=1)]
    assert "".join(p["text"] for p in pieces) == choice["text"]
    for key, entries in choice["logprobs"].items():
        assert [e for p in pieces if p["logprobs"] for e in p["logprobs"][key]] == entries
    assert v1.text(prompt="Theß", echo=True)["choices"][0] == {**choice, "logprobs": None}
    assert v1.text(prompt=[5, 6, 7], echo=True)["choices"][0] == {**choice, "logprobs": None}
    bare = v1.text(prompt="The", logprobs=1)["choices"][0]
    assert (bare["text"], bare["logprobs"]["text_offset"], bare["logprobs"]["tokens"]) == (" x", [0], [" x"])
    v1.process.script = lambda request: said(prompt=prompt, finish="length")
    nothing = v1.text(prompt="Theß", echo=True, logprobs=0, max_tokens=0)
    assert nothing["choices"][0]["text"] == "Theß" and len(nothing["choices"][0]["logprobs"]["tokens"]) == 3
    assert nothing["choices"][0]["finish_reason"] == "length" and nothing["usage"]["completion_tokens"] == 0


def test_an_answer_that_is_continued(v1: V1) -> None:
    def go_on(text: str, **last: str) -> dict[str, Any]:
        v1.process.script = lambda request: said(*text)
        message = v1.chat(messages=[*HELLO, {"role": "assistant", **last}], continue_final_message=True)
        return message["choices"][0]["message"]

    assert go_on("\n on", content="It is")["content"] == "\n on", "joined to what was there"
    assert go_on("<think>x", content="It is")["content"] == "<think>x"
    thought = go_on(" so.\n</think>\n\nHere.", reasoning_content="Hm,")
    assert (thought["reasoning_content"], thought["content"]) == ("so.", "Here.")
    assert go_on(" so</think>Here.", content="<think>\nHm,")["content"] == "Here."


@pytest.mark.parametrize("template, wanted, opens", [
    (None, False, False), (None, True, True),
    ("{{ '<|im_start|>assistant\n' }}", True, False),  # as Qwen3's: the model opens the block by itself
    ("{{ '<|im_start|>assistant\n<think>\n' }}", False, True),  # as DeepSeek R1's
    ("{{ '<think>\n\n</think>\n\n' if not open_thinking else '<think>\n' }}", False, False),
])
def test_whether_the_prompt_opens_the_block_is_the_template_s(tmp_path: Path, template: str | None, wanted: bool,
                                                              opens: bool) -> None:
    tokenizer = Tokenizer.train(["The lamp is green."], 420)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save(tmp_path)
    checkpoint = service.Checkpoint(path=str(tmp_path))
    assert service.opens_thinking(checkpoint, wanted) is opens
    assert service.opens_thinking(service.Checkpoint(path=str(tmp_path / "lost")), wanted) is wanted


def test_models_name_their_context_where_it_is_known(v1: V1, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = v1.api.http.get("/v1/models").json()["data"]
    assert [m["max_model_len"] for m in listed] == [None], "its files lie elsewhere"
    assert json.dumps(listed[0])
