"""The tokenized cache: what stands in it, that it is made once, and that two makers do not meet."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from minimind.chat_format import encode_conversation
from minimind.data import cache as caching
from minimind.data.cache import TokenCache, content_hash, open_cache
from minimind.errors import DataError, DiskFullError
from minimind.tokenizer import Tokenizer
from tests.minimind.training import WORDS, write_dialogues, write_texts


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 20, 400)


def opened(path: Path, tokenizer: Tokenizer, tmp_path: Path, layout: str = "text", **more: object) -> TokenCache:
    return open_cache(path, layout, tokenizer, tmp_path / "cache", content=content_hash(path), **more)


def test_texts_become_framed_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_texts(tmp_path / "d.jsonl", count=1200)
    cache = opened(data, tokenizer, tmp_path)
    rows = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    assert cache.num_documents == len(rows) == 1200
    for i in (0, 511, 512, 1199):
        document = cache.tokens[cache.offsets[i]:cache.offsets[i + 1]]
        assert document.tolist() == [tokenizer.bos_id, *tokenizer.encode(rows[i]), tokenizer.eos_id]
    assert cache.tokens.dtype == np.uint16 and cache.mask is None
    assert (cache.num_learnt == cache.sizes - 1).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_dialogues_keep_their_mask(tmp_path: Path, tokenizer: Tokenizer, workers: int,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "POOL_FROM_BYTES", 0)
    data = write_dialogues(tmp_path / "d.jsonl", count=600)
    cache = opened(data, tokenizer, tmp_path, "conversations", workers=workers)
    for i, line in enumerate(data.read_text().splitlines()):
        ids, mask = encode_conversation(tokenizer, json.loads(line)["conversations"])
        start, end = int(cache.offsets[i]), int(cache.offsets[i + 1])
        assert cache.tokens[start:end].tolist() == ids
        assert cache.learnt(start, end).tolist() == mask
        assert cache.num_learnt[i] == sum(mask[1:])


@pytest.mark.parametrize("layout", ["text", "txt"])
def test_small_batches_in_many_processes_make_the_same_cache(tmp_path: Path, tokenizer: Tokenizer, layout: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_texts(tmp_path / "d.jsonl", count=500)
    if layout == "txt":
        texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
        data = tmp_path / "d.txt"
        data.write_text("\n\n\n".join(texts))  # without a newline at the end
    plain = opened(data, tokenizer, tmp_path, layout)
    monkeypatch.setattr(caching, "POOL_FROM_BYTES", 0)
    monkeypatch.setattr(caching, "BATCH_BYTES", 4000)
    told: list[tuple[int, int]] = []
    cache = open_cache(data, layout, tokenizer, tmp_path / "other", content=content_hash(data), workers=2,
                       progress=lambda rows, size: told.append((rows, size)))
    for name in ("tokens.bin", "offsets.npy", "hashes.npy", "learnt.npy", "meta.json"):
        assert (cache.path / name).read_bytes() == (plain.path / name).read_bytes()
    size = data.stat().st_size
    assert told[-1] == (500, size) and size / 5000 < len(told) < size / 4000 + 1
    assert told == sorted(told)
    assert all(abs(rows / 500 - done / size) < 0.1 for rows, done in told)


def test_places_are_read_one_by_one_as_in_a_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_dialogues(tmp_path / "d.jsonl", count=50)
    cache = opened(data, tokenizer, tmp_path, "conversations")
    places = np.random.default_rng(0).permutation(cache.num_tokens)
    assert (cache.ids_at(places) == cache.tokens[:][places]).all()
    assert (cache.is_learnt_at(places) == cache.learnt(0, cache.num_tokens)[places]).all()
    assert cache.ids_at(np.array([cache.num_tokens])) == cache.tokens[-1]


def test_it_is_made_once_and_its_name_says_what_decides_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_texts(tmp_path / "d.jsonl")
    calls: list[int] = []
    first = opened(data, tokenizer, tmp_path, progress=lambda rows, size: calls.append(rows))
    assert calls == [60]
    assert opened(data, tokenizer, tmp_path, progress=lambda rows, size: calls.append(rows)).path == first.path
    assert calls == [60]
    copy = tmp_path / "other.jsonl"
    copy.write_bytes(data.read_bytes())
    assert opened(copy, tokenizer, tmp_path).path == first.path
    copy.write_text(data.read_text() + '{"text": "one more"}\n')
    assert opened(copy, tokenizer, tmp_path).path != first.path
    other = Tokenizer.train(["completely different words"] * 9, 320)
    assert opened(data, other, tmp_path).path != first.path


def test_another_way_of_reading_files_of_others_gives_another_name(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = tmp_path / "a.json", write_texts(tmp_path / "d.jsonl")
    theirs.write_text('[{"instruction": "Who?", "input": "", "output": "Me."}]')
    before = content_hash(theirs), content_hash(ours)
    monkeypatch.setattr("minimind.data.cache.CONVERSION_VERSION", 0)
    assert content_hash(theirs) != before[0] and content_hash(ours) == before[1]


def test_two_makers_at_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_texts(tmp_path / "d.jsonl", count=3000)
    meeting = threading.Barrier(2)
    found: list[TokenCache] = []

    def make() -> None:
        first = iter([True])
        found.append(opened(data, tokenizer, tmp_path,
                            progress=lambda rows, size: meeting.wait(20) if next(first, False) else None))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].path == found[1].path and found[0].num_documents == 3000
    assert [p.name for p in (tmp_path / "cache/tokens").iterdir()] == [found[0].path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_half_made_is_left(tmp_path: Path, tokenizer: Tokenizer, error: BaseException) -> None:
    def stop(rows: int, size: int) -> None:
        raise error

    data = write_texts(tmp_path / "d.jsonl")
    with pytest.raises((KeyboardInterrupt, DiskFullError)):
        opened(data, tokenizer, tmp_path, progress=stop)
    assert list((tmp_path / "cache/tokens").iterdir()) == []


def test_a_bad_row_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = write_texts(tmp_path / "d.jsonl")
    data.write_text(data.read_text() + "{broken\n")
    with pytest.raises(DataError) as raised:
        opened(data, tokenizer, tmp_path)
    assert raised.value.line == 61


def test_held_out_documents_are_chosen_by_content(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = write_texts(tmp_path / "a.jsonl", count=400).read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(lines + lines[:50])) + "\n")
    sides = []
    for name in ("a.jsonl", "b.jsonl"):
        cache = opened(tmp_path / name, tokenizer, tmp_path)
        train, held = cache.split(0.1)
        assert len(train) + len(held) == cache.num_documents and 0.04 < len(held) / cache.num_documents < 0.2
        sides.append({int(cache.hashes[i]) for i in held})
        assert not sides[-1] & {int(cache.hashes[i]) for i in train}
    assert sides[0] == sides[1]
    small = opened(write_texts(tmp_path / "c.jsonl", count=12), tokenizer, tmp_path)
    assert len(small.split(1e-9)[1]) == 1 and len(small.split(0)[1]) == 0
    same = tmp_path / "same.jsonl"
    same.write_text('{"text": "again"}\n' * 20)
    assert len(opened(same, tokenizer, tmp_path).split(0.5)[0]) == 20
