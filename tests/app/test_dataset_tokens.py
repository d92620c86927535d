"""A preview as tokens against what the training stages read: the core's own encoding is the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.core.db import now, transaction
from app.core.models import Checkpoint, TokenizerRow
from app.datasets import service, tokens
from minimind.data.cache import encode_rows
from minimind.data.layouts import iter_rows
from minimind.tokenizer import CONFIG_FILE, EOS, Tokenizer
from tests.app.conftest import Api
from tests.app.test_datasets import imported
from tests.app.test_runs import new_run, problems

TEXTS = ["The ferry left the harbour at nine.", "船在九点离开港口。🦊🦊", f"Reserved {EOS} in a text <think>", "é" * 30]
DIALOGUES = [
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"你好 {EOS} 🦊"},
     {"role": "assistant", "content": "早上好! 🦊", "reasoning_content": "It is morning."},
     {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Good night."}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}],
]


@pytest.fixture
def words(api: Api) -> Tokenizer:
    """A ready tokenizer of the id ``words``, too small to hold a Chinese character in one token."""
    tokenizer = Tokenizer.train(["The ferry left the harbour at nine."] * 5, 320)
    directory = api.data_dir / "tokenizers" / "words"
    tokenizer.save(directory)
    with transaction() as session:
        session.add(TokenizerRow(id="words", name="words", user_id="local", state="ready", vocab_size=320,
                                 fingerprint=tokenizer.fingerprint, path=str(directory), source={"kind": "upload"},
                                 created_at=now(session)))
    return tokenizer


def add_checkpoint(path: Path, run_id: str, state: str = "ready", step: int = 3) -> str:
    with transaction() as session:
        row = Checkpoint(run_id=run_id, attempt=1, stage="pretrain", step=step, tokens=300, bytes=11, loss=2.0,
                         path=str(path), state=state, created_at=now(session))
        session.add(row)
    return row.id


def data(api: Api, *rows: dict, **fields: str) -> str:
    dataset = imported(api, b"\n".join(json.dumps(r).encode() for r in rows), **fields)
    assert dataset["state"] == "ready", dataset
    return dataset["id"]


def shown(api: Api, id: str, **params: object) -> list[dict]:
    answer = api.get(f"/datasets/{id}/preview", **params)
    assert answer.status_code == 200, answer.text
    return answer.json()["items"]


def is_as_trained(row: list[dict], tokenizer: Tokenizer, layout: str, raw: dict) -> None:
    ids, _, _, mask, _ = encode_rows(tokenizer, layout, [(1, raw)])
    learnt = [i > 0 if mask is None else bool(mask[i]) for i in range(len(ids))]
    assert [t["id"] for t in row] == ids.tolist() and [t["is_target"] for t in row] == learnt
    assert "".join(t["text"] for t in row) == tokenizer.decode(ids, skip_special=False)
    for place, token in enumerate(row):
        assert token["is_special"] == (token["id"] <= 20), "the ids of control tokens"
        before = b"".join(tokenizer.token_bytes(t["id"], False) for t in row[:place + 1])
        assert token["is_partial"] == (before.decode("utf-8", "ignore") != before.decode("utf-8", "replace"))


@pytest.mark.parametrize("stage", [None, "pretrain"])
def test_texts_are_shown_as_pretraining_reads_them(api: Api, words: Tokenizer, stage: str | None) -> None:
    id = data(api, *({"text": t} for t in TEXTS))
    rows = shown(api, id, tokenizer="words", **({"stage": stage} if stage else {}))
    for row, text in zip(rows, TEXTS, strict=True):
        is_as_trained(row["tokens"], words, "text", {"text": text})
        assert "".join(t["text"] for t in row["tokens"]) == f"<|im_start|>{text}<|im_end|>"
        assert row["rejected_tokens"] is None and not row["tokens_cut"]
    assert any(t["is_partial"] and t["text"] == "" for t in rows[1]["tokens"])
    plain = shown(api, id)
    assert [r["tokens"] for r in plain] == [None] * 4 and [r["row"] for r in plain] == [r["row"] for r in rows]


def test_paragraphs_of_plain_text(api: Api, words: Tokenizer) -> None:
    id = imported(api, "One\nand a half.\n\nTwo 船.".encode(), layout="txt")["id"]
    rows = shown(api, id, tokenizer="words", stage="pretrain")
    assert len(rows) == 2
    for row in rows:
        is_as_trained(row["tokens"], words, "txt", row["row"])


def test_dialogues_are_shown_as_fine_tuning_reads_them(api: Api, words: Tokenizer) -> None:
    id = data(api, *({"conversations": d} for d in DIALOGUES))
    for row, dialogue in zip(shown(api, id, tokenizer="words", stage="sft"), DIALOGUES, strict=True):
        is_as_trained(row["tokens"], words, "conversations", {"conversations": dialogue})
    learnt = "".join(t["text"] for t in shown(api, id, tokenizer="words")[0]["tokens"] if t["is_target"])
    assert "早上好! 🦊" in learnt and "Good night.<|im_end|>" in learnt
    assert "你好" not in learnt and "kind" not in learnt


ASKED = [*DIALOGUES[0][:3], {"role": "user", "content": "And now?"}]
PAIRS = [
    {"chosen": [*ASKED, {"role": "assistant", "content": "<think>\n\n</think>\n\nGood night."}],
     "rejected": [*ASKED, {"role": "assistant", "content": "No idea. 🦊", "reasoning_content": "Whatever."}]},
    {"chosen": [ASKED[1], {"role": "assistant", "content": "早上好!"}], "tools": [{"name": "tides"}],
     "rejected": [ASKED[1], {"role": "assistant", "content": ""}, ASKED[3], {"role": "assistant", "content": "Bye"}]},
]


def test_both_sides_of_a_preference_as_its_stage_reads_them(api: Api, words: Tokenizer) -> None:
    """Only what stands behind the common prompt is learnt; an empty think block makes no difference."""
    id = data(api, *PAIRS)
    rows = shown(api, id, tokenizer="words", stage="dpo")
    for row, raw in zip(rows, PAIRS, strict=True):
        ids, lengths, _, mask, _ = encode_rows(words, "dpo", [(1, raw)])
        for side, start, end in ((row["tokens"], 0, lengths[0]), (row["rejected_tokens"], lengths[0], len(ids))):
            assert [t["id"] for t in side] == ids[start:end].tolist()
            assert [t["is_target"] for t in side] == mask[start:end].tolist()
    learnt = [["".join(t["text"] for t in side if t["is_target"]) for side in (row["tokens"], row["rejected_tokens"])]
              for row in rows]
    assert learnt == [["Good night.<|im_end|>\n", "<think>\nWhatever.\n</think>\n\nNo idea. 🦊<|im_end|>\n"],
                      ["早上好!<|im_end|>\n", "<|im_end|>\nBye<|im_end|>\n"]]
    counted = api.get(f"/datasets/{id}/tokens", tokenizer="words").json()
    assert counted["tokens"] == sum(len(encode_rows(words, "dpo", [(1, raw)])[0]) for raw in PAIRS)


def test_a_pair_that_compares_nothing_is_named_by_its_line(api: Api, words: Tokenizer) -> None:
    same = {"chosen": PAIRS[0]["chosen"],
            "rejected": [*ASKED, {"role": "assistant", "content": "\nGood night."}]}
    id = data(api, PAIRS[0], same)
    said = problems(api.get(f"/datasets/{id}/preview", tokenizer="words"))
    assert "Line 2: chosen and rejected are the same" in said["rejected"]
    assert len(shown(api, id)) == 2, "as text they can be looked at"


def test_a_pair_of_which_one_side_is_too_long_is_not_shown(api: Api, words: Tokenizer,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_DIALOGUE_CHARS", 600)
    long = {"chosen": PAIRS[0]["chosen"], "rejected": [*ASKED, {"role": "assistant", "content": "x" * 700}]}
    (row,) = shown(api, data(api, long), tokenizer="words")
    assert row["tokens"] == row["rejected_tokens"] == [] and row["tokens_cut"]


def test_a_checkpoint_brings_its_tokenizer(api: Api, words: Tokenizer, tmp_path: Path) -> None:
    id, run = data(api, {"text": TEXTS[1]}), new_run(api)["id"]
    path = tmp_path / "checkpoint"
    words.save(path)
    checkpoint = add_checkpoint(path, run)
    by_checkpoint = shown(api, id, checkpoint=checkpoint)
    assert by_checkpoint == shown(api, id, tokenizer="words")
    (path / "tokenizer.json").unlink()
    assert "no longer there" in problems(api.get(f"/datasets/{id}/preview", checkpoint=checkpoint))["checkpoint"]
    for wrong in (add_checkpoint(path / "x", run, "deleted", 4), "nope", "../x"):
        assert "checkpoint" in problems(api.get(f"/datasets/{id}/preview", checkpoint=wrong))


def test_long_rows_are_cut(api: Api, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 50)
    monkeypatch.setattr(tokens, "_FIRST_CHARS", 10)
    monkeypatch.setattr(tokens, "MAX_DIALOGUE_CHARS", 2000)
    text = "船 The ferry left. " * 200
    id = data(api, {"text": text}, {"text": "x" * 48}, {"text": "x" * 49})
    long, fits, over = shown(api, id, tokenizer="words")
    whole, *_ = encode_rows(words, "text", [(1, {"text": text})])
    assert [t["id"] for t in long["tokens"]] == whole[:50].tolist() and long["tokens_cut"]
    assert (len(fits["tokens"]), fits["tokens_cut"]) == (50, False), "begin, 48, end"
    assert (len(over["tokens"]), over["tokens_cut"]) == (50, True)
    asked = {"role": "user", "content": "why? " * 300}
    talks = data(api, {"conversations": [asked, DIALOGUES[0][2]]}, {"conversations": [asked, asked, DIALOGUES[0][2]]})
    some, none = shown(api, talks, tokenizer="words")
    assert len(some["tokens"]) == 50 and some["tokens_cut"] and none["tokens"] == [] and none["tokens_cut"]


def test_half_a_character_at_the_cut_stays_unsaid(api: Api, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 3)  # begin, and two of the three bytes
    (row,) = shown(api, data(api, {"text": "船"}), tokenizer="words")
    assert [t["text"] for t in row["tokens"]] == ["<|im_start|>", "", ""]
    assert [t["is_partial"] for t in row["tokens"]] == [False, True, True] and row["tokens_cut"]


def test_what_cannot_be_shown_is_said(api: Api, words: Tokenizer) -> None:
    id = data(api, {"text": "a"})
    path = f"/datasets/{id}/preview"
    assert "tokenizer" in problems(api.get(path, tokenizer="nope"))
    assert "tokenizer" in problems(api.get(path, tokenizer="words", checkpoint="x"))
    assert "limit" in problems(api.get(path, tokenizer="words", limit=21))
    assert api.get(path, limit=21).status_code == 200
    for stage in ("sft", "tokenizer", "nonsense"):
        assert "stage" in problems(api.get(path, tokenizer="words", stage=stage)), stage
    config = api.data_dir / "tokenizers" / "words" / CONFIG_FILE
    config.write_text(json.dumps(json.loads(config.read_text()) | {
        "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"}))
    talks = data(api, {"conversations": DIALOGUES[1]})
    said = problems(api.get(f"/datasets/{talks}/preview", tokenizer="words"))
    assert "Line 1" in said["chat_template"]


def test_the_view_reads_what_the_file_holds(api: Api, words: Tokenizer, tmp_path: Path) -> None:
    """Half a surrogate pair, which an answer cannot hold, is what the core makes of it."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(rb'{"text": "a\ud800b"}' + b"\n")
    ((line, row),) = iter_rows(path, "text")
    fields = tokens.TokenView(words, "text").fields(line, row)
    ids, *_ = encode_rows(words, "text", [(1, row)])
    assert [t.id for t in fields["tokens"]] == ids.tolist()
    assert "".join(t.text for t in fields["tokens"]) == "<|im_start|>a\ufffdb<|im_end|>"


