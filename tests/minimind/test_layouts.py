"""Layouts: every bad file is refused in one sentence that names the line."""

from __future__ import annotations

import json
import math

import pytest

from minimind.chat_format import encode_conversation
from minimind.data.layouts import detect_layout, iter_rows, scan
from minimind.errors import DataError
from minimind.tokenizer import Tokenizer

GOOD = {
    "text": {"text": "Anna lives in Lisbon."},
    "conversations": {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "dpo": {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}]},
    "questions": {"question": "Where is the ferry?"},
}


def talk(*messages: dict) -> dict:
    return {"conversations": list(messages)}


def pair(chosen: list, rejected: list) -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected})


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize("layout", GOOD)
def test_good_rows_come_back_with_their_line_numbers(tmp_path, layout):
    path = tmp_path / "data.jsonl"
    line = json.dumps(GOOD[layout], ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\n{line}".encode())
    assert detect_layout(path) == layout
    assert list(iter_rows(path)) == [(1, GOOD[layout]), (3, GOOD[layout])]
    assert scan(path).rows == 2


def test_paragraphs_of_plain_text_are_documents(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n\nOne.\nStill one.\n \n\nTwo 二.\n", encoding="utf-8")
    assert list(iter_rows(path)) == [(3, {"text": "One.\nStill one."}), (7, {"text": "Two 二."})]
    result = scan(path)
    assert (result.layout, result.rows, result.bytes) == ("txt", 2, path.stat().st_size)


def test_a_directory_is_its_files_in_order(tmp_path):
    for name, text in (("b.jsonl", "second"), ("a.jsonl", "first"), ("notes.md", "ignored")):
        (tmp_path / name).write_text(json.dumps({"text": text}))
    assert [row["text"] for _, row in iter_rows(tmp_path)] == ["first", "second"]


@pytest.mark.parametrize(("layout", "bad", "said", "field"), [
    ("text", '{"text": "x"', "not valid JSON", None),
    ("text", '"text"', "JSON text, not an object", None),
    ("text", "[" * 100_000, "nested too deeply", None),
    ("text", '{"text": ' + "9" * 5000 + "}", "too long", None),
    ("text", '{"content": "x"}', "text is missing", "text"),
    ("text", '{"text": null}', "text is null, not text", "text"),
    ("text", '{"text": 5}', "text is number, not text", "text"),
    ("text", '{"text": " "}', "text is empty", "text"),
    ("conversations", '{"messages": []}', "conversations is missing", "conversations"),
    ("conversations", '{"conversations": "x"}', "is text, not a list", "conversations"),
    ("conversations", '{"conversations": []}', "conversations is empty", "conversations"),
    ("conversations", json.dumps(talk(USER)), "no message of the assistant", "conversations"),
    ("conversations", json.dumps(talk(USER, {"role": "bot", "content": "x"})), "role is 'bot'",
     "conversations[1].role"),
    ("conversations", json.dumps(talk({"role": "user"}, ANSWER)), "content is missing", "conversations[0].content"),
    ("conversations", json.dumps(talk({"role": "user", "content": ["x"]}, ANSWER)), "content is list",
     "conversations[0].content"),
    ("conversations", json.dumps(talk({"role": "user", "content": ""}, ANSWER)), "content is empty",
     "conversations[0].content"),
    ("conversations", json.dumps(talk({"from": "human", "value": "x"})), "from/value", "conversations[0]"),
    ("conversations", json.dumps(talk("x")), "is a JSON text", "conversations[0]"),
    ("conversations", json.dumps(talk(USER, {**ANSWER, "tool_calls": "{"})),
     "tool_calls is not a JSON list of objects: Expecting property name enclosed in double quotes at character 2",
     "conversations[1].tool_calls"),
    ("conversations", json.dumps(talk(USER, {**ANSWER, "tool_calls": [{"a": 1}]})), "tool_calls[0] has no name",
     "conversations[1].tool_calls"),
    ("conversations", json.dumps(talk(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f"}}]})),
     "tool_calls[0] has no arguments", "conversations[1].tool_calls"),
    ("conversations", json.dumps({**talk(USER, ANSWER), "tools": 5}), "tools is not a JSON list", "tools"),
    ("conversations", json.dumps({**talk(USER, ANSWER), "tools": "abc"}), "tools is not a JSON list", "tools"),
    ("conversations", json.dumps(talk(USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{broken"}]})),
     "tool_calls[0].arguments is not valid JSON", "conversations[1].tool_calls"),
    ("conversations", json.dumps(talk(USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"x": math.nan}}]})),
     "tool_calls[0].arguments is not valid JSON", "conversations[1].tool_calls"),
    ("conversations", json.dumps(talk(USER, {**ANSWER, "tool_calls": [{"name": None, "arguments": {}}]})),
     "tool_calls[0] has no name", "conversations[1].tool_calls"),
    ("conversations", json.dumps({**talk(USER, ANSWER), "system": "Hm."}), "system stands beside the messages",
     "system"),
    ("conversations", json.dumps(talk({"role": "user", "content": None, "tool_calls": [{"a": 1}]}, ANSWER)),
     "content is empty", "conversations[0].content"),
    ("questions", '{"question": " "}', "question is empty", "question"),
    ("questions", '{"text": "x"}', "question is missing", "question"),
    ("dpo", json.dumps({"chosen": GOOD["dpo"]["chosen"]}), "rejected is missing", "rejected"),
    ("dpo", pair([USER, ANSWER], [USER, ANSWER]), "chosen and rejected are equal", "rejected"),
    ("dpo", pair([USER, {**ANSWER, "mark": 1}], [USER, {**ANSWER, "mark": 2, "tool_calls": "[]"}]), "are equal",
     "rejected"),
    ("dpo", pair([USER, ANSWER], [{**USER, "content": "Ho"}, ANSWER]), "begin with different messages", "rejected[0]"),
    ("dpo", pair([USER, ANSWER, USER, ANSWER], [USER, ANSWER]),
     "rejected has no message of the assistant behind the 2 that both sides share", "rejected"),
    ("dpo", pair([USER, ANSWER], [USER, {**USER, "content": "Ho"}, ANSWER]),
     "different prompts: rejected[1] is of the role user", "rejected[1]"),
    ("dpo", pair([USER, ANSWER, USER], [USER, ANSWER, USER, ANSWER]), "chosen has no message of the assistant behind",
     "chosen"),
])
def test_the_first_bad_line_is_named(tmp_path, layout, bad, said, field):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD[layout]) + "\n" + bad + "\n" + "also bad\n")
    with pytest.raises(DataError, match="data.jsonl line 2.*" + said.replace("[", r"\[")) as caught:
        list(iter_rows(path, layout))
    assert caught.value.line == 2
    assert caught.value.field == field
    assert caught.value.hint
    with pytest.raises(DataError, match="line 2"):
        scan(path, layout)


@pytest.mark.parametrize(("content", "said", "line"), [
    (b"", "is empty", None),
    (b"\n \n", "is empty", None),
    (b'{"text": "x"}\n{"text": "\xe9t\xe9"}\n', "line 2 is not UTF-8", 2),
    (b'{"text": "a\x00"}', "zero byte", 1),
    (b'{"foo": 1}\n', "none of the fields.*its fields are foo.*mapping", 1),
    (b'{"text": 7}\n', "text is number, not text", 1),
    (b'{"text": "x"\n', "not valid JSON", 1),
])
def test_files_that_are_no_data(tmp_path, content, said, line):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){said}") as caught:
        list(iter_rows(path))
    assert caught.value.line == line


