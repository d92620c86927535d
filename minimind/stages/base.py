"""What the training loop asks a stage for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from minimind.data.cache import TokenCache
from minimind.data.packing import Rows
from minimind.errors import DataError
from minimind.tokenizer import Tokenizer


@dataclass
class Data:
    """Rows to learn from and rows held out (``None`` where there are none), and what is worth saying about them."""

    train: Rows
    held_out: Rows | None
    warnings: list[str]


class Stage(Protocol):
    name: str

    def data(self, cache: TokenCache, max_seq_len: int, eval_fraction: float) -> Data:
        """Lay the documents out in rows of at most ``max_seq_len`` tokens. Raises ``DataError``."""
        ...

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Ids after which the model answers a sample prompt."""
        ...


def texts_of(row: dict) -> Iterator[str]:
    """Every text of a data row, for training a tokenizer."""
    if "text" in row:
        yield row["text"]
    for message in row.get("conversations", ()):
        for key in ("content", "reasoning_content"):
            if isinstance(message.get(key), str):
                yield message[key]


def split(cache: TokenCache, eval_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """``TokenCache.split``; raises ``DataError`` where nothing is left to train on."""
    train, held_out = cache.split(eval_fraction)
    if not len(train):
        raise DataError("The data has no document to learn from.", hint="Give a file with at least one row.")
    return train, held_out
