"""Rows without padding: which pieces of which documents stand in each row.

A row is a list of *pieces*; a piece is a run of tokens of one document and sees nothing outside itself. Pretraining
cuts the stream of all documents every ``max_seq_len`` tokens; fine-tuning packs whole conversations, best fit first;
preferences keep both sides of a pair in one row.
A piece's targets are its tokens shifted by one; the last one's target is the document's next token, where there
is one. Everything is vectorised or linear: a billion tokens are laid out in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from minimind.data.cache import TokenCache
from minimind.data.sampler import Mixture

IGNORE = -100


class Tokens(Protocol):
    """Where rows read from: one ``TokenCache``, or several in a line (``mixture.JoinedCaches``)."""

    @property
    def is_masked(self) -> bool: ...

    def ids_at(self, places: np.ndarray) -> np.ndarray: ...

    def is_learnt_at(self, places: np.ndarray) -> np.ndarray: ...


@dataclass
class Rows:
    """R rows of P pieces in a token cache; all arrays are int64.

    ``starts`` [P] first token of a piece in the cache, ``lengths`` [P] its tokens, ``open_end`` [P] bool: the
    document goes on behind it; ``row_starts`` [R + 1] first piece of each row; ``targets`` [R] and ``tokens`` [R]
    learnt and read tokens of each row. ``mixture``: how often rows of each source are taken, where there are several
    (every row once an epoch otherwise). ``documents`` [P]: number of each piece's document among those of all sources,
    known of pairs alone.
    """

    cache: Tokens
    starts: np.ndarray
    lengths: np.ndarray
    open_end: np.ndarray
    row_starts: np.ndarray
    targets: np.ndarray
    tokens: np.ndarray
    mixture: Mixture | None = None
    documents: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def mean_piece_length(self) -> float:
        """Tokens that a piece has on average over an epoch: the context of attention, for counting arithmetic."""
        times = self.mixture.times_per_epoch() if self.mixture else np.ones(len(self))
        return float((self.tokens * times).sum() / (np.diff(self.row_starts) * times).sum())

    def pieces(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the pieces of ``rows``, shortest piece first (see ``attention.pack_order``), stable."""
        found = _ranges(self.row_starts[rows], self.row_starts[rows + 1] - self.row_starts[rows])
        return found[np.argsort(self.lengths[found], kind="stable")]

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """``(tokens [N], targets [N], lengths of the pieces)`` of ``rows`` as one stream, both int64.

        Whole arrays at once: 16 rows of 256 take less than 0.1 ms; a loop over their pieces took 0.6.
        """
        pieces = self.pieces(rows)
        lengths = self.lengths[pieces]
        places = _ranges(self.starts[pieces], lengths)
        tokens = self.cache.ids_at(places)
        last = np.cumsum(lengths) - 1  # of each piece, in the stream
        targets = np.append(tokens[1:], IGNORE)
        targets[last] = IGNORE
        goes_on = last[self.open_end[pieces]]
        targets[goes_on] = self.cache.ids_at(places[goes_on] + 1)
        if self.cache.is_masked:
            targets[~self.cache.is_learnt_at(places + 1)] = IGNORE
        return tokens, targets, lengths.tolist()


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``start``, ``start + 1``, ... ``start + length - 1`` of every pair, one behind the other."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)


def cut_stream(cache: TokenCache, documents: np.ndarray, max_seq_len: int) -> Rows:
    """The documents one behind the other, cut every ``max_seq_len`` tokens; the last row is shorter."""
    first, size = cache.offsets[documents], cache.sizes[documents]
    ends = np.cumsum(size)  # of the documents, in the stream of all of them
    begins = ends - size
    total = int(ends[-1])
    cuts = np.arange(0, total, max_seq_len)
    piece_starts = np.unique(np.concatenate([begins, cuts]))  # a piece starts at a document or at a cut
    if total - cuts[-1] == 1:  # a row of one token would teach nothing
        total, cuts, piece_starts = total - 1, cuts[:-1], piece_starts[piece_starts < total - 1]
    piece_ends = np.append(piece_starts[1:], total)
    document = np.searchsorted(ends, piece_starts, side="right")
    starts = first[document] + (piece_starts - begins[document])
    lengths = piece_ends - piece_starts
    open_end = piece_ends < ends[document]
    row_starts = np.append(np.searchsorted(piece_starts, cuts), len(piece_starts))
    return _rows(cache, starts, lengths, open_end, row_starts, lengths - 1 + open_end)


