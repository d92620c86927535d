"""What each field of a request to ``/v1`` makes the inference process do, and which ones are refused and how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.core.inference import Constraint, GenerationRequest
from tests.app.conftest import Api
from tests.app.openai_rig import HELLO, MODEL, V1, failed, said, scripted_v1
from tests.inference_rig import Broker

ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "strict": True,
                                        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
LOOK = {"type": "function", "function": {"name": "look"}}
SHOWN_ADD = {"type": "function", "function": {k: v for k, v in ADD["function"].items() if k != "strict"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.fixture
def v1(api: Api, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[V1]:
    monkeypatch.setattr("app.core.settings.Settings.broker_url", broker.url)
    yield from scripted_v1(api, broker, monkeypatch)


def test_sampling(v1: V1) -> None:
    for sent, expected in (
            ({}, {"temperature": 0.7, "top_p": 0.92, "max_tokens": None, "seed": None}),
            ({"temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 5},
             {"temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 5}),
            ({"temperature": 2, "presence_penalty": -2, "frequency_penalty": 1.5, "ignore_eos": True},
             {"temperature": 2, "presence_penalty": -2, "frequency_penalty": 1.5, "ignore_eos": True}),
            ({"top_p": 0, "top_k": -1}, {"temperature": 0, "top_p": 1, "top_k": 0}),
            ({"logit_bias": {"15": -100, "7": 2.5}}, {"logit_bias": {15: -100, 7: 2.5}}),
            ({"max_tokens": 5}, {"max_tokens": 5}), ({"max_completion_tokens": 6}, {"max_tokens": 6}),
            ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
            ({"stop": "a"}, {"stop": ["a"]}), ({"stop": ["a", "", "b"]}, {"stop": ["a", "b"]}),
            ({"seed": None, "stop": None, "n": None, "logit_bias": None}, {"seed": None, "stop": []})):
        v1.chat(**sent)
        sampling = v1.process.last.sampling.model_dump()
        assert {name: sampling[name] for name in expected} == expected, sent
    v1.text(top_k=3, stop="x", max_tokens=0)
    sampling = v1.process.last.sampling
    assert (sampling.top_k, sampling.stop, sampling.max_tokens) == (3, ["x"], 0)
    v1.text()
    assert v1.process.last.sampling.max_tokens == 16, "OpenAI's default"


def test_messages_reach_the_template(v1: V1) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    v1.chat(messages=[
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": "Hi", "name": "me", "cache_control": {"type": "ephemeral"}},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "x", "arguments": "no JSON"}}]},
        {"role": "user", "content": "And?", "reasoning_content": "not the user's"}])
    assert v1.process.last.messages == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.",
         "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "",
         "tool_calls": [{"type": "function", "function": {"name": "x", "arguments": "no JSON"}}]},
        {"role": "user", "content": "And?"}]
    assert v1.process.last.checkpoint == "/nowhere/one" and v1.process.last.adapter is None


def test_switches_of_a_conversation(v1: V1) -> None:
    assert not v1.process.asked
    v1.chat()
    assert not v1.process.last.open_thinking and not v1.process.last.continue_final
    for switch in ("open_thinking", "enable_thinking"):
        v1.chat(chat_template_kwargs={switch: True})
        assert v1.process.last.open_thinking
    v1.chat(messages=[*HELLO, {"role": "assistant", "content": "It is"}], continue_final_message=True,
            add_generation_prompt=False)
    assert v1.process.last.continue_final and v1.process.last.messages[-1]["content"] == "It is"
    v1.chat(chat_template_kwargs={"open_thinking": True}, response_format={"type": "json_object"})
    assert not v1.process.last.open_thinking, "what has a form begins with it"


@pytest.mark.parametrize("sent, tools, constraint", [
    ({"tools": [ADD, LOOK]}, [SHOWN_ADD, LOOK], None),
    ({"tools": [ADD], "tool_choice": "auto"}, [SHOWN_ADD], None),
    ({"tools": [ADD], "tool_choice": "none"}, None, None),
    ({"tools": []}, None, None), ({"tool_choice": "auto"}, None, None),
    ({"tools": [ADD, LOOK], "tool_choice": "required"}, [SHOWN_ADD, LOOK],
     Constraint(kind="tools", tools=[SHOWN_ADD, LOOK], parallel=True)),
    ({"tools": [ADD], "tool_choice": "required", "parallel_tool_calls": False}, [SHOWN_ADD],
     Constraint(kind="tools", tools=[SHOWN_ADD])),
    ({"tools": [ADD, LOOK], "tool_choice": {"type": "function", "function": {"name": "look"}},
      "response_format": {"type": "json_object"}}, [SHOWN_ADD, LOOK], Constraint(kind="tools", tools=[LOOK])),
    ({"response_format": {"type": "text"}}, None, None),
    ({"response_format": {"type": "json_object"}}, None, Constraint(kind="json_object")),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}}, None,
     Constraint(kind="json_schema", schema=SCHEMA)),
])
def test_tools_and_forms(v1: V1, sent: dict[str, Any], tools: Any, constraint: Constraint | None) -> None:
    v1.chat(**sent)
    assert (v1.process.last.tools, v1.process.last.constraint) == (tools, constraint)


def test_log_probabilities_and_echo(v1: V1) -> None:
    def asked() -> tuple[int | None, bool]:
        return v1.process.last.logprobs, v1.process.last.echo

    v1.chat()
    assert asked() == (None, False)
    v1.chat(logprobs=True)
    assert asked() == (0, False)
    v1.chat(logprobs=True, top_logprobs=20)
    assert asked() == (20, False)
    v1.chat(logprobs=False, top_logprobs=0)
    assert asked() == (None, False)
    for sent, expected in (({}, (None, False)), ({"logprobs": 3}, (3, False)), ({"logprobs": 0}, (0, False)),
                           ({"echo": True, "logprobs": 1}, (1, True)), ({"echo": True}, (None, False)),
                           ({"echo": True, "prompt": [5]}, (0, True)), ({"prompt": [5]}, (None, False))):
        v1.text(**sent)
        assert asked() == expected, sent


def asked_for(request: GenerationRequest) -> str:
    return str(request.prompt or request.prompt_ids)


@pytest.mark.parametrize("prompt, texts, ids", [
    ("a", ["a"], [None]), (["a"], ["a"], [None]), (["a", "b"], ["a", "b"], [None, None]),
    ([5, 0], [None], [[5, 0]]), ([[5], [7, 8]], [None, None], [[5], [7, 8]]),
])
def test_prompts(v1: V1, prompt: Any, texts: list, ids: list) -> None:
    v1.text(prompt=prompt)
    asked = v1.process.asked
    assert sorted(asked_for(r) for r in asked) == sorted(str(text or of) for text, of in zip(texts, ids))
    assert all(r.messages is None for r in asked)


def test_each_of_several_answers_draws_with_a_seed_of_its_own(v1: V1) -> None:
    v1.chat(n=3, seed=10)
    assert sorted(r.sampling.seed for r in v1.process.asked) == [10, 11, 12]
    v1.process.asked.clear()
    v1.text(prompt=["a", "b"], n=2, seed=2**63 - 1)
    assert sorted((r.prompt, r.sampling.seed) for r in v1.process.asked) == [
        ("a", 0), ("a", 2**63 - 1), ("b", 0), ("b", 2**63 - 1)], "two prompts are no two draws"


def test_unknown_fields_are_ignored(v1: V1) -> None:
    v1.chat(user="me", metadata={"a": 1}, store=False, reasoning={}, cache_control={}, never_heard_of=[[]],
            service_tier="auto", stream_options={"include_usage": True, "x": 1}, tools=None, logprobs=None)
    v1.text(user="me", best_of=1, suffix="", logit_bias={}, never_heard_of=[1])


CHAT, TEXT = "/chat/completions", "/completions"
FUNCTION = {"type": "function", "function": {"name": "f"}}


def deep(levels: int) -> dict:
    return {"a": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize("path, changes, param, said_of_it", [
    (CHAT, {"n": 0}, "n", "greater than"), (CHAT, {"n": 17}, "n", "less than"), (CHAT, {"n": "x"}, "n", "integer"),
    (CHAT, {"logit_bias": {"a": 1}}, "logit_bias", "no token id"),
    (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias", "no token id"),
    (CHAT, {"logit_bias": {"1": 101}}, "logit_bias", "-100 to 100"),
    (CHAT, {"logit_bias": {"1": "x"}}, "logit_bias", "-100 to 100"),
    (CHAT, {"logit_bias": [1]}, "logit_bias", "object"), (CHAT, {"seed": 2**63}, "seed", "less than"),
    (CHAT, {"seed": 1.5}, "seed", "integer"), (CHAT, {"min_p": 1.1}, "min_p", "less than"),
    (CHAT, {"presence_penalty": 2.1}, "presence_penalty", "less than"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty", "greater than"),
    (CHAT, {"stop": ["a"] * 17}, "stop", "at most 16"), (CHAT, {"max_tokens": 0}, "max_tokens", "greater"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "logprobs = true"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than"),
    (CHAT, {"functions": [{}]}, "functions", "send tools"),
    (CHAT, {"tools": "x"}, "tools", "list"), (CHAT, {"tools": [{"type": "web_search"}]}, "tools", "only functions"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools", "field function"),
    (CHAT, {"tools": [{"function": {"name": "a b"}}]}, "tools", "needs a name"),
    (CHAT, {"tools": [FUNCTION, FUNCTION]}, "tools", "two tools"),
    (CHAT, {"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools", "JSON Schema"),
    (CHAT, {"tools": [{"function": {"name": "f", "parameters": deep(40)}}]}, "tools", "nested deeper"),
    (CHAT, {"tools": [{"function": {"name": "f", "description": "x" * 200_000}}]}, "tools", "characters"),
    (CHAT, {"tools": [FUNCTION] * 129}, "tools", "at most 128"),
    (CHAT, {"tool_choice": "required"}, "tool_choice", "no tools"),
    (CHAT, {"tools": [FUNCTION], "tool_choice": "maybe"}, "tool_choice", "none, auto, required"),
    (CHAT, {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice",
     "no tool 'g'"),
    (CHAT, {"response_format": {"type": "grammar"}}, "response_format", "not known"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format", "field schema"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": deep(40)}}}, "response_format",
     "nested deeper"),
    (CHAT, {"continue_final_message": True}, "continue_final_message", "assistant's"),
    (CHAT, {"messages": [{"role": "user", "content": "half a \ud800 pair"}]}, "messages.0.content", "surrogate"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages.0.tool_calls", "name"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "image_url"),
    (CHAT, {"stop": ["\udfff"]}, "stop.0", "surrogate"),
    (TEXT, {"prompt": ""}, "prompt", "empty"), (TEXT, {"prompt": []}, "prompt", "empty"),
    (TEXT, {"prompt": [[]]}, "prompt", "empty"), (TEXT, {"prompt": [1, "a"]}, "prompt", "list of such lists"),
    (TEXT, {"prompt": [-1]}, "prompt", "list of such lists"), (TEXT, {"prompt": 5.5}, "prompt", "list of such lists"),
    (TEXT, {"prompt": None}, "prompt", "required"), (TEXT, {"suffix": "x"}, "suffix", "only continues"),
    (TEXT, {"best_of": 2}, "best_of", "value of n"), (TEXT, {"prompt": ["a"] * 65, "n": 2}, "prompt", "128"),
    (TEXT, {"logprobs": 21}, "logprobs", "less than"), (TEXT, {"max_tokens": -1}, "max_tokens", "greater"),
])
def test_what_is_refused(v1: V1, path: str, changes: dict, param: str, said_of_it: str) -> None:
    body = {"model": MODEL, "messages": HELLO, "prompt": "x", **changes}
    answer = v1.api.http.post(f"/v1{path}", content=json.dumps(body))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert said_of_it in error["message"] and error["message"].endswith(".") and not v1.process.asked
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [
    '{"model": "x", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', '{"temperature": 1e999}'])
def test_numbers_that_are_none(v1: V1, body: str) -> None:
    assert v1.api.http.post("/v1/chat/completions", content=body).status_code == 400


@pytest.mark.parametrize("kind, status, retries", [
    ("request", 400, False), ("context_length", 400, False), ("busy", 429, True), ("checkpoint", 503, False),
    ("internal", 500, False)])
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_process_refuses_has_its_status(v1: V1, kind: str, status: int, retries: bool, stream: bool) -> None:
    v1.process.script = lambda request: [failed(kind, "It cannot be.", "response_format")]
    answer = v1.post("/chat/completions", {"messages": HELLO, "stream": stream, "n": 2})
    error = answer.json()["error"]
    assert (answer.status_code, error["message"], error["param"]) == (status, "It cannot be.", "response_format")
    assert ("retry-after" in answer.headers) is retries


def test_a_failure_in_the_middle(v1: V1) -> None:
    v1.process.script = lambda request: [*said("One ")[:2], failed("internal", "It broke.")]
    assert v1.post("/chat/completions", {"messages": HELLO}).status_code == 500
    answer = v1.post("/chat/completions", {"messages": HELLO, "stream": True})
    events = answer.text.split("\n\n")
    assert answer.status_code == 200
    assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == "It broke."
    assert "[DONE]" not in answer.text


def test_a_body_of_ten_megabytes_is_a_413(v1: V1) -> None:
    answer = v1.api.http.post("/v1/chat/completions", content=b" " * 10_000_000)
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "invalid_request_error"
    said_nothing_of_its_size = v1.api.http.post("/v1/chat/completions", content=(b" " * 100_000 for _ in range(100)))
    assert said_nothing_of_its_size.status_code == 413


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/audio/speech", "/v1/tokenize"])
def test_what_is_not_served_is_a_404(api: Api, path: str) -> None:
    answer = api.http.post(path, json={})
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
    assert answer.json()["error"]["code"] == "unknown_url"
