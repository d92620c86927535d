"""Beginnings that were read before: the caches of sequences that ended, for those that begin alike.

The next turn of a conversation begins with all that was said; conversations of one system prompt begin with that.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from minimind.caches import SequenceCache

#: tokens from which on a common beginning is worth a copy
MIN_TOKENS = 8
#: of an id in a packed sequence
_ID_BYTES = array("I").itemsize


class Reading(Protocol):
    """A sequence that is being read or written: what its cache holds are the first of ``ids``."""

    ids: list[int]
    cache: SequenceCache | None


class Prefixes:
    """Caches by their tokens, up to ``max_bytes``; the one that served the longest ago goes first.

    None begins with all of another. Their tokens are packed and sorted: of all sequences, the one with which another
    has the most in common stands beside the place where that would stand, so thousands of small caches cost no more to
    look through than ten.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._kept: OrderedDict[bytes, SequenceCache] = OrderedDict()  # the one used last stands last
        self._sorted: list[bytes] = []
        self._bytes = 0

    def num_bytes(self) -> int:
        return self._bytes

    def keep(self, ids: Sequence[int], cache: SequenceCache) -> None:
        """Remember what ``cache`` holds, which belongs to nobody else from now on. One that begins it is dropped; where
        one is kept that begins with it, that one serves."""
        assert len(ids) == cache.length
        if self.max_bytes <= 0 or cache.length < MIN_TOKENS or cache.num_bytes() > self.max_bytes:
            return
        tokens = _packed(ids)
        before, behind = self._beside(tokens)
        if behind is not None and behind.startswith(tokens):
            self._kept.move_to_end(behind)
            return
        if before is not None and tokens.startswith(before):
            self._drop(before)
        self._kept[tokens] = cache
        insort(self._sorted, tokens)
        self._bytes += cache.num_bytes()
        while self._bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def take(self, ids: Sequence[int], active: Iterable[Reading] = ()) -> SequenceCache | None:
        """A cache that holds the longest known beginning of ``ids``, or None. One that was kept and is wholly part of
        ``ids`` changes hands; else it is a copy, of an active sequence's too."""
        if self.max_bytes <= 0 or len(ids) < MIN_TOKENS:
            return None
        tokens = _packed(ids)
        best, best_key, best_length = None, None, MIN_TOKENS - 1
        for key in self._beside(tokens):
            length = common(key, tokens) if key is not None else 0
            if length > best_length:
                best, best_key, best_length = self._kept[key], key, length
        first = list(ids[:MIN_TOKENS])
        for sequence in active:
            cache = sequence.cache
            if cache is not None and cache.length > best_length and sequence.ids[:MIN_TOKENS] == first:
                length = common(_packed(sequence.ids[:cache.length]), tokens)
                if length > best_length:
                    best, best_key, best_length = cache, None, length
        if best is None:
            return None
        if best_key is not None and best_length == best.length:
            return self._drop(best_key)
        if best_key is not None:
            self._kept.move_to_end(best_key)
        return best.copy(best_length)

    def clear(self) -> None:
        self._kept.clear()
        self._sorted.clear()
        self._bytes = 0

    def _beside(self, tokens: bytes) -> tuple[bytes | None, bytes | None]:
        """The kept one in front of where ``tokens`` would stand, and the one that stands there."""
        place = bisect_left(self._sorted, tokens)
        return (self._sorted[place - 1] if place else None,
                self._sorted[place] if place < len(self._sorted) else None)

    def _drop(self, key: bytes) -> SequenceCache:
        cache = self._kept.pop(key)
        del self._sorted[bisect_left(self._sorted, key)]
        self._bytes -= cache.num_bytes()
        return cache


def _packed(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()


def common(a: bytes, b: bytes) -> int:
    """Tokens with which two packed sequences begin."""
    same, at_most = 0, min(len(a), len(b)) // _ID_BYTES
    while same < at_most:
        middle = (same + at_most + 1) // 2
        if a[same * _ID_BYTES:middle * _ID_BYTES] == b[same * _ID_BYTES:middle * _ID_BYTES]:
            same = middle
        else:
            at_most = middle - 1
    return same
