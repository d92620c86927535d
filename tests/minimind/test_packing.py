"""Rows against a slow, obvious packer; nothing is lost, nothing crosses a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minimind.data.cache import TokenCache
from minimind.data.mixture import Source
from minimind.data.packing import IGNORE, Rows, cut_stream, pack_documents
from minimind.errors import DataError
from minimind.run_dir import write_json
from minimind.stages.sft import Sft


def make_cache(path: Path, documents: list[list[int]], masks: list[list[int]] | None = None) -> TokenCache:
    path.mkdir()
    np.concatenate([np.array(d, dtype=np.uint16) for d in documents]).tofile(path / "tokens.bin")
    np.save(path / "offsets.npy", np.cumsum([0] + [len(d) for d in documents]))
    np.save(path / "hashes.npy", np.arange(len(documents), dtype=np.uint64))
    learnt = [len(d) - 1 for d in documents]
    if masks is not None:
        np.packbits(np.concatenate(masks).astype(bool), bitorder="little").tofile(path / "mask.bin")
        learnt = [sum(m[1:]) for m in masks]
    np.save(path / "learnt.npy", np.array(learnt))
    write_json(path / "meta.json", {"dtype": "uint16", "masked": masks is not None})
    return TokenCache(path)


def random_documents(seed: int, count: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 60_000, size=rng.integers(2, longest)).tolist() for _ in range(count)]


def check_counts(rows: Rows) -> None:
    assert (rows.targets > 0).all()  # so that no window can be without
    for number in range(len(rows)):
        tokens, targets, lengths = rows.read(np.array([number]))
        assert len(tokens) == len(targets) == sum(lengths) == rows.tokens[number]
        assert (targets != IGNORE).sum() == rows.targets[number]
        assert lengths == sorted(lengths)


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_cut_without_losing_a_token_or_a_target(tmp_path: Path, seed: int) -> None:
    documents = random_documents(seed, 40, 30)
    cache = make_cache(tmp_path / "c", documents)
    chosen = np.array([i for i in range(40) if i % 5])
    rows = cut_stream(cache, chosen, 16)
    check_counts(rows)
    assert (rows.tokens[:-1] == 16).all()
    total = sum(len(documents[i]) for i in chosen)
    assert rows.tokens.sum() in (total, total - 1)  # a last row of one token is dropped
    # every (token, next token) of every document is learnt once, and nothing else
    expected = sorted((a, b) for i in chosen for a, b in zip(documents[i], documents[i][1:]))
    tokens, targets, _ = rows.read(np.arange(len(rows)))
    found = sorted((int(a), int(b)) for a, b in zip(tokens, targets) if b != IGNORE)
    assert found == expected
    # no piece crosses a document: its tokens lie inside one
    for start, length in zip(rows.starts, rows.lengths):
        document = np.searchsorted(cache.offsets, start, side="right") - 1
        assert cache.offsets[document] <= start and start + length <= cache.offsets[document + 1]


def test_a_cut_document_goes_on_in_the_next_row(tmp_path: Path) -> None:
    rows = cut_stream(make_cache(tmp_path / "c", [[1, 2, 3, 4, 5], [6, 7, 8]]), np.arange(2), 3)
    read = [rows.read(np.array([i])) for i in range(3)]
    assert [(t.tolist(), y.tolist(), n) for t, y, n in read] == [
        ([1, 2, 3], [2, 3, 4], [3]), ([6, 4, 5], [7, 5, IGNORE], [1, 2]), ([7, 8], [8, IGNORE], [2])]


@pytest.mark.parametrize("seed", range(3))
def test_whole_conversations_are_packed_tightly(tmp_path: Path, seed: int) -> None:
    documents = random_documents(seed, 200, 20)
    rng = np.random.default_rng(seed)
    masks = [[0] + rng.integers(0, 2, len(d) - 2).tolist() + [1] for d in documents]
    cache = make_cache(tmp_path / "c", documents, masks)
    rows, counts = pack_documents(cache, np.arange(200), 32)
    check_counts(rows)
    assert counts == {"cut": 0, "cut_tokens": 0, "late": 0, "first_late": 0, "dropped": 0, "dropped_tokens": 0}
    assert sorted(rows.starts.tolist()) == cache.offsets[:-1].tolist()  # each document once
    assert rows.tokens.max() <= 32
    assert len(rows) <= 1.05 * -(-sum(map(len, documents)) // 32) + 1
    expected = sorted(b for d, m in zip(documents, masks) for b, learnt in zip(d[1:], m[1:]) if learnt)
    targets = rows.read(np.arange(len(rows)))[1]
    assert sorted(targets[targets != IGNORE].tolist()) == expected


def test_too_long_conversations_keep_a_target(tmp_path: Path) -> None:
    late = [0] * 50 + [1] * 5 + [0] * 20
    early = [0, 1] + [0] * 60
    at_the_end = [0] * 40 + [1]
    none = [0] * 9
    documents = [list(range(100 * i, 100 * i + len(m))) for i, m in enumerate((late, early, at_the_end, none))]
    cache = make_cache(tmp_path / "c", documents, [late, early, at_the_end, none])
    rows, counts = pack_documents(cache, np.arange(4), 16)
    check_counts(rows)
    assert counts == {"cut": 3, "cut_tokens": 75 + 62 + 41 - 3 * 16, "late": 2, "first_late": 1, "dropped": 1,
                      "dropped_tokens": 9}
    assert (rows.targets > 0).all() and len(rows) == 3 and (rows.tokens == 16).all()
    targets = rows.read(np.arange(3))[1]
    learnt = targets[targets != IGNORE].tolist()
    assert set(learnt) == {50, 51, 52, 53, 54, 101, 240}


def test_prompts_longer_than_the_window_are_said(tmp_path: Path) -> None:
    def warnings(masks: list[list[int]]) -> list[str]:
        cache = make_cache(tmp_path / str(len(masks)), [list(range(len(m))) for m in masks], masks)
        return Sft().data([Source("d", cache)], 16, 0.0).warnings

    short, late, silent = [0] * 8 + [1, 1], [0] * 16 + [1], [0] * 40
    assert "1 of 3 conversations have a prompt that alone is longer than 16 tokens (the first is conversation 2)" in \
        warnings([short, late, silent])[-1]
    assert not warnings([short, short])
    with pytest.raises(DataError, match="In every conversation the prompt alone is longer than the window of 16") as no:
        warnings([late, silent, late, late])
    assert no.value.field == "max_seq_len" and "larger max_seq_len" in (no.value.hint or "")
