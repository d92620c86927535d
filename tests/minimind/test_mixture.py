"""Several data sets with shares: what an epoch takes, what is held out, and what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from minimind.data.cache import TokenCache, split_documents
from minimind.data.mix_option import absolute_mix, parse_mix
from minimind.data.mixture import Source, fingerprint, join, mix, quotas
from minimind.data.packing import IGNORE, Rows, cut_stream, pack_documents
from minimind.data.sampler import Mixture, Sampler, micro_batches
from minimind.errors import DataError
from minimind.stages.pretrain import Pretrain
from minimind.stages.report import in_words
from minimind.stages.sft import Sft
from tests.minimind.test_packing import make_cache, random_documents
from tests.minimind.training import TINY, events, result, run, write_texts

MAX = 1 << 64


def with_hashes(cache: TokenCache, hashes: list[int]) -> TokenCache:
    cache.hashes = np.array(hashes, dtype=np.uint64)
    return cache


def spread(cache: TokenCache, seed: int) -> TokenCache:
    """Hashes as real ones are."""
    rng = np.random.default_rng(seed)
    return with_hashes(cache, rng.integers(0, MAX, cache.num_documents, dtype=np.uint64).tolist())


def dialogue_masks(documents: list[list[int]], seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[0] + rng.integers(0, 2, len(d) - 1).tolist() for d in documents]


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    sizes = {"books": (60, 40, Fraction(1, 2)), "chats": (200, 30, Fraction(3)), "notes": (30, 12, Fraction(1))}
    return [Source(name, spread(make_cache(tmp_path / name, random_documents(seed, count, longest)), seed), weight)
            for seed, (name, (count, longest, weight)) in enumerate(sizes.items())]


# -- the option -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "parts"), [
    ("a.jsonl=3,b.jsonl=1", [("a.jsonl", 3), ("b.jsonl", 1)]),
    ("a.jsonl=0.25", [("a.jsonl", Fraction(1, 4))]),
    ("x,y=z.jsonl=2,d=1.5", [("x,y=z.jsonl", 2), ("d", Fraction(3, 2))]),
    (" a = b =1, c=2", [("a = b", 1), ("c", 2)]),
])
def test_a_mixture_is_read(text: str, parts: list) -> None:
    assert parse_mix(text) == parts
    assert parse_mix(absolute_mix(text)) == [(str(Path.cwd() / path), weight) for path, weight in parts]
    assert absolute_mix(absolute_mix(text)) == absolute_mix(text)


@pytest.mark.parametrize(("text", "said"), [
    ("a.jsonl", "'a.jsonl' has no weight"), ("a=1,b", "'b' has no weight"), ("a=-1", "has no weight"),
    ("a=nan", "has no weight"), ("a=1e400", "has no weight"), ("a=0", "is 0"), ("a=1,a=2", "twice"), ("", "no data"),
    ("=1", "has no weight"),
])
def test_a_mixture_that_says_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_mix(text)


# -- what an epoch takes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_quotas_are_the_nearest_whole_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = [Fraction(int(w), 7) for w in rng.integers(1, 50, rng.integers(2, 6))]
    shares = [w / sum(weights) for w in weights]
    total = int(rng.integers(1, 500))
    found = quotas(total, shares)
    assert sum(found) == total
    assert all(abs(q - total * share) < 1 for q, share in zip(found, shares))
    best = sum(abs(q - total * share) for q, share in zip(found, shares))
    for i in range(len(found)):
        for j in range(len(found)):  # no exchange of a row comes nearer
            moved = [q + (k == i) - (k == j) for k, q in enumerate(found)]
            assert sum(abs(q - total * share) for q, share in zip(moved, shares)) >= best


@pytest.mark.parametrize("per_step", [1, 7, 100])
def test_every_row_of_a_source_comes_once_before_any_comes_again(per_step: int) -> None:
    mixture = Mixture(sizes=(11, 40, 5), quotas=(28, 21, 7))
    sampler = Sampler(56, per_step, seed=3, mixture=mixture)
    walked: list[list[int]] = [[], [], []]
    for epoch in range(6):
        first = epoch * sampler.steps_per_epoch + 1
        rows = np.concatenate([sampler.window(first + k).rows for k in range(sampler.steps_per_epoch)])
        owners = np.searchsorted([11, 51], rows, side="right")
        assert [int((owners == s).sum()) for s in range(3)] == [28, 21, 7]  # the shares of each epoch are exact
        for source in range(3):
            walked[source] += rows[owners == source].tolist()
    for source, (begin, size) in enumerate([(0, 11), (11, 40), (51, 5)]):
        passes = [walked[source][i:i + size] for i in range(0, len(walked[source]), size)]
        for whole in passes[:-1]:
            assert sorted(whole) == list(range(begin, begin + size))
        assert len(set(passes[-1])) == len(passes[-1])
        assert passes[0] != passes[1]  # in another order each time


def test_a_window_of_a_mixture_depends_on_nothing_but_its_step() -> None:
    mixture = Mixture(sizes=(11, 40, 5), quotas=(28, 21, 7))
    forward = [Sampler(56, 6, 3, mixture).window(k).rows.tolist() for k in range(1, 40)]
    backward = Sampler(56, 6, 3, mixture)
    assert [backward.window(k).rows.tolist() for k in range(39, 0, -1)][::-1] == forward
    assert Sampler(56, 6, 4, mixture).window(1).rows.tolist() != forward[0]
    assert [r for w in forward[:10] for r in w] == Sampler(56, 56, 3, mixture).window(1).rows.tolist()
    for world in (1, 2, 3):
        shares = [micro_batches(np.array(forward[0]), 2, rank, world) for rank in range(world)]
        assert sorted(np.concatenate([b for s in shares for b in s]).tolist()) == sorted(forward[0])


def test_sources_of_one_size_are_walked_through_in_different_orders() -> None:
    order = Sampler(80, 8, 1, Mixture(sizes=(40, 40), quotas=(40, 40))).order(0)
    assert order[order < 40].tolist() != (order[order >= 40] - 40).tolist()


def test_a_mixture_of_natural_shares_is_an_ordinary_epoch() -> None:
    order = Sampler(51, 8, 1, Mixture(sizes=(11, 40), quotas=(11, 40))).order(2)
    assert sorted(order.tolist()) == list(range(51)) and order[:11].max() > 10  # the sources are shuffled together


# -- rows of several caches ------------------------------------------------------------------------------------


def read_one_by_one(rows: Rows, numbers: np.ndarray, cache: TokenCache) -> tuple[list, list]:
    """Tokens and targets by the definition, a piece and a token at a time."""
    pieces = [p for n in numbers for p in range(rows.row_starts[n], rows.row_starts[n + 1])]
    tokens, targets = [], []
    for piece in sorted(pieces, key=lambda p: rows.lengths[p]):
        start, length = int(rows.starts[piece]), int(rows.lengths[piece])
        for place in range(start, start + length):
            tokens.append(int(cache.tokens[place]))
            has_next = place + 1 < start + length or rows.open_end[piece]
            learnt = has_next and (cache.mask is None or cache.learnt(place + 1, place + 2)[0])
            targets.append(int(cache.tokens[place + 1]) if learnt else IGNORE)
    return tokens, targets


@pytest.mark.parametrize("masked", [False, True])
def test_joined_rows_read_what_their_own_caches_say(tmp_path: Path, masked: bool) -> None:
    parts = []
    for seed, (count, longest) in enumerate([(30, 25), (50, 18), (12, 30)]):
        documents = random_documents(seed, count, longest)
        cache = make_cache(tmp_path / str(seed), documents, dialogue_masks(documents, seed) if masked else None)
        every = np.arange(count)
        parts.append(pack_documents(cache, every, 16)[0] if masked else cut_stream(cache, every, 16))
    joined = join(parts)
    assert len(joined) == sum(map(len, parts))
    rng = np.random.default_rng(0)
    begin = 0
    for part in parts:
        numbers = rng.permutation(len(part))[:6]
        expected = read_one_by_one(part, numbers, part.cache)
        for rows, asked in ((part, numbers), (joined, numbers + begin)):
            tokens, targets, lengths = rows.read(asked)
            assert (tokens.tolist(), targets.tolist()) == expected
            assert sum(lengths) == len(tokens) == rows.tokens[asked].sum()
            assert (targets != IGNORE).sum() == rows.targets[asked].sum()
        begin += len(part)
    mixed = rng.permutation(len(joined))[:12]
    together = joined.read(mixed)
    alone = [joined.read(np.array([number])) for number in mixed]
    assert Counter(zip(*together[:2])) == Counter(pair for tokens, targets, _ in alone for pair in zip(tokens, targets))


def test_mean_piece_length_follows_the_shares(tmp_path: Path) -> None:
    short = make_cache(tmp_path / "short", [[1] * 4 for _ in range(40)])
    long = make_cache(tmp_path / "long", [[2] * 16 for _ in range(10)])
    parts = [cut_stream(cache, np.arange(cache.num_documents), 16) for cache in (short, long)]
    assert parts[0].mean_piece_length == 4 and join(parts).mean_piece_length == 320 / 50
    rows = mix([Source("s", short, Fraction(1)), Source("l", long, Fraction(4))], parts)  # 4 and 16 rows of 20
    assert rows.mean_piece_length == pytest.approx((4 * 16 + 16 * 16) / (4 * 4 + 16))


# -- what is held out ------------------------------------------------------------------------------------------


def test_held_out_documents_of_every_source_are_never_learnt(sources: list[Source]) -> None:
    data = Pretrain().data(sources, 16, 0.1)
    assert data.held_out is not None
    splits = split_documents([s.cache for s in sources], 0.1)
    assert all(len(train) and len(held) for train, held in splits)
    # pieces by the document that they stand in, found without the split
    bases = np.cumsum([0] + [s.cache.num_tokens for s in sources])
    first = np.concatenate([s.cache.offsets[:-1] + base for s, base in zip(sources, bases)])
    learnt, held = ({int(d) for d in np.searchsorted(first, rows.starts, side="right") - 1}
                    for rows in (data.train, data.held_out))
    assert not learnt & held and len(learnt | held) == len(first)
    documents = np.cumsum([0] + [s.cache.num_documents for s in sources])
    assert all(any(a <= d < b for d in held) for a, b in zip(documents, documents[1:]))


def test_equal_documents_fall_on_one_side_in_all_sources(tmp_path: Path) -> None:
    documents = random_documents(0, 12, 9)
    small = with_hashes(make_cache(tmp_path / "small", documents), [MAX // 2 + i for i in range(12)])
    large = with_hashes(make_cache(tmp_path / "large", documents * 2),
                        [MAX // 2 + i for i in range(12)] + [7] + [MAX - 1 - i for i in range(11)])
    only = with_hashes(make_cache(tmp_path / "only", documents[:1]), [7])
    splits = split_documents([small, large], 0.01)
    assert splits[0][1].tolist() == [0]  # of ten documents one at least
    assert splits[1][1].tolist() == [0, 12] and not set(splits[1][0]) & {0, 12}
    data = Pretrain().data([Source("small", small), Source("large", large)], 16, 0.01)
    assert data.report["held_out_documents"] == 3
    splits = split_documents([large, only], 0.01)  # one document alone is left to train on, everywhere
    assert [s.tolist() for s in splits[1]] == [[0], []] and 12 in splits[0][0]


# -- fingerprint, report, refusals -----------------------------------------------------------------------------


def test_the_fingerprint_knows_caches_order_and_shares(sources: list[Source]) -> None:
    def weighted(*weights: str) -> str:
        return fingerprint([Source(s.name, s.cache, Fraction(w)) for s, w in zip(sources, weights)])

    assert weighted("1", "2", "1") == weighted("0.5", "1", "0.5")
    different = [weighted("1", "2", "1"), weighted("1", "2", "1.1"), weighted("1", "2"), fingerprint(sources[::-1])]
    assert len(set(different)) == 4
    assert fingerprint(sources[:1]) == sources[0].cache.fingerprint == weighted("5")  # a weight alone says nothing


def test_a_report_of_texts_adds_up(sources: list[Source]) -> None:
    data = Pretrain().data(sources, 16, 0.1)
    report = data.report
    json.dumps(report)
    lengths = np.concatenate([s.cache.sizes[s_train] for s, (s_train, _) in
                              zip(sources, split_documents([s.cache for s in sources], 0.1))])
    assert report["tokens"] == lengths.sum() and report["documents"] == len(lengths)
    assert report["document_tokens"] == {"mean": round(lengths.mean(), 1), "median": np.median(lengths),
                                         "longest": lengths.max()}
    assert report["used_tokens"] + report["cut_tokens"] + report["dropped_tokens"] == report["tokens"]
    assert report["used_tokens"] == data.train.tokens.sum() and report["rows"] == len(data.train)
    assert report["fill"] == pytest.approx(report["used_tokens"] / (16 * len(data.train)), abs=1e-4)
    total = sum(s.cache.num_tokens for s in sources)
    assert report["tokens"] + report["held_out_tokens"] == total
    assert [s["name"] for s in report["sources"]] == ["books", "chats", "notes"]
    assert sum(s["tokens"] for s in report["sources"]) == report["tokens"]
    assert sum(s["rows"] for s in report["sources"]) == sum(s["rows_per_epoch"] for s in report["sources"])
    assert [s["share"] for s in report["sources"]] == pytest.approx([1 / 9, 2 / 3, 2 / 9], abs=1 / len(data.train))
    for source in report["sources"]:
        assert f"{source['share']:.1%} {source['name']} (" in in_words(report)
    assert f"{report['tokens']:,} tokens" in in_words(report)


def test_a_report_of_dialogues_names_what_is_left_out(tmp_path: Path) -> None:
    documents = random_documents(5, 80, 40)
    masks = dialogue_masks(documents, 5)
    for mask in masks[::9]:
        mask[:] = [0] * len(mask)
    data = Sft().data([Source("d", spread(make_cache(tmp_path / "d", documents, masks), 5))], 16, 0.0)
    report = data.report
    silent = [d for d, m in zip(documents, masks) if not any(m)]
    long = [d for d, m in zip(documents, masks) if any(m) and len(d) > 16]
    assert (report["dropped_documents"], report["dropped_tokens"]) == (len(silent), sum(map(len, silent)))
    assert (report["cut_documents"], report["cut_tokens"]) == (len(long), sum(len(d) - 16 for d in long))
    assert report["used_tokens"] + report["cut_tokens"] + report["dropped_tokens"] == sum(map(len, documents))
    assert report["learnt_share"] == pytest.approx(data.train.targets.sum() / data.train.tokens.sum(), abs=1e-4)
    assert report["held_out_documents"] == 0 and report["sources"] == [] and data.held_out is None
    assert [f"{len(long)} of 80" in data.warnings[0], f"{len(silent)} of 80" in data.warnings[1]] == [True, True]
    assert f"{report['cut_tokens']:,} tokens that were cut" in in_words(report)


def test_a_source_that_would_never_be_read_is_named(sources: list[Source]) -> None:
    tiny = [sources[0], Source("notes", sources[2].cache, Fraction(1, 10**6))]
    with pytest.raises(DataError, match="notes has so small a weight"):
        Pretrain().data(tiny, 16, 0.1)


# -- a whole run -----------------------------------------------------------------------------------------------


def test_a_run_learns_from_a_mixture_and_refuses_another_one(tmp_path: Path) -> None:
    write_texts(tmp_path / "a.jsonl", count=40, seed=1)
    (tmp_path / "b.txt").write_text("\n\n".join(f"Line {i} of a plain text." for i in range(90)) + "\n")
    a, b = tmp_path / "a.jsonl", tmp_path / "b.txt"
    start = ["pretrain", *TINY, "--out", tmp_path / "run", "--cache_dir", tmp_path / "cache", "--sample_interval", 0]
    assert run(*start, "--data_mix", f"{a}=1,{b}=3", "--max_steps", 4, "--save_interval", 2) == 0
    reports = [e["data"]["data"] for e in events(tmp_path / "run", 1, "log") if "data" in e["data"]]
    assert len(reports) == 1 and [s["name"] for s in reports[0]["sources"]] == ["a.jsonl", "b.txt"]
    shares = [s["rows_per_epoch"] / reports[0]["rows"] for s in reports[0]["sources"]]
    assert shares == pytest.approx([0.25, 0.75], abs=1 / reports[0]["rows"])
    told = [e["data"] for e in events(tmp_path / "run", 1, "phase") if e["data"]["phase"] == "tokenize"]
    total = (a.stat().st_size + b.stat().st_size) / 1e6
    assert told[-1]["done"] == told[-1]["total"] == pytest.approx(total) and told[-1]["unit"] == "MB"
    again = [*start, "--resume", tmp_path / "run/checkpoints/step-00000002-a1"]
    assert run(*again, "--data_mix", f"{a}=1,{b}=2") == 2
    assert "the training data changed" in result(tmp_path / "run", 2)["error"]["message"]
    assert "--allow_changes" in result(tmp_path / "run", 2)["error"]["hint"]
    assert run(*again, "--data_mix", f"{a}=2,{b}=6") == 0  # the same shares


def test_the_trainer_takes_rows_by_their_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minimind import trainer

    seen: list[Mixture | None] = []

    class Watched(Sampler):
        def __init__(self, *what: object) -> None:
            super().__init__(*what)  # type: ignore[arg-type]
            seen.append(self.mixture)

    monkeypatch.setattr(trainer, "Sampler", Watched)
    a, b = (write_texts(tmp_path / f"{n}.jsonl", count=40, seed=n) for n in (1, 2))
    assert run("pretrain", *TINY, "--out", tmp_path / "run", "--cache_dir", tmp_path / "cache", "--max_steps", 1,
               "--sample_interval", 0, "--data_mix", f"{a}=1,{b}=1") == 0
    assert seen and seen[0] is not None and len(seen[0].sizes) == 2


def test_data_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", *TINY, "--out", tmp_path / "r", "--data_mix", "a=1", "--data_path", "a") == 2
    assert "data_path and data_mix both" in capsys.readouterr().err
    assert run("pretrain", *TINY, "--out", tmp_path / "r", "--data_mix", f"{tmp_path / 'nowhere'}=1") == 2
    assert "Check --data_mix" in capsys.readouterr().err