def test_of_a_question_for_a_teacher_nothing_is_learnt(words: Tokenizer) -> None:
    row = tokens.TokenView(words, "questions").fields(1, {"question": "Where is the ferry?"})
    assert "".join(t.text for t in row["tokens"]) == "<|im_start|>user\nWhere is the ferry?<|im_end|>\n"
    assert not any(t.is_target for t in row["tokens"])


TOOLS = [{"type": "function", "function": {"name": "tides", "parameters": {"type": "object"}}}]


def test_the_layout_says_what_is_read(api: Api, words: Tokenizer) -> None:
    """Not the keys: a row may have those of another layout too."""
    talk = {"conversations": DIALOGUES[0], "text": None, "chosen": 1, "tools": TOOLS}
    id = data(api, talk, {**talk, "text": "x"}, layout="conversations")
    for row in shown(api, id, tokenizer="words"):
        is_as_trained(row["tokens"], words, "conversations", talk)
    text = data(api, {"conversations": None, "text": "x", "chosen": []}, layout="text")
    is_as_trained(shown(api, text, tokenizer="words")[0]["tokens"], words, "text", {"text": "x"})
    assert api.get(f"/datasets/{text}/tokens", tokenizer="words").json()["tokens"] == 3


@pytest.mark.parametrize("layout", ["text", "conversations", "txt"])
def test_all_tokens_are_those_that_training_reads(api: Api, words: Tokenizer, layout: str) -> None:
    if layout == "conversations":
        id = data(api, *({"conversations": d, "text": None, "tools": TOOLS} for d in DIALOGUES), layout=layout)
    elif layout == "text":
        id = data(api, *({"text": t} for t in TEXTS))
    else:
        id = imported(api, "One\nand a half.\n\nTwo 船.".encode(), layout=layout)["id"]
    path = next(p for p in (api.data_dir / "datasets" / id).rglob("*") if p.suffix in (".jsonl", ".txt"))
    ids, *_ = encode_rows(words, layout, list(iter_rows(path, layout)))
    viewer = api.as_role("guest", "viewer").get(f"/api/v1/datasets/{id}/tokens", params={"tokenizer": "words"})
    assert viewer.json()["tokens"] == len(ids) and api.get(f"/datasets/{id}").json()["tokens"] is None
    counted = api.get(f"/datasets/{id}/tokens", tokenizer="words").json()
    assert counted["tokens"] == len(ids) and counted["is_exact"]
    assert api.get(f"/datasets/{id}").json()["tokens"] == len(ids)


def test_counting_is_bounded(api: Api, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_CHARS_AT_ONCE", 100)
    rows = [(n, {"text": "x" * size}) for n, size in enumerate([40, 70, 10, 200, 5])]
    assert [len(batch) for batch, *_ in service._batches(iter(rows), "text")] == [2, 2, 1]
    monkeypatch.setattr(service, "COUNTED_CHARS", 1000)
    text, talk = {"text": "The ferry. " * 400}, {"conversations": [
        {"role": "user", "content": "why? " * 600}, DIALOGUES[0][2]]}
    for layout, row in (("text", text), ("conversations", talk)):
        counted = api.get(f"/datasets/{data(api, row, layout=layout)}/tokens", tokenizer="words").json()
        exact = len(encode_rows(words, layout, [(1, row)])[0])
        assert not counted["is_exact"] and abs(counted["tokens"] - exact) < 0.1 * exact
