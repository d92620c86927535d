"""Answers taken apart: what is reasoning, what is said, what is a call; and that cutting a text changes nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.answers import Answer, AnswerParser, parse_answer, read_call

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ß"}}\n</tool_call>'
ARGUMENTS = '{"a": 1, "b": "ß"}'


def calls_of(answer: Answer) -> list[tuple[str, str]]:
    return [(p.name, p.text) for p in answer.calls]


@pytest.mark.parametrize("text, options, reasoning, content", [
    ("Hello.\n", {}, "", "Hello.\n"),
    ("<think>\nI know.\n</think>\n\nThe lamp.", {}, "I know.", "The lamp."),
    ("\n <think>a</think>b", {}, "a", "b"),
    ("<think>\n\n</think>\n\nYes", {}, "", "Yes"),
    ("I know.\n</think>\n\nThe lamp.", {"is_thinking": True}, "I know.", "The lamp."),
    ("<think>\nI know.\n</think>\nx", {"is_thinking": True}, "I know.", "x"),
    ("never said", {"is_thinking": True}, "never said", ""),
    ("cut </thi", {"is_thinking": True}, "cut </thi", ""),
    ("cut <thi", {}, "", "cut <thi"), ("<thi", {}, "", "<thi"), ("  ", {}, "", "  "),
    ("", {"is_thinking": True}, "", ""),
    ("so <think>no block</think>", {}, "", "so <think>no block</think>"),
    ("<think>x", {"continues": True}, "", "<think>x"), ("\n\nb", {"continues": True}, "", "\n\nb"),
    ("on</think>b", {"continues": True, "is_thinking": True}, "on", "b"),
    (CALL, {}, "", CALL),
    (f"<think>{CALL}</think>x", {"calls": True}, CALL, "x"),
])
def test_reasoning_and_content(text: str, options: dict, reasoning: str, content: str) -> None:
    answer = parse_answer(text, **options)
    assert (answer.reasoning, answer.content, answer.calls) == (reasoning, content, [])


@pytest.mark.parametrize("text, content, names", [
    (CALL, "", ["add"]),
    (f"Let me see.\n{CALL}\n", "Let me see.", ["add"]),
    (f"{CALL}\n \n{CALL}", "", ["add", "add"]),
    (f"<think>\nwhy\n</think>\n\n{CALL}", "", ["add"]),
    (CALL.removesuffix("</tool_call>"), "", ["add"]),  # the model ended without closing it
    (f"a\n{CALL}\nb\n", "a\nb\n", ["add"]),
    ('<tool_call>{"function": {"name": "f", "arguments": "{\\"a\\": 1}"}}</tool_call>', "", ["f"]),
])
def test_calls(text: str, content: str, names: list[str]) -> None:
    answer = parse_answer(text, calls=True)
    assert (answer.content, [p.name for p in answer.calls]) == (content, names)
    assert all(isinstance(json.loads(p.text), dict) for p in answer.calls)


def test_arguments_are_json_text() -> None:
    assert calls_of(parse_answer(CALL, calls=True)) == [("add", ARGUMENTS)]
    assert read_call('{"name": "f", "arguments": "{\\"x\\":  1}"}') == ("f", '{"x":  1}'), "as the model wrote it"


@pytest.mark.parametrize("body", [
    "", "add(1, 2)", '{"name": "add"}', '{"name": 1, "arguments": {}}', '{"name": " ", "arguments": {}}', "[]",
    '{"name": "add", "arguments": [1]}', '{"name": "add", "arguments": "no JSON"}', '{"arguments": {}}',
    '{"name": "add", "arguments": {"a": NaN}}', '{"name": "\\ud800", "arguments": {}}', "[" * 100_000,
    '{"name": "add", "arguments": {"a": 1}',
])
def test_a_broken_call_stays_visible(body: str) -> None:
    text = f"See:\n<tool_call>\n{body}\n</tool_call>\nThere."
    answer = parse_answer(text, calls=True)
    assert (answer.content, answer.calls) == (text, [])
    assert parse_answer(f"<tool_call>{body}", calls=True).content == f"<tool_call>{body}"


PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "\n", " ", "a", "<", "</t", "ß", "<tool",
          "think>", '{"name": "f", "arguments": {}}', "{"]
MODES = [{}, {"calls": True}, {"is_thinking": True}, {"is_thinking": True, "calls": True},
         {"continues": True, "calls": True}, {"continues": True, "is_thinking": True, "calls": True}]


@settings(max_examples=400, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
       cuts=st.lists(st.integers(0, 200), max_size=12), options=st.sampled_from(MODES))
def test_where_a_text_is_cut_changes_nothing(text: str, cuts: list[int], options: dict) -> None:
    whole = parse_answer(text, **options)
    places = sorted({min(c, len(text)) for c in cuts} | {0, len(text)})
    for pieces in ([text[a:b] for a, b in zip(places, places[1:])], list(text)):
        parser = AnswerParser(**options)
        parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
        assert Answer.of(parts) == whole
        assert all(part.text for part in parts)


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_nothing_that_was_said_is_lost(text: str) -> None:
    """Where there is no block and no call, the content is the text, whitespace and all."""
    assert parse_answer(text, continues=True).content == text
    parsed = parse_answer(text, continues=True, calls=True)
    if not parsed.calls:
        assert parsed.content == text


def test_a_long_call_is_read_in_linear_time() -> None:
    body = json.dumps({"name": "f", "arguments": {"x": "y" * 200_000}})
    parser = AnswerParser(calls=True)
    parts = [p for piece in ["<tool_call>", *(body[i:i + 20] for i in range(0, len(body), 20)), "</tool_call>"]
             for p in parser.push(piece)]
    assert [p.name for p in parts] == ["f"]
