"""Constraints: whatever the model would like to say, what comes out is of the form that was asked for."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

from minimind.constrain import ConstraintError, Grammar
from minimind.engine import Engine, SamplingParams
from minimind.model import MiniMindForCausalLM
from minimind.presets import ModelConfig
from minimind.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="llguidance is not installed")

TEXTS = ["The lamp in the harbour is green.", "李明住在山上的红房子里，他喜欢喝茶。",
         '{"name": "calculator", "arguments": {"expression": "3+4"}}'] * 20
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"},
                                           "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
          "required": ["name", "age", "tags"], "additionalProperties": False}
CALCULATOR = {"type": "function", "function": {"name": "calculator", "parameters": {
    "type": "object", "properties": {"expression": {"type": "string", "maxLength": 9}}, "required": ["expression"],
    "additionalProperties": False}}}
CLOCK = {"type": "function", "function": {"name": "时钟", "parameters": {"type": "object", "properties": {},
                                                                       "additionalProperties": False}}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 460)


def wild(tokenizer: Tokenizer, constraint: dict[str, Any], seed: int, most: int = 300) -> str | None:
    """An answer whose tokens are drawn as the grammar allows, all alike; None where it did not end."""
    size = tokenizer.vocab_size + 7  # padding rows
    matcher, generator = Grammar.compile(tokenizer, size, constraint).matcher(), torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(most):
        mask = matcher.mask()
        assert mask.shape == (size,) and mask.any() and not mask[tokenizer.vocab_size:].any()
        token = int(torch.multinomial(torch.rand(size, generator=generator) * mask, 1, generator=generator))
        if token == tokenizer.eos_id:
            return tokenizer.decode(ids, False)
        ids.append(token)
        matcher.accept(token)
        if matcher.is_finished:
            return tokenizer.decode(ids, False)
    return None


@pytest.mark.parametrize("seed", range(25))
def test_json_of_a_schema_is_compact_and_valid(tokenizer: Tokenizer, seed: int) -> None:
    text = wild(tokenizer, {"kind": "json_schema", "schema": PERSON}, seed)
    made = json.loads(text)
    assert list(made) == ["name", "age", "tags"] and len(made["name"]) <= 8 and isinstance(made["age"], int)
    assert len(made["tags"]) <= 3 and set(made["tags"]) <= {"a", "b"}
    assert text == text.strip() and '": ' not in text and ', "' not in text
    assert "<|" not in text and "<think>" not in text


@pytest.mark.parametrize("seed", range(25))
def test_any_object_parses_where_it_ends(tokenizer: Tokenizer, seed: int) -> None:
    text = wild(tokenizer, {"kind": "json_object"}, seed, most=60)
    assert text is None or isinstance(json.loads(text), dict)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_calls_are_written_as_the_template_writes_them(tokenizer: Tokenizer, seed: int, parallel: bool) -> None:
    text = wild(tokenizer, {"kind": "tools", "tools": [CALCULATOR, CLOCK], "parallel": parallel}, seed, most=2000)
    parts = text.split("</tool_call>")
    assert parts.pop() == "" and (parallel or len(parts) == 1)
    for number, part in enumerate(parts):
        assert part.startswith("<tool_call>\n" if number == 0 else "\n<tool_call>\n") and part.endswith("}\n")
        call = json.loads(part.strip().removeprefix("<tool_call>"))
        assert call["name"] in ("calculator", "时钟")
        assert set(call["arguments"]) == ({"expression"} if call["name"] == "calculator" else set())
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.encode("<tool_call>")[0]) == len(parts), "a tag is one token"


def test_each_step_allows_what_the_written_out_language_allows(tokenizer: Tokenizer) -> None:
    """A language of three words, followed by hand."""
    words = ['"ab"', '"ac"', '"李"']
    matcher = Grammar.compile(tokenizer, tokenizer.vocab_size,
                              {"kind": "json_schema", "schema": {"enum": ["ab", "ac", "李"]}}).matcher()
    said = b""
    for _ in range(8):
        left = [w.encode()[len(said):] for w in words if w.encode().startswith(said)]
        special = {tokenizer.eos_id, *(i for i in range(tokenizer.vocab_size)
                                       if tokenizer.token_bytes(i, False).startswith(b"<"))}
        spelled = {i: tokenizer.token_bytes(i, False) for i in range(tokenizer.vocab_size) if i not in special}
        expected = {i for i, token in spelled.items() for word in left if token and word.startswith(token)}
        if b"" in left:
            expected.add(tokenizer.eos_id)
        mask = matcher.mask()
        assert set(mask.nonzero().flatten().tolist()) == expected
        token = min(expected)
        if token == tokenizer.eos_id or matcher.is_finished:
            break
        said += tokenizer.token_bytes(token, False)
        matcher.accept(token)
    assert said.decode() in words


@pytest.mark.parametrize("schema, said", [
    ({"type": "object", "properties": {"a": {"$ref": "http://example.com/x"}}, "required": ["a"]}, "registry"),
    ({"type": "strin"}, "Invalid type"), ({"type": "string", "pattern": "(a+"}, "unclosed group"),
    ({"not": {"type": "string"}}, '"not"'), (5, "not a JSON object"), (None, "not a JSON object"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible"), (False, "not a JSON object"),
    ({"enum": ["\ud800"]}, "surrogate"), ({"enum": [float("nan")]}, "finite"),
    ({"type": "integer", "multipleOf": 999_999}, "multipleOf"),
    ({"type": "number", "multipleOf": 1.00001}, "multipleOf"),
    ({"allOf": [{"type": "integer", "multipleOf": 973}, {"multipleOf": 967}]}, "multipleOf"),
    ({"anyOf": [{"type": "integer", "multipleOf": n} for n in range(900, 960)]}, "multipleOf"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "form"),
])
def test_what_cannot_be_held_to_is_refused_by_name(tokenizer: Tokenizer, schema: Any, said: str) -> None:
    began = time.process_time()
    with pytest.raises(ConstraintError) as raised:
        Grammar.compile(tokenizer, 460, {"kind": "json_schema", "schema": schema})
    assert said in str(raised.value) and raised.value.field == "response_format"
    assert time.process_time() - began < 2


@pytest.mark.parametrize("number", [1, 5, 0.01, 1e-7, 250])
def test_ordinary_multiples_are_followed(tokenizer: Tokenizer, number: float) -> None:
    text = wild(tokenizer, {"kind": "json_schema", "schema": {"type": "number", "multipleOf": number, "minimum": 0,
                                                              "maximum": 1000 * number}}, 1)
    assert text is None or json.loads(text) >= 0


def test_a_schema_does_not_speak_to_the_library(tokenizer: Tokenizer) -> None:
    """``x-guidance`` would bring free whitespace back."""
    schema = {**PERSON, "x-guidance": {"whitespace_flexible": True, "whitespace_pattern": "[ ]+"}}
    for seed in range(5):
        text = wild(tokenizer, {"kind": "json_schema", "schema": schema}, seed)
        assert text.startswith('{"name":"') and '": ' not in text


def test_wide_objects_work(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {f"k{n}": {"type": "integer"} for n in range(300)}}
    matcher = Grammar.compile(tokenizer, tokenizer.vocab_size, {"kind": "json_schema", "schema": schema}).matcher()
    for character in '{"k7':
        token = tokenizer.encode(character)[0]
        assert matcher.mask()[token]
        matcher.accept(token)


def test_vocabularies_are_forgotten_with_their_tokenizer() -> None:
    import gc
    import weakref

    tokenizer = Tokenizer.train(TEXTS, 420)
    Grammar.compile(tokenizer, 420, {"kind": "json_object"})
    known = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert known() is None


def nested(levels: int) -> dict:
    return {"type": "object", "properties": {"a": nested(levels - 1)} if levels else {}}


@pytest.mark.parametrize("schema", [
    nested(60), {"enum": ["x" * 100_000]}, {"type": "string", "pattern": "((a{1,900}){1,900}){1,900}"},
    {"type": "string", "pattern": "(a|aa)*(b|bb)*(c|cc){2000}$"}, {"$ref": "#"},
    {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
    {"anyOf": [{"type": "string", "pattern": f"[a-z]{{{n}}}x[0-9]*"} for n in range(1, 300)]},
    {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1500)}},
])
def test_hostile_schemas_cost_little(tokenizer: Tokenizer, schema: dict) -> None:
    """They are refused, or followed for some tokens; neither takes long."""
    began = time.process_time()
    try:
        matcher = Grammar.compile(tokenizer, tokenizer.vocab_size, {"kind": "json_schema", "schema": schema}).matcher()
        for _ in range(30):
            if matcher.is_finished:
                break
            matcher.accept(int(matcher.mask().nonzero()[0]))
    except ConstraintError as error:
        assert len(str(error)) < 600
    assert time.process_time() - began < 10


@pytest.mark.parametrize("tools", [
    [], [{"type": "function"}], [{"name": 3}],
    [{"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "?"}}}}]])
def test_wrong_tools_are_named(tokenizer: Tokenizer, tools: list) -> None:
    with pytest.raises(ConstraintError) as raised:
        Grammar.compile(tokenizer, 460, {"kind": "tools", "tools": tools})
    assert raised.value.field == "tools"


def test_an_engine_keeps_to_its_grammar(tokenizer: Tokenizer) -> None:
    """A model that has learnt nothing, sampling and greedy; the end comes with the closing brace."""
    torch.manual_seed(0)
    shape = ModelConfig(vocab_size=tokenizer.vocab_size + 4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        num_key_value_heads=1, head_dim=16, intermediate_size=32)
    engine = Engine(MiniMindForCausalLM(shape).eval(), tokenizer)
    grammar = engine.grammar({"kind": "json_schema", "schema": PERSON})
    assert engine.grammar({"schema": PERSON, "kind": "json_schema"}) is grammar, "compiled once"
    for seed in range(3):
        params = SamplingParams(temperature=0 if seed == 0 else 1.0, max_tokens=300, seed=seed)
        asked, text = engine.batch.add([5, 6, 7], params, matcher=grammar.matcher()), ""
        while engine.batch.is_busy:
            text += "".join(delta.text for _, delta in engine.batch.step())
        assert asked.finish_reason in ("stop", "length")
        if asked.finish_reason == "stop":
            assert set(json.loads(text)) == {"name", "age", "tags"}
    cut = engine.batch.add([5, 6, 7], SamplingParams(max_tokens=3), matcher=grammar.matcher())
    while engine.batch.is_busy:
        engine.batch.step()
    assert cut.finish_reason == "length" and cut.completion_tokens == 3
