"""Several data sets in one training: each with its own token cache, and a weight that is its share of the rows.

Rows are packed source by source, so a row holds documents of one source and the share of rows is the share of tokens
(full rows are equally long). ``sampler.Mixture`` says which rows an epoch takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.cache import TokenCache
from minimind.data.packing import Rows
from minimind.data.sampler import Mixture
from minimind.errors import DataError


@dataclass(frozen=True)
class Source:
    """One data set of a training. Weights count against each other; a single source has any."""

    name: str
    cache: TokenCache
    weight: Fraction = Fraction(1)

    @classmethod
    def open(cls, described: dict) -> Source:
        """From ``{"name", "cache": directory, "weight": text of a fraction}``."""
        return cls(described["name"], TokenCache(Path(described["cache"])), Fraction(described["weight"]))


def shares_of(sources: Sequence[Source]) -> list[Fraction]:
    """The weights as shares of one."""
    whole = sum((s.weight for s in sources), Fraction(0))
    return [s.weight / whole for s in sources]


def fingerprint(sources: Sequence[Source]) -> str:
    """Name of all that decides what is learnt from: the caches, their order and their shares."""
    if len(sources) == 1:
        return sources[0].cache.fingerprint
    identity = [[s.cache.fingerprint, str(share)] for s, share in zip(sources, shares_of(sources))]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def quotas(total: int, shares: Sequence[Fraction]) -> list[int]:
    """``total`` in whole numbers by the largest remainder: each at most one away from its exact part."""
    exact = [total * share for share in shares]
    found = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (found[i] - exact[i], i))
    for i in by_remainder[:total - sum(found)]:
        found[i] += 1
    return found


def mix(sources: Sequence[Source], parts: Sequence[Rows]) -> Rows:
    """Rows of all sources, to be taken by their shares. Raises ``DataError`` where a share is less than a row."""
    if len(sources) == 1:
        return parts[0]
    sizes = [len(part) for part in parts]
    found = quotas(sum(sizes), shares_of(sources))
    for source, quota in zip(sources, found):
        if quota == 0:
            raise DataError(f"{source.name} has so small a weight that it would never be read: its share of the "
                            f"{sum(sizes)} rows of an epoch is less than one.", field="data_mix",
                            hint="Give it a larger weight, or leave it out.")
    return replace(join(parts), mixture=Mixture(tuple(sizes), tuple(found)))


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of several caches as rows of one, source behind source."""
    if len(parts) == 1:
        return parts[0]
    caches = []
    for part in parts:
        assert isinstance(part.cache, TokenCache)
        caches.append(part.cache)
    joined = JoinedCaches(caches)
    pieces = np.cumsum([0] + [len(part.starts) for part in parts])
    together: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts])
                                for name in ("lengths", "open_end", "targets", "tokens")}
    documents = None
    if all(part.documents is not None for part in parts):
        documents = np.concatenate([part.documents for part in parts])
    return Rows(joined, documents=documents,
                starts=np.concatenate([part.starts + base for part, base in zip(parts, joined.bases)]),
                row_starts=np.concatenate([part.row_starts[:-1] + first for part, first in zip(parts, pieces)]
                                          + [pieces[-1:]]), **together)


class JoinedCaches:
    """Several caches in a line: token t of cache k has the place ``bases[k] + t``."""

    def __init__(self, caches: Sequence[TokenCache]):
        assert len({cache.is_masked for cache in caches}) == 1, "one layout a stage"
        self.caches = list(caches)
        self.bases = np.cumsum([0] + [cache.num_tokens for cache in caches])
        self.is_masked = caches[0].is_masked

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        return self._gather(places, [cache.ids_at for cache in self.caches], np.dtype(np.int64))

    def is_learnt_at(self, places: np.ndarray) -> np.ndarray:
        return self._gather(places, [cache.is_learnt_at for cache in self.caches], np.dtype(bool))

    def _gather(self, places: np.ndarray, readers: list, dtype: np.dtype) -> np.ndarray:
        """Each place read from its cache. A place behind the last token gives the last one, as in a single cache."""
        owners = np.minimum(np.searchsorted(self.bases, places, side="right") - 1, len(readers) - 1)
        found = np.empty(len(places), dtype=dtype)
        for number in np.unique(owners):
            here = owners == number
            found[here] = readers[number](places[here] - self.bases[number])
        return found