def pack_documents(cache: TokenCache, documents: np.ndarray, max_seq_len: int) -> tuple[Rows, dict[str, int]]:
    """Whole documents in as few rows as best-fit-decreasing finds; too long ones are cut to ``max_seq_len``.

    A cut keeps the beginning where something is learnt in it, else what stands round the first learnt token.
    Returns the rows and ``{"cut": documents cut, "cut_tokens": tokens cut off, "late": those that lost their beginning,
    "first_late": number of the first one from 1, or 0, "dropped": documents in which nothing is learnt,
    "dropped_tokens": their tokens}``.
    """
    useful = cache.num_learnt[documents] > 0
    dropped = documents[~useful]
    documents = documents[useful]
    first, size, learnt = cache.offsets[documents].copy(), cache.sizes[documents].copy(), \
        cache.num_learnt[documents].copy()
    long = np.flatnonzero(size > max_seq_len)
    counts = {"cut": len(long), "cut_tokens": int((size[long] - max_seq_len).sum()), "late": 0, "first_late": 0,
              "dropped": len(dropped), "dropped_tokens": int(cache.sizes[dropped].sum())}
    for i in long:
        start, end = int(first[i]), int(first[i] + size[i])
        marks = cache.learnt(start, end) if cache.mask is not None else np.ones(end - start, dtype=bool)
        marks[0] = False
        if not marks[:max_seq_len].any():
            shift = min(int(marks.argmax()) - max_seq_len // 2, end - start - max_seq_len)
            first[i] += shift
            marks = marks[shift:]
            counts["late"] += 1
            counts["first_late"] = counts["first_late"] or int(documents[i]) + 1
        size[i] = max_seq_len
        learnt[i] = marks[1:max_seq_len].sum()
    rows = _best_fit(size, max_seq_len)
    order = np.array([i for row in rows for i in row], dtype=np.int64)
    row_starts = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    closed = np.zeros(len(order), dtype=bool)
    return _rows(cache, first[order], size[order], closed, row_starts, learnt[order]), counts


def pack_pairs(cache: TokenCache, documents: np.ndarray, max_seq_len: int) -> tuple[Rows, dict[str, int]]:
    """Pairs (documents 2 i and 2 i + 1) in rows of ``2 * max_seq_len`` tokens, both sides of a pair in one row.

    A side that is longer than ``max_seq_len`` loses the end of its answer. A pair whose prompt alone fills that many
    tokens has nothing left to compare: it is left out, and so is one of whose sides a cut leaves nothing learnt, or
    whose sides are equal up to the cut.
    Returns the rows and ``{"cut": sides cut, "cut_tokens", "dropped": pairs left out, "dropped_tokens",
    "first_dropped": number of the first one from 1, or 0}``.
    """
    chosen = documents[documents % 2 == 0]
    sides = np.stack([chosen, chosen + 1], axis=1)  # [K, 2]
    whole = cache.sizes[sides]
    size = np.minimum(whole, max_seq_len)
    learnt = cache.num_learnt[sides].copy()
    for pair, side in np.argwhere(whole > max_seq_len):
        start = int(cache.offsets[sides[pair, side]])
        learnt[pair, side] = cache.learnt(start, start + max_seq_len)[1:].sum()
    fits = (learnt > 0).all(axis=1)
    for pair in np.flatnonzero((whole > max_seq_len).any(axis=1) & (size[:, 0] == size[:, 1])):
        one, other = (cache.ids_at(np.arange(start, start + size[pair, 0])) for start in cache.offsets[sides[pair]])
        fits[pair] &= not np.array_equal(one, other)
    is_cut = (whole > max_seq_len)[fits]
    out = np.flatnonzero(~fits)
    counts = {"cut": int(is_cut.sum()), "cut_tokens": int((whole - size)[fits].sum()), "dropped": len(out),
              "dropped_tokens": int(whole[out].sum()), "first_dropped": int(chosen[out[0]]) // 2 + 1 if len(out) else 0}
    sides, size, learnt = sides[fits], size[fits], learnt[fits]
    rows = _best_fit(size.sum(axis=1), 2 * max_seq_len)
    order = np.array([i for row in rows for i in row], dtype=np.int64)
    row_starts = 2 * np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
    found = sides[order].reshape(-1)
    packed = _rows(cache, cache.offsets[found], size[order].reshape(-1), np.zeros(len(found), dtype=bool), row_starts,
                   learnt[order].reshape(-1))
    packed.documents = found.astype(np.int64)
    return packed, counts


def _best_fit(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Best-fit decreasing. Rows with k tokens free stand in ``open_rows[k]``; bit k of ``free`` says there is one."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    free = 0
    for i in np.argsort(-sizes, kind="stable"):
        size = int(sizes[i])
        fitting = free >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                free &= ~(1 << room)
            rows[row].append(int(i))
        else:
            room, row = capacity, len(rows)
            rows.append([int(i)])
        if room > size:
            open_rows[room - size].append(row)
            free |= 1 << (room - size)
    return rows


def _rows(cache: TokenCache, starts: np.ndarray, lengths: np.ndarray, open_end: np.ndarray,
          row_starts: np.ndarray, learnt: np.ndarray) -> Rows:
    """``learnt`` [P]: targets of each piece."""
    sums = (np.concatenate([[0], np.cumsum(x)])[row_starts] for x in (learnt, lengths))
    targets, tokens = (np.diff(s).astype(np.int64) for s in sums)
    return Rows(cache, starts.astype(np.int64), lengths.astype(np.int64), open_end, row_starts, targets, tokens)
