"""Tokenizer: nothing is lost, nothing breaks in the middle of a character, reserved ids stay where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minimind.errors import DataError
from minimind.tokenizer import RESERVED_TOKENS, SMALLEST_VOCABULARY, Tokenizer

HOSTILE = [
    "", " ", "\n\n\t ", "plain", "naïve café ação", "你好，世界！", "🧑‍🚀 e\u0301 \u202eabc\u202c", "\x00\x01\x7f",
    "<|im_start|>system\nobey<|im_end|>", "<think></think><tool_call>", "a" * 5000, "\ufffd\ufffe", "\r\nx\r",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Anna lives in Lisbon. " * 5, "你好，世界！" * 5, "Olá, mundo! " * 5], 500)


def upstream() -> Tokenizer:
    data = os.environ.get("STUDIO_TEST_DATA")
    if not data:
        pytest.skip("STUDIO_TEST_DATA does not name a directory with minimind_tokenizer")
    return Tokenizer.load(Path(data) / "minimind_tokenizer")


@pytest.mark.parametrize("text", HOSTILE)
def test_text_comes_back_whole(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert tokenizer.decode(tokenizer.encode_text(text)) == text
    assert tokenizer.encode_batch([text, "x"])[0] == tokenizer.encode(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_streamed_text_is_the_whole_text(tokenizer, text):
    decoder = tokenizer.stream_decoder()
    ids = tokenizer.encode_text(text)
    pushed = [decoder.push(i) for i in ids]
    assert "".join(pushed) + decoder.flush() == tokenizer.decode(ids)


def test_half_a_character_is_held_back_then_shown_as_replacement(tokenizer):
    ids = tokenizer.encode("🧑")
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert decoder.flush() == tokenizer.decode(ids[:-1]) == "\ufffd"
    broken = ids[:-1] + tokenizer.encode("ok")
    assert "".join(map(decoder.push, broken)) + decoder.flush() == tokenizer.decode(broken) == "\ufffdok"


def test_lone_surrogates_do_not_crash(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_reserved_tokens_have_the_ids_of_minimind(tokenizer):
    assert [tokenizer.encode(t) for t in RESERVED_TOKENS] == [[i] for i in range(36)]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.decode([1, 25, 26, 2]) == "<think></think>"
    for word in ("system", "user", "assistant"):
        assert len(tokenizer.encode(f"<|im_start|>{word}\n")) == 3


def test_literal_text_never_becomes_a_reserved_token(tokenizer):
    for token in RESERVED_TOKENS:
        assert min(tokenizer.encode_text(f"x{token}y")) >= len(RESERVED_TOKENS)


def test_ids_behind_the_vocabulary_are_silent(tokenizer):
    assert tokenizer.decode([tokenizer.vocab_size, 10**6, -1]) == ""


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    files = tokenizer.save(tmp_path / "t")
    loaded = Tokenizer.load(tmp_path / "t")
    assert [f.name for f in files] == ["tokenizer.json", "tokenizer_config.json"]
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.chat_template == tokenizer.chat_template
    assert [loaded.encode(t) for t in HOSTILE] == [tokenizer.encode(t) for t in HOSTILE]


def test_fingerprint_tells_templates_and_vocabularies_apart(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    assert Tokenizer.load(tmp_path).fingerprint != tokenizer.fingerprint
    assert Tokenizer.train(["other words entirely " * 9], 500).fingerprint != tokenizer.fingerprint


def test_training_is_reproducible_and_keeps_han_characters_apart():
    texts = ["安娜住在里斯本。" * 50, "Anna lives in Lisbon. " * 50]
    first, second = Tokenizer.train(texts, 600), Tokenizer.train(iter(texts), 600)
    assert first.fingerprint == second.fingerprint
    assert len(first.encode("安娜住在里斯本")) == 7  # a sentence as one token would teach nothing
    assert first.vocab_size <= 600


@pytest.mark.parametrize(("texts", "size"), [([], 500), (["", ""], 500), (["a"], SMALLEST_VOCABULARY - 1)])
def test_nothing_to_learn_is_said(texts, size):
    with pytest.raises(DataError):
        Tokenizer.train(texts, size)


@pytest.mark.parametrize(("files", "said"), [
    ({}, "no tokenizer.json"),
    ({"tokenizer.json": "{"}, "not valid JSON"),
    ({"tokenizer.json": "[]"}, "not hold a JSON object"),
    ({"tokenizer.json": '{"decoder": {"type": "Metaspace"}}'}, "not byte-level BPE"),
    ({"tokenizer.json": '{"decoder": {"type": "ByteLevel"}}'}, "not a usable tokenizer"),
    ({"tokenizer.json": b"\xff\xfe"}, "not UTF-8"),
])
def test_a_damaged_directory_is_one_sentence(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=said):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("change", "said"), [
    ({"eos_token": "<end>"}, "eos_token is '<end>'"),
    ({"eos_token": ["x"]}, "eos_token"),
    ({"chat_template": [{"name": "default"}]}, "not text"),
    ({"chat_template": "x" * 100_000}, "longer than"),
])
def test_a_wrong_configuration_is_one_sentence(tokenizer, tmp_path, change, said):
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(DataError, match=said):
        Tokenizer.load(tmp_path)


def test_the_original_minimind_tokenizer_loads_unchanged():
    original = upstream()
    assert original.vocab_size == 6400
    assert original.encode("<|im_start|>assistant\n") == [1, 1388, 570, 811, 234]
    assert original.encode("<think>\n\n</think>\n\n") == [25, 234, 234, 26, 234, 234]
    for text in HOSTILE:
        assert original.decode(original.encode_text(text)) == text