def test_missing_paths_and_unknown_layouts(tmp_path):
    with pytest.raises(DataError, match="no file"):
        scan(tmp_path / "no.jsonl")
    with pytest.raises(DataError, match="no data file in the directory"):
        scan(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="no layout named 'csv'"):
        scan(tmp_path / "x.txt", "csv")


def test_the_wrong_layout_says_which_one_it_is(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD["conversations"]))
    with pytest.raises(DataError, match="text is missing.*layout conversations"):
        list(iter_rows(path, "text"))


def test_scan_warns_of_answers_that_say_nothing(tmp_path):
    path = tmp_path / "data.jsonl"
    call = {**ANSWER, "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
    rows = [talk(USER, ANSWER), talk(USER, call, ANSWER), talk(USER, {**ANSWER, "content": " "}, USER, ANSWER)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    [said] = scan(path).warnings
    assert "1 of 3 conversations have an empty answer" in said


def test_scan_warns_stops_and_reports(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [talk(USER, ANSWER), talk(USER, ANSWER, {"role": "user", "content": "lost \ufffd"})] * 1500
    path.write_text("\n".join(json.dumps(row) for row in rows))
    seen = []
    result = scan(path, progress=lambda done, total: seen.append((done, total)))
    assert result.rows == 3000 and len(result.warnings) == 2
    assert seen == sorted(seen) and seen[-1] == (path.stat().st_size,) * 2
    assert scan(path, limit=10).rows == 10
    assert scan(path, should_stop=lambda: True).rows == 1000


@pytest.mark.parametrize("row", [
    *({**talk(USER, ANSWER), "tools": tools} for tools in (
        None, "", 0, 5, True, False, "abc", "[]", "[1]", '{"a": 1}', '[{"a": 1}]', [], {}, {"a": 1}, ["a"], " ")),
    *(talk(USER, {**ANSWER, "tool_calls": calls}) for calls in (
        [{"a": 1}], [{"name": "x"}], [{"name": "x", "arguments": {}}], [{"name": None, "arguments": 1}], [],
        [{"function": {"name": "f", "arguments": "{}"}}], [{"function": {"name": "f"}}], '[{"a": 1}]',
        [{"function": "f", "name": "x"}], [{"function": None, "name": "x", "arguments": None}])),
    talk({**USER, "tool_calls": [{"a": 1}]}, ANSWER)], ids=str)
def test_tools_are_refused_if_and_only_if_training_cannot_read_them(tmp_path, row):
    tokenizer = Tokenizer.train(["Hi Hello"] * 5, 300)
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    can = []
    for read in (lambda: scan(path), lambda: encode_conversation(tokenizer, row["conversations"], row.get("tools"))):
        try:
            read()
            can.append(True)
        except DataError:
            can.append(False)
    assert can[0] == can[1]
