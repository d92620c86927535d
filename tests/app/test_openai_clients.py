"""What the official clients can do with ``/v1``, unmodified, against the real web and inference processes.

The model has learnt nothing: what it says is noise, and of the form that was asked for.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import BaseModel

from minimind.engine import Engine
from tests.app.test_openai import HELLO, NEW, Studio, studio  # noqa: F401 - the fixture

openai = pytest.importorskip("openai", reason="openai is not installed")

CALCULATE = {"type": "function", "function": {
    "name": "calculate", "description": "Calculates.", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99},
                                         "how": {"enum": ["plus", "minus"]}},
        "required": ["a", "how"], "additionalProperties": False}}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {}, "additionalProperties": False}}}


class Lamp(BaseModel):
    colour: Literal["green", "red"]
    number: Literal[1, 2, 3]
    is_lit: bool


@pytest.fixture
def client(studio: Studio) -> openai.OpenAI:  # noqa: F811
    return studio.client()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The same checkpoint as the studio's newest one."""
    from tests.checkpoint_rig import make_checkpoint

    return Engine.from_checkpoint(make_checkpoint(tmp_path_factory.mktemp("same") / "new", seed=1))


def test_answers_are_parsed_into_a_class(client: openai.OpenAI) -> None:
    made = client.chat.completions.parse(model=NEW, messages=HELLO, response_format=Lamp, temperature=1.0, seed=1,
                                         max_tokens=200)
    assert isinstance(made.choices[0].message.parsed, Lamp) and made.choices[0].finish_reason == "stop"
    assert " " not in made.choices[0].message.content.replace("is lit", "")
    plain = client.chat.completions.create(model=NEW, messages=HELLO, response_format={"type": "json_object"},
                                           max_tokens=30, seed=1)
    assert plain.choices[0].message.content.startswith("{")


def test_a_demanded_tool_is_called(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model=NEW, messages=HELLO, tools=[CALCULATE, LOOK], tool_choice="required",
                                          temperature=1.0, seed=2, max_tokens=200)
    assert made.choices[0].finish_reason == "tool_calls" and not made.choices[0].message.content
    call = made.choices[0].message.tool_calls[0]
    assert call.function.name in ("calculate", "look") and call.id.startswith("call_")
    json.loads(call.function.arguments)
    named = {"type": "function", "function": {"name": "calculate"}}
    pieces: dict[str, str] = {"name": "", "arguments": ""}
    for chunk in client.chat.completions.create(model=NEW, messages=HELLO, tools=[CALCULATE, LOOK], tool_choice=named,
                                                temperature=1.0, seed=3, max_tokens=200, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            pieces["name"] += delta.function.name or ""
            pieces["arguments"] += delta.function.arguments or ""
    arguments = json.loads(pieces["arguments"])
    assert pieces["name"] == "calculate" and 0 <= arguments["a"] <= 99 and arguments["how"] in ("plus", "minus")
    answered = client.chat.completions.create(model=NEW, max_tokens=4, tools=[CALCULATE], messages=[
        *HELLO, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "42"}])
    assert answered.usage.prompt_tokens > made.usage.prompt_tokens // 2


def test_several_choices_and_their_chances(client: openai.OpenAI, engine: Engine) -> None:
    made = client.chat.completions.create(model=NEW, messages=HELLO, n=3, seed=5, temperature=1.0, max_tokens=12,
                                          logprobs=True, top_logprobs=2)
    again = client.chat.completions.create(model=NEW, messages=HELLO, n=3, seed=5, temperature=1.0, max_tokens=12)
    texts = [choice.message.content for choice in made.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    assert made.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in made.choices)
    first = made.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in first).decode("utf-8", "replace").startswith(texts[0][:4])
    ids = engine.encode_chat(HELLO)
    with torch.no_grad():
        expected = torch.log_softmax(engine.model(torch.tensor([ids]))[0, -1], -1)
    assert first[0].top_logprobs[0].logprob == pytest.approx(float(expected.max()), abs=1e-3)


