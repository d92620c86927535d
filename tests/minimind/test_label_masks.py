"""What is learnt of 200 generated conversations, against a scan that knows nothing but how a turn begins and ends."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from minimind.chat_format import encode_conversation, encode_pair, render
from minimind.data.cache import TokenCache, content_hash, open_cache
from minimind.data.packing import IGNORE, pack_documents
from minimind.tokenizer import Tokenizer
from tests.minimind import talks
from tests.minimind.test_tokenizer import upstream

CONVERSATIONS = 200
HEADER, END = b"<|im_start|>assistant\n", b"<|im_end|>\n"


@pytest.fixture(scope="module", params=["ours", "upstream"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "upstream":
        return upstream()
    return Tokenizer.train([*talks.WORDS, *talks.WORDS, "user assistant system tool_response arguments name " * 5], 420)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Half of them with control tokens among the words; tools beside the messages, in them, and none."""
    rng = random.Random(7)
    made = []
    for number in range(CONVERSATIONS):
        messages, tools = talks.conversation(rng, forged=number % 2 == 1, answered=True)
        made.append({"conversations": messages} | ({"tools": tools} if tools else {}))
    return made


def scan_ids(tokenizer: Tokenizer, ids: list[int]) -> list[bool]:
    """Token by token: is it behind an assistant's header, up to its end? (No text of a user has the ids of either.)"""
    header, end = tokenizer.encode(HEADER.decode()), tokenizer.encode(END.decode())
    mask = [False] * len(ids)
    place = 0
    while place < len(ids):
        if ids[place:place + len(header)] == header:
            place += len(header)
            while place < len(ids) and ids[place:place + len(end)] != end:
                mask[place] = True
                place += 1
            mask[place:place + len(end)] = [True] * len(end)
            place += len(end)
        else:
            place += 1
    return mask


def scan_text(tokenizer: Tokenizer, ids: list[int], text: bytes) -> list[bool]:
    """The same of the rendered text, byte by byte; a token is learnt if its first byte is."""
    learnt = bytearray(len(text))
    begin = text.find(HEADER)
    while begin >= 0:
        begin += len(HEADER)
        end = text.index(END, begin) + len(END)
        learnt[begin:end] = b"\1" * (end - begin)
        begin = text.find(HEADER, end)
    mask, place = [], 0
    for id in ids:
        written = tokenizer.token_bytes(id, skip_special=False)
        assert text[place:place + len(written)] == written
        assert len(set(learnt[place:place + len(written)])) == 1, "a token that is learnt by half"
        mask.append(bool(learnt[place]))
        place += len(written)
    assert place == len(text)
    return mask


def test_masks_are_what_a_scan_finds(tokenizer: Tokenizer, rows: list[dict]) -> None:
    seen = dict.fromkeys(("<think>", "<tool_call>", "<tool_response>", "<tools>", "forged", "turns"), 0)
    for number, row in enumerate(rows):
        messages, tools = row["conversations"], row.get("tools")
        ids, mask = encode_conversation(tokenizer, messages, tools)
        text = render(tokenizer, messages, tools=tools)
        assert mask == scan_ids(tokenizer, ids)
        is_forged = ids.count(tokenizer.eos_id) != text.count("<|im_end|>")
        if number % 2 == 0:
            assert not is_forged and mask == scan_text(tokenizer, ids, text.encode())
        answers = sum(m["role"] == "assistant" for m in messages)
        assert sum(m and i == tokenizer.eos_id for i, m in zip(ids, mask)) == answers
        for name in seen:
            seen[name] += name in text or (name == "forged" and is_forged) or (name == "turns" and answers > 1)
    assert min(seen.values()) > 20, f"too few of a kind to show anything: {seen}"


def documents_of(tokenizer: Tokenizer, rows: list[dict], directory: Path) -> TokenCache:
    path = directory / "talks.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return open_cache(path, "conversations", tokenizer, directory / "cache", content=content_hash(path), workers=1)


@pytest.mark.parametrize("max_seq_len", [24, 96, 4096])
def test_targets_of_packed_rows_are_what_a_scan_finds(tokenizer: Tokenizer, rows: list[dict], tmp_path: Path,
                                                      max_seq_len: int) -> None:
    cache = documents_of(tokenizer, rows, tmp_path)
    documents = [encode_conversation(tokenizer, row["conversations"], row.get("tools"))[0] for row in rows]
    packed, counts = pack_documents(cache, np.arange(len(documents)), max_seq_len)
    found: list[int] = []
    for row in range(len(packed)):
        tokens, targets, lengths = packed.read(np.array([row]))
        assert len(tokens) == len(targets) == sum(lengths) <= max_seq_len
        starts = packed.starts[packed.pieces(np.array([row]))]
        place = 0
        for start, length in zip(starts, lengths):
            document = int(np.searchsorted(cache.offsets, start, side="right")) - 1
            first = int(start - cache.offsets[document])
            ids = documents[document]
            mask = scan_ids(tokenizer, ids)
            assert tokens[place:place + length].tolist() == ids[first:first + length]
            inside = range(first + 1, first + length)  # behind the piece's end nothing is predicted
            expected = [ids[i] if mask[i] else IGNORE for i in inside] + [IGNORE]
            assert targets[place:place + length].tolist() == expected
            assert any(target != IGNORE for target in expected), "a piece that teaches nothing takes room"
            assert length == min(len(ids), max_seq_len)
            assert first == 0 or not any(mask[1:max_seq_len]), "the beginning stays where something is learnt in it"
            found.append(document)
            place += length
    assert sorted(found) == list(range(len(documents))), "every conversation once"
    assert counts["cut"] == sum(len(ids) > max_seq_len for ids in documents)
    assert (counts["cut"] > 100) == (max_seq_len < 4096)


def test_masks_of_pairs_are_what_a_scan_finds(tokenizer: Tokenizer, rows: list[dict]) -> None:
    """The last answer of each conversation against another one; earlier answers are the prompt's."""
    pairs = 0
    for row in rows:
        messages = list(row["conversations"])
        while messages[-1]["role"] != "assistant":
            messages.pop()
        prompt, chosen = messages[:-1], messages[-1]
        rejected = {"role": "assistant", "content": "Something else."}
        pair = encode_pair(tokenizer, messages, [*prompt, rejected], row.get("tools"))
        for ids, mask, answer in ((pair.chosen_ids, pair.chosen_mask, chosen),
                                  (pair.rejected_ids, pair.rejected_mask, rejected)):
            whole = scan_ids(tokenizer, ids)
            turns = np.flatnonzero(np.diff([0, *whole]) == 1)
            assert len(turns) == sum(m["role"] == "assistant" for m in messages)
            assert mask == [is_learnt and place >= turns[-1] for place, is_learnt in enumerate(whole)]
            assert pair.prompt_tokens == turns[-1]
            said = tokenizer.decode(ids[turns[-1]:], skip_special=False)
            assert answer["content"] is None or answer["content"].split("</think>")[-1].strip("\n") in said
        assert pair.chosen_ids[:pair.prompt_tokens] == pair.rejected_ids[:pair.prompt_tokens]
        pairs += 1
    assert pairs == CONVERSATIONS
