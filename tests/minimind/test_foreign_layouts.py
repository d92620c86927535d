"""Data as others write it becomes rows that training reads; what cannot is named by file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from minimind.data import foreign, layouts
from minimind.errors import ConfigError, DataError
from tests.minimind.training import TINY, events, run

TOOL = {"name": "weather", "description": "Weather", "parameters": {
    "type": "dict", "properties": {"city": {"type": "str"}, "days": {"type": "int, optional"},
                                   "type": {"type": "any", "default": {"type": "float"}},
                                   "points": {"type": "tuple", "items": {"type": "float"}}}}}
SCHEMA = {"name": "weather", "description": "Weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                                     "type": {"default": {"type": "float"}},
                                     "points": {"type": "array", "items": {"type": "number"}}}}}
CALL = {"name": "weather", "arguments": {"city": "Lisbon"}}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def says(text: str, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


def talk(*messages: dict, **more: object) -> dict:
    return {"conversations": list(messages), **more}


QA = talk(user("Who?"), says("Me."))
BETTER = {"chosen": [user("Who?"), says("Me.")], "rejected": [user("Who?"), says("You.")]}

#: name, a row as others write it, the layout that is recognised, the row that it becomes
ROWS = [
    ("alpaca", {"instruction": "Add.", "input": "1 + 1", "output": "2"}, "alpaca",
     talk(user("Add.\n1 + 1"), says("2"))),
    ("alpaca-empty-input", {"instruction": "Who?", "input": "", "output": "Me."}, "alpaca", QA),
    ("alpaca-history", {"instruction": "And you?", "input": "", "output": "Too.", "system": "Be kind.",
                        "history": [["Well?", "Well."]]}, "alpaca",
     talk({"role": "system", "content": "Be kind."}, user("Well?"), says("Well."), user("And you?"), says("Too."))),
    ("alpaca-with-text", {"instruction": "Who?", "input": "", "output": "Me.", "text": "Below is ..."}, "alpaca", QA),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}, "sharegpt",
     QA),
    ("sharegpt-tools", {"conversations": [
        {"from": "human", "value": "Rain?"}, {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": json.dumps({**CALL, "arguments": json.dumps({"city": "Porto"})})},
        {"from": "observation", "value": '{"rain": true}'}, {"from": "gpt", "value": "Yes."}],
        "tools": json.dumps([TOOL])}, "sharegpt",
     talk(user("Rain?"), says("", tool_calls=[CALL, {**CALL, "arguments": {"city": "Porto"}}]),
          {"role": "tool", "content": '{"rain": true}'}, says("Yes."), tools=[SCHEMA])),
    ("openai", {"messages": [{"role": "developer", "content": "Be brief."}, user("Who?"), says("Me.")]}, "openai",
     talk({"role": "system", "content": "Be brief."}, user("Who?"), says("Me."))),
    ("openai-tools", {"messages": [
        user("Rain?"), {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lisbon"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "yes"}, says("Yes.")],
        "tools": [{"type": "function", "function": TOOL}]}, "openai",
     talk(user("Rain?"), says("", tool_calls=[CALL]), {"role": "tool", "content": "yes"}, says("Yes."),
          tools=[{"type": "function", "function": SCHEMA}])),
    ("openai-function-call", {"messages": [
        user("Rain?"), {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "no"}, says("No.")],
        "functions": [TOOL]}, "openai",
     talk(user("Rain?"), says("", tool_calls=[{"name": "weather", "arguments": {}}]),
          {"role": "tool", "content": "no"}, says("No."), tools=[SCHEMA])),
    ("openai-parts", {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "I look."},
                                          {"type": "tool_call", "value": json.dumps(CALL)}]},
        {"role": "tool", "content": [{"type": "text", "value": "yes"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "Yes."}]}]}, "openai",
     talk(user("Rain?"), says("", reasoning_content="I look.", tool_calls=[CALL]),
          {"role": "tool", "content": "yes"}, says("Yes."))),
    ("tools-in-the-system-message", {"messages": [
        {"role": "system", "content": "", "tools": json.dumps([TOOL])}, user("Rain?"), says("No.")]}, "openai",
     talk({"role": "system", "content": "", "tools": [SCHEMA]}, user("Rain?"), says("No."))),
    ("system-beside-messages", {"system": "Hm.", **QA}, "openai",
     talk({"role": "system", "content": "Hm."}, user("Who?"), says("Me."))),
    ("roles-with-values", {"conversations": [{"role": "user", "value": "Who?"}, {"role": "assistant", "value": "Me."}]},
     "openai", QA),
    ("sharegpt-bing", {"conversations": [{"from": "human", "value": "Who?"}, {"from": "bing", "value": "Me."}]},
     "sharegpt", QA),
    ("reasoning", {"messages": [user("Who?"), says("Me.", reasoning_content="Easy.")]}, "openai",
     talk(user("Who?"), says("Me.", reasoning_content="Easy."))),
    ("conversations-of-parts", {"conversations": [user("Who?"), says([{"type": "text", "text": "Me."}])]}, "openai",
     QA),
    ("prompt-completion", {"prompt": "Who?", "completion": "Me."}, "pairs", QA),
    ("question-answer", {"id": 1, "question": "Who?", "answer": "Me."}, "pairs", QA),
    ("number-answer", {"Body": "He has 3.", "Question": "How many?", "Answer": 3.0, "Type": "x"}, "pairs",
     talk(user("He has 3.\nHow many?"), says("3"))),
    ("instruction-response", {"instruction": "Who?", "context": "A play.", "response": "Me."}, "pairs",
     talk(user("A play.\nWho?"), says("Me."))),
    ("riddle", {"riddle": "Who?", "answer": "Me."}, "pairs", QA),
    ("self-instruct", {"instruction": "Add.", "instances": [{"input": "1 + 1", "output": "2"}]}, "self_instruct",
     talk(user("Add.\n1 + 1"), says("2"))),
    ("kdconv", {"name": "x", "messages": [{"message": "Who?"}, {"message": "Me.", "attrs": []}]}, "dialogue", QA),
    ("crosswoz", {"messages": [{"role": "usr", "content": "Who?"}, {"role": "sys", "content": "Me."}], "goal": []},
     "dialogue", QA),
    ("taskmaster", {"utterances": [{"speaker": "user", "text": "Who"}, {"speaker": "user", "text": "is it?"},
                                   {"speaker": "assistant", "text": "Me."}, {"speaker": "user", "text": "Bye."}]},
     "dialogue", talk(user("Who\nis it?"), says("Me."))),
    ("two-people", {"dialog": [{"speaker": "Ann", "text": "Who?"}, {"speaker": "Bob", "text": "Me."}]}, "dialogue", QA),
    ("dialog-of-texts", {"dialog": ["Who?", "Me."]}, "dialogue", QA),
    ("poetry", {"title": "Ode", "author": "Li", "paragraphs": ["One.", "Two."]}, "text",
     {"text": "Ode\nLi\nOne.\nTwo."}),
    ("body", {"id": 3, "title": "T", "body": "Long ago."}, "text", {"text": "Long ago."}),
    ("preference-sharegpt", {"conversations": [{"from": "human", "value": "Who?"}],
                             "chosen": {"from": "gpt", "value": "Me."}, "rejected": {"from": "gpt", "value": "You."}},
     "preference", BETTER),
    ("preference-texts", {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}, "preference", BETTER),
    ("preference-system", {"system": "Hm.", "question": "Who?", "chosen": "Me.", "rejected": "You."}, "preference",
     {side: [{"role": "system", "content": "Hm."}, *said] for side, said in BETTER.items()}),
    ("preference-lists", {"prompt": [user("Who?")], "chosen": [says("Me.")], "rejected": [says("You.")]}, "preference",
     BETTER),
    ("preference-whole", {"prompt": "Who?", **BETTER}, "preference", BETTER),
    ("preference-system-whole", {"system": "Hm.", **BETTER}, "preference",
     {side: [{"role": "system", "content": "Hm."}, *said] for side, said in BETTER.items()}),
    ("preference-system-in-the-prompt", {"prompt": [{"role": "system", "content": "Hm."}, user("Who?")], **BETTER},
     "preference", {side: [{"role": "system", "content": "Hm."}, *said] for side, said in BETTER.items()}),
    ("preference-responses", {"question": "Who?", "response_chosen": "Me.", "response_rejected": "You."}, "preference",
     BETTER),
    ("preference-alpaca", {"instruction": "Add.", "input": "1 + 1", "chosen": "2", "rejected": "3"}, "preference",
     {"chosen": [user("Add.\n1 + 1"), says("2")], "rejected": [user("Add.\n1 + 1"), says("3")]}),
    ("preference-human", {"chosen": "\n\nHuman: Who?\n\nAssistant: Me.",
                          "rejected": "\n\nHuman: Who?\n\nAssistant: You."}, "preference", BETTER),
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("row", "layout", "becomes"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_layouts_of_others(tmp_path: Path, row: dict, layout: str, becomes: dict) -> None:
    lines = write(tmp_path / "data.jsonl", row, row)
    array = tmp_path / "data.json"
    array.write_text("\ufeff" + json.dumps([row, row], indent=2))
    for path in (lines, array):
        with foreign.Source(path) as source:
            assert source.layout == layout
            assert [r for _, _, r in source.rows()] == [becomes, becomes]
        canonical = layouts.detect_layout(path)
        assert [r for _, r in layouts.iter_rows(path)] == [becomes, becomes] and layouts.scan(path).rows == 2
        assert canonical == ("dpo" if "chosen" in becomes else "text" if "text" in becomes else "conversations")


def test_what_is_ours_is_not_converted(tmp_path: Path) -> None:
    for row in ({"text": "a"}, QA, BETTER, {**QA, "id": 1}):
        assert not foreign.is_foreign(write(tmp_path / "data.jsonl", row)), row
    (tmp_path / "b.txt").write_text("[1] A paragraph.\n\nAnother.")
    assert not foreign.is_foreign(tmp_path / "b.txt")


KTO = [{"prompt": "Who?", "completion": "Me.", "label": True}, {"prompt": "Well?", "completion": "No.", "label": False},
       {"prompt": "Who?", "completion": "You.", "label": False}, {"prompt": "Who?", "completion": "Us.", "label": True}]


def test_rated_answers_to_one_prompt_make_pairs(tmp_path: Path) -> None:
    for rows in (KTO, [{"messages": [user(r["prompt"]), says(r["completion"])], "label": r["label"]} for r in KTO]):
        path = write(tmp_path / "kto.jsonl", *rows)
        assert [row for _, row in layouts.iter_rows(path)] == [BETTER]
        assert "2 of 4 rated answers have no partner" in layouts.scan(path).warnings[0]
        with foreign.Source(path, mapping={"layout": "kto_good"}) as source:
            assert [row for _, _, row in source.rows()] == [QA, talk(user("Who?"), says("Us."))]
            assert source.canonical == "conversations"
    with pytest.raises(DataError, match="no rated answer has a partner") as caught:
        layouts.scan(write(tmp_path / "kto.jsonl", *KTO[:2]))
    assert "kto_good" in caught.value.hint


@pytest.mark.parametrize("words", [(1, 0), ("1", "0"), (1.0, 0.0), ("True", "False")])
def test_ratings_in_numbers_and_words(tmp_path: Path, words: tuple) -> None:
    """Bad answers are never read as good ones. A column that says 1 alone may be anything."""
    rows = [{**row, "label": words[not row["label"]]} for row in KTO]
    assert [row for _, row in layouts.iter_rows(write(tmp_path / "kto.jsonl", *rows))] == [BETTER]
    lone = layouts.scan(write(tmp_path / "lone.jsonl", *[{**row, "label": 1} for row in KTO]))
    assert lone.layout == "conversations" and "has a column label of ones or zeros" in lone.warnings[0]


def test_raters_who_disagree_make_no_pair_of_one_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "Who?", "completion": said, "label": label}
            for said, label in (("Me.", True), ("Me.", False), ("You.", False), ("Us.", True))]
    path = write(tmp_path / "kto.jsonl", *rows)
    pairs = [(row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for _, row in layouts.iter_rows(path)]
    assert pairs == [("Me.", "You."), ("Us.", "Me.")]


@pytest.mark.parametrize(("empty", "filled", "expected"), [
    ({"history": []}, {"history": [["Well?", "Well."]]}, [user("Well?"), says("Well."), user("Who?"), says("Me.")]),
    ({"system": ""}, {"system": "Hm."}, [{"role": "system", "content": "Hm."}, user("Who?"), says("Me.")]),
    ({"system": None}, {"system": "Hm."}, [{"role": "system", "content": "Hm."}, user("Who?"), says("Me.")]),
    ({"input": None}, {"input": "Really?"}, [user("Who?\nReally?"), says("Me.")]),
])
def test_a_column_may_be_empty_at_first(tmp_path: Path, empty: dict, filled: dict, expected: list) -> None:
    """More rows than a file is recognised by say nothing in it."""
    rows = [{**GOOD, **empty}] * 25 + [{**GOOD, **filled}]
    *_, (_, last) = layouts.iter_rows(write(tmp_path / "a.jsonl", *rows))
    assert last["conversations"] == expected
    if "system" in empty:  # beside messages too
        *_, (_, last) = layouts.iter_rows(write(tmp_path / "b.jsonl", *[{**QA, **empty}] * 25, {**QA, **filled}))
        assert last["conversations"] == expected


def test_a_cell_that_is_no_number_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[{**GOOD, "input": float("nan")}] * 20, {**GOOD, "output": float("nan")})
    found = layouts.scan(path)
    assert found.rows == 20 and "line 21: output is empty" in found.warnings[0]
    assert {json.dumps(row) for _, row in layouts.iter_rows(path)} == {json.dumps(QA)}


GOOD = {"instruction": "Who?", "input": "", "output": "Me."}


@pytest.mark.parametrize(("row", "said", "field"), [
    ({**GOOD, "output": " "}, "output is empty", "output"),
    ({**GOOD, "instruction": ""}, "instruction is empty", "instruction"),
    ({**GOOD, "output": {"a": 1}}, "output is object, not text", "output"),
    ({**GOOD, "history": "x"}, None, None),
])
def test_rows_without_use_are_left_out_and_counted(tmp_path: Path, row: dict, said: str | None, field: str) -> None:
    found = layouts.scan(write(tmp_path / "a.jsonl", *[GOOD] * 8, row, *[GOOD] * 5))
    if said is None:
        assert found.rows == 14
        return
    assert found.rows == 13
    assert f"1 of 14 rows were left out; the first: a.jsonl line 9: {said}." in found.warnings
    with pytest.raises(DataError, match=f"2 of 4 rows cannot be used; the first: a.jsonl line 2: {said}") as caught:
        layouts.scan(write(tmp_path / "a.jsonl", GOOD, row, GOOD, row))
    assert (caught.value.line, caught.value.field) == (2, field)


def test_a_side_of_an_empty_system_message_is_left_out(tmp_path: Path) -> None:
    good = {"prompt": "Who?", "chosen": [says("Me.")], "rejected": [says("You.")]}
    bad = {**good, "rejected": [{"role": "system", "content": ""}]}
    found = layouts.scan(write(tmp_path / "a.jsonl", *[good] * 20, bad))
    assert found.rows == 20 and "line 21: rejected has nothing but an empty message" in found.warnings[0]


def test_a_training_says_once_what_was_left_out(tmp_path: Path) -> None:
    """Also where it finds the data tokenized: the second run reads no row of it."""
    path = write(tmp_path / "a.jsonl", *[GOOD] * 20, {**GOOD, "output": ""})
    for name in ("one", "two"):
        assert run("sft", *TINY, "--out", tmp_path / name, "--cache_dir", tmp_path / "cache", "--data_path", path,
                   "--max_steps", 1, "--sample_interval", 0) == 0
        said = [e["data"]["message"] for e in events(tmp_path / name, 1, "warning")]
        assert said == ["1 of 21 rows were left out; the first: a.jsonl line 21: output is empty."]


def test_a_conversation_without_an_answer_is_left_out(tmp_path: Path) -> None:
    good = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}
    alone = {"conversations": good["conversations"][:1]}
    found = layouts.scan(write(tmp_path / "a.json", *[good] * 20, alone))
    assert found.rows == 20 and "line 21: conversations has no message of the assistant" in found.warnings[0]
    with pytest.raises(DataError, match="a.json line 1: conversations has no message of the assistant") as caught:
        layouts.scan(write(tmp_path / "a.json", alone))
    assert (caught.value.line, caught.value.field) == (1, "conversations")


def tool_row(call: str) -> dict:
    return {"conversations": [{"from": "human", "value": "Rain?"}, {"from": "function_call", "value": call},
                              {"from": "observation", "value": "yes"}, {"from": "gpt", "value": "Yes."}], "tools": "[]"}


@pytest.mark.parametrize(("good", "bad", "said", "field"), [
    (tool_row(json.dumps(CALL)), tool_row('{"name": "weather", '), "conversations[1].value is not valid JSON",
     "conversations[1].value"),
    (tool_row(json.dumps(CALL)), tool_row('{"arguments": {}}'), "is a call without a name", "conversations[1].value"),
    (tool_row(json.dumps(CALL)), tool_row('{"name": "f", "arguments": "{x"}'), "arguments is not valid JSON",
     "conversations[1].value.arguments"),
    (tool_row(json.dumps(CALL)), {**tool_row(json.dumps(CALL)), "tools": "[{"}, "tools is not valid JSON", "tools"),
    (tool_row(json.dumps(CALL)), tool_row('{"name": "f", "arguments": {"x": NaN}}'), "arguments is not valid JSON",
     "conversations[1].tool_calls"),
    ({"prompt": "Who?", "chosen": "Me.", "rejected": "You."}, {"prompt": "Who?", "chosen": "Me.", "rejected": "Me."},
     "chosen and rejected are equal", "rejected"),
])
def test_what_is_broken_is_an_error_at_its_row(tmp_path: Path, good: dict, bad: dict, said: str, field: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([good] * 30 + [bad], indent=1))
    with pytest.raises(DataError, match=r"^a.json line \d+ \(element 31\): .*") as caught:
        layouts.scan(path)
    assert said in caught.value.message and caught.value.field == field and caught.value.hint
    assert path.read_text().splitlines()[caught.value.line - 1] == " {"


@pytest.mark.parametrize(("text", "line", "said"), [
    ('[\n{"question": "a", "answer": "b"},\n{"question": "a" "answer": "b"}\n]', 3, "Expecting ',' delimiter"),
    ('[\n{"question": "a", "answer": "b"}\n{"question": "a"}]', 3, "where ',' or ']' after element 1 should be"),
    ('[\n{"question": "a", "answer": "b"},\n', 3, "Expecting value"),
    ('[\n{"question": "a", "answer": "b"}', 2, "ends where ',' or ']'"),
    ('{\n"x": {"question": "a", "answer": "b"},\n"y": 5}', 3, "the entry 'y' is a JSON number"),
    ('[\n{"question": "a", "answer": "b"},\n5]', 3, "JSON number, not an object"),
    ('[' * 100_000, 1, "nested too deeply"),
])
def test_broken_json_names_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="^a.json line") as caught:
        layouts.scan(tmp_path / "a.json")
    assert caught.value.line == line and said in caught.value.message and caught.value.hint


@pytest.mark.parametrize(("columns", "said"), [
    ({"question": [[user("x")]], "function": [TOOL]}, "questions and functions and no answers"),
    ({"a": 1, "b": [2]}, "no layout that is known; its columns are a, b"),
])
def test_what_is_not_known_says_its_columns(tmp_path: Path, columns: dict, said: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([columns]))
    with pytest.raises(DataError, match=said):
        layouts.detect_layout(tmp_path / "a.json")


def test_another_layout_than_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match="layout alpaca, whose rows are read as conversations, not text"):
        layouts.scan(path, "text")
    assert layouts.scan(path, "conversations").rows == 1


@pytest.mark.parametrize(("row", "mapping", "becomes"), [
    ({"ask": "Who?", "title": "T", "reply_text": "Me."}, {"layout": "pairs", "question": "ask", "answer": "reply_text"},
     QA),
    ({"title": "T", "ask": "Who?", "answer": "Me."}, {"question": ["title", "ask"]},
     talk(user("T\nWho?"), says("Me."))),
    ({"dialog": [{"who": "usr", "words": "Who?"}, {"who": "sys", "words": "Me."}]},
     {"layout": "sharegpt", "messages": "dialog", "role": "who", "content": "words", "user": "usr", "assistant": "sys"},
     QA),
    ({"a": "One.", "b": "Two."}, {"layout": "text", "text": ["a", "b"]}, {"text": "One.\nTwo."}),
    ({"instruction": "Who?", "input": "", "output": "I am {{name}} of {{ author }}."},
     {"replace": {"{{name}}": "Mini", "{{ author }}": "us"}}, talk(user("Who?"), says("I am Mini of us."))),
    (talk(user("Who?"), says("I am {{name}}.")), {"replace": {"{{name}}": "Mini"}},
     talk(user("Who?"), says("I am Mini."))),
    ({"q": "Who?", "yes": "Me.", "no": "You."}, {"layout": "preference", "question": "q", "chosen": "yes",
                                                 "rejected": "no"}, BETTER),
    ({"question": "Who?", "answer": "Me.", "system": "x"}, {"layout": "pairs", "system": None},
     talk({"role": "system", "content": "x"}, user("Who?"), says("Me."))),
])
def test_a_mapping_says_what_detection_cannot_know(tmp_path: Path, row: dict, mapping: dict, becomes: dict) -> None:
    with foreign.Source(write(tmp_path / "a.jsonl", row), mapping=mapping) as source:
        assert [r for _, _, r in source.rows()] == [becomes] and not source.report.warnings


@pytest.mark.parametrize(("mapping", "field", "said"), [
    ([], "mapping", "not an object"), ({"layout": "poems"}, "mapping.layout", "no layout 'poems'"),
    ({"layout": "pairs", "questoin": "q"}, "mapping.questoin", "no column 'questoin'"),
    ({"layout": "pairs", "question": 5}, "mapping.question", "not the name of a column"),
    ({"layout": "pairs", "answer": ["a", "b"]}, "mapping.answer", "list"),
    ({"layout": "pairs", "question": "nope"}, "mapping.question", "no column 'nope'"),
    ({"layout": "preference", "question": "question"}, "mapping.chosen", "needs the column of chosen"),
    ({"encoding": "rot13"}, "mapping.encoding", "no encoding"), ({"delimiter": "x"}, "mapping.delimiter", "none that"),
    ({"header": 1}, "mapping.header", "neither"), ({"replace": {"": "x"}}, "mapping.replace", "empty word"),
    ({"replace": {"a": 1}}, "mapping.replace", "texts"), ({"text": "question"}, "mapping.text", "no column 'text'"),
])
def test_mappings_that_cannot_be(tmp_path: Path, mapping: object, field: str, said: str) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "Who?", "answer": "Me."})
    with pytest.raises(ConfigError, match=said) as caught, foreign.Source(path, mapping=mapping or [5]):
        pass
    assert field in [problem["field"] for problem in caught.value.problems]
    assert all(problem["hint"] for problem in caught.value.problems)


def test_placeholders_are_named(tmp_path: Path) -> None:
    row = {"instruction": "Who?", "input": "", "output": "I am {{name}}, made by {{author}}."}
    (warning,) = layouts.scan(write(tmp_path / "a.jsonl", row)).warnings
    assert "{{name}}, {{author}}" in warning and '{"replace": {"{{name}}"' in warning


def test_looking_at_a_beginning(tmp_path: Path) -> None:
    rows = [{"instruction": f"Who is {i}?", "input": "", "output": "Me."} for i in range(50)]
    for name, content in (("a.json", json.dumps(rows, indent=1).encode()), ("a.jsonl", write(
            tmp_path / "x", *rows).read_bytes()), ("a.csv", b"ask,answer\n" + b'"Who,\nyou?",Me.\n' * 50),
            ("a.json.gz", gzip.compress(json.dumps(rows).encode()))):
        path = tmp_path / name
        path.write_bytes(content)
        whole = foreign.inspect(path, name)
        assert (whole["counted"], whole["problems"], whole["is_certain"]) == (50, [], True), name
        for cut in range(len(content) - 60, len(content) - 1, 7):
            path.write_bytes(content[:cut])
            seen = foreign.inspect(path, name, is_partial=True)
            assert (seen["layout"], seen["problems"], seen["counted"]) == (whole["layout"], [], None), (name, cut)
            assert seen["rows"] == whole["rows"] and len(seen["rows"]) == 5
    path = tmp_path / "b.json"
    path.write_text(json.dumps([{"a": "x", "b": "y"}]))
    unsure = foreign.inspect(path, "b.json")
    assert not unsure["is_certain"] and unsure["columns"] == ["a", "b"] and unsure["problems"]
    assert unsure["mapping"] == {"layout": "pairs", "question": "a", "answer": "b"}
    sure = foreign.inspect(path, "b.json", unsure["mapping"])
    assert sure["rows"][0]["row"] == talk(user("x"), says("y")) and sure["problems"] == []
    assert foreign.inspect(path, "b.json", {"layout": "x"})["problems"][0]["field"] == "mapping.layout"


def test_progress_of_a_conversion(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD] * 3000))
    seen: list[tuple[int, int]] = []
    with foreign.Source(path) as source:
        assert foreign.write_canonical(source, tmp_path / "out.jsonl", lambda *at: seen.append(at)) == 3000
    assert seen == sorted(seen) and seen[-1][0] <= seen[-1][1] == path.stat().st_size
    assert layouts.scan(tmp_path / "out.jsonl").rows == 3000 and not foreign.is_foreign(tmp_path / "out.jsonl")
