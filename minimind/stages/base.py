"""What the training loop asks a stage for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from minimind.data.cache import TokenCache, split_documents
from minimind.data.mixture import Source, join, mix
from minimind.data.packing import Rows
from minimind.errors import DataError
from minimind.stages.report import data_report
from minimind.tokenizer import Tokenizer


@dataclass
class Data:
    """Rows to learn from and rows held out (``None`` where there are none), and what is worth saying about them.

    ``counts``: what packing left out (``packing.pack_documents``). ``report``: see ``report.data_report``.
    """

    train: Rows
    held_out: Rows | None
    warnings: list[str]
    counts: dict[str, int]
    report: dict


class Stage(Protocol):
    name: str

    def data(self, sources: Sequence[Source], max_seq_len: int, eval_fraction: float) -> Data:
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


#: ``pack(cache, documents, max_seq_len)``: rows, and what was left out of them
Pack = Callable[[TokenCache, np.ndarray, int], tuple[Rows, dict[str, int]]]


def lay_out(sources: Sequence[Source], max_seq_len: int, eval_fraction: float, pack: Pack) -> Data:
    """Hold documents out, pack the others source by source, and put the sources together.

    Raises ``DataError`` where nothing is left to learn from.
    """
    splits = split_documents([s.cache for s in sources], eval_fraction)
    train, held_out, counts = [], [], Counter[str]()
    for source, (documents, held) in zip(sources, splits):
        where = f"{source.name}: " if len(sources) > 1 else ""
        if not len(documents):
            raise DataError(f"{where}The data has no document to learn from.",
                            hint="Give a file with at least one row.")
        rows, left_out = pack(source.cache, documents, max_seq_len)
        if not len(rows):
            raise DataError(f"{where}No conversation has an assistant's turn, so there is nothing to learn from.",
                            field="conversations", hint='Rows need messages with "role": "assistant".')
        train.append(rows)
        counts.update(left_out)
        if len(held) and len(held_rows := pack(source.cache, held, max_seq_len)[0]):
            held_out.append(held_rows)
    mixed = mix(sources, train)
    return Data(mixed, join(held_out) if held_out else None, [], dict(counts),
                data_report(sources, splits, train, mixed, counts, max_seq_len))