def test_the_prompt_s_own_chances(client: openai.OpenAI, engine: Engine) -> None:
    """As lm-evaluation-harness asks: ids, echo, nothing new."""
    ids = engine.tokenizer.encode("The lamp in the harbour 李明")
    made = client.completions.create(model=NEW, prompt=[ids, ids[:4]], echo=True, logprobs=1, max_tokens=0)
    with torch.no_grad():
        expected = torch.log_softmax(engine.model(torch.tensor([ids]))[0], -1)
    found = made.choices[0].logprobs.token_logprobs
    assert len(found) == len(ids) and found[0] is None and len(made.choices[1].logprobs.tokens) == 4
    assert found[1:] == pytest.approx([float(expected[i, ids[i + 1]]) for i in range(len(ids) - 1)], abs=1e-3)
    assert made.choices[0].text == "The lamp in the harbour 李明"


def test_langchain(studio: Studio) -> None:  # noqa: F811
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    chat = langchain.ChatOpenAI(base_url=f"{studio.url}/v1", api_key=studio.token, model=NEW, max_tokens=100,
                                temperature=1.0, seed=1, max_retries=0)
    said = chat.invoke("Where is the lamp?")
    assert said.usage_metadata["output_tokens"] > 0
    assert "".join(part.content for part in chat.stream("Where is the lamp?")) == said.content
    assert isinstance(chat.with_structured_output(Lamp).invoke("Which lamp?"), Lamp)
    called = chat.bind_tools([CALCULATE], tool_choice="calculate").invoke("What is 3 plus 4?")
    assert called.tool_calls[0]["name"] == "calculate" and called.tool_calls[0]["args"]["how"] in ("plus", "minus")


def test_llm(studio: Studio, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("llm", reason="llm is not installed")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: {NEW}\n  api_base: {studio.url}/v1\n  api_key_name: mine\n")
    (tmp_path / "keys.json").write_text(json.dumps({"mine": studio.token}))
    done = subprocess.run([sys.executable, "-m", "llm", "-m", "mine", "-o", "max_tokens", "8", "-o", "seed", "1",
                           "Where is the lamp?"], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "LLM_USER_PATH": str(tmp_path), "PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_lm_evaluation_harness(studio: Studio, engine: Engine, tmp_path: Path) -> None:  # noqa: F811
    """Its local-completions on a task of two questions gives the log-likelihoods of the training forward."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    tokenizer = tmp_path / "tokenizer"
    engine.tokenizer.save(tokenizer)
    script = f"""
import json
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
lm = LocalCompletionsAPI(model={NEW!r}, base_url={studio.url + "/v1/completions"!r}, tokenizer={str(tokenizer)!r},
                         tokenizer_backend="huggingface", num_concurrent=1, max_retries=1, batch_size=2)
asked = [("The lamp is", " green."), ("The lamp is", " 李明住在山上"), ("O barco", " azul e o mar")]
requests = [Instance("loglikelihood", {{}}, pair, n) for n, pair in enumerate(asked)]
print("FOUND", json.dumps(lm.loglikelihood(requests)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=tmp_path,
                          env={**os.environ, "OPENAI_API_KEY": studio.token, "HF_HUB_OFFLINE": "1",
                               "PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.split("FOUND", 1)[1])
    for (context, rest), (value, _) in zip(
            [("The lamp is", " green."), ("The lamp is", " 李明住在山上"), ("O barco", " azul e o mar")], found):
        before, ids = engine.tokenizer.encode(context), engine.tokenizer.encode(context + rest)
        with torch.no_grad():
            chances = torch.log_softmax(engine.model(torch.tensor([ids]))[0], -1)
        wanted = sum(float(chances[i - 1, ids[i]]) for i in range(len(before), len(ids)))
        assert math.isclose(value, wanted, abs_tol=1e-2), (context, rest)
