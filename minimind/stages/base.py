"""What the training loop asks a stage for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from minimind.data.cache import TokenCache, split_documents
from minimind.data.mixture import Source, join, mix
from minimind.data.packing import Rows
from minimind.errors import DataError
from minimind.stages.report import data_report
from minimind.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minimind.config import TrainConfig
    from minimind.objectives import Objective
    from minimind.prepare import Prepared
    from minimind.trainer import Trainer


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


@dataclass(frozen=True)
class Setup:
    """What an objective may look at: the weights are loaded, nothing was trained in this attempt yet.

    ``resume_from``: the checkpoint that the attempt continues, ``None`` where the weights are those of the base.
    """

    config: TrainConfig
    trainer: Trainer
    sources: Sequence[Source]
    data: Data
    prepared: Prepared
    cache_dir: Path
    resume_from: Path | None


class Stage(Protocol):
    name: str

    def data(self, sources: Sequence[Source], max_seq_len: int, eval_fraction: float) -> Data:
        """Lay the documents out in rows of at most ``max_seq_len`` tokens. Raises ``DataError``."""
        ...

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Ids after which the model answers a sample prompt."""
        ...

    def objective(self, setup: Setup) -> Objective:
        """What the stage minimises; all ranks call it together. May take long, raises ``StopRequested`` then."""
        ...


def texts_of(row: dict) -> Iterator[str]:
    """Every text of a data row, for training a tokenizer."""
    if "text" in row:
        yield row["text"]
    for messages in ("conversations", "chosen", "rejected"):
        for message in row.get(messages, ()):
            for key in ("content", "reasoning_content"):
                if isinstance(message.get(key), str):
                    yield message[key]


#: ``pack(cache, documents, max_seq_len)``: rows, and what was left out of them
Pack = Callable[[TokenCache, np.ndarray, int], tuple[Rows, dict[str, int]]]


NOTHING_LEARNT = DataError("No conversation has an assistant's turn, so there is nothing to learn from.",
                           field="conversations", hint='Rows need messages with "role": "assistant".')


def lay_out(sources: Sequence[Source], max_seq_len: int, eval_fraction: float, pack: Pack, *,
            nothing: DataError = NOTHING_LEARNT, row_tokens: int | None = None) -> Data:
    """Hold documents out, pack the others source by source, and put the sources together.

    ``row_tokens``: what fits a row, ``max_seq_len`` where it is not said. Raises ``DataError`` where nothing is left to
    learn from: ``nothing``, where packing left everything out.
    """
    splits = split_documents([s.cache for s in sources], eval_fraction)
    train, held_out, counts = [], [], Counter[str]()
    before = 0  # documents of the sources in front
    for source, (documents, held) in zip(sources, splits):
        where = f"{source.name}: " if len(sources) > 1 else ""
        if not len(documents):
            raise DataError(f"{where}The data has no document to learn from.",
                            hint="Give a file with at least one row.")
        rows, left_out = _packed(pack, source.cache, documents, max_seq_len, before)
        if not len(rows):
            raise DataError(f"{where}{nothing.message}", field=nothing.field, hint=nothing.hint)
        train.append(rows)
        counts.update(left_out)
        if len(held) and len(held_rows := _packed(pack, source.cache, held, max_seq_len, before)[0]):
            held_out.append(held_rows)
        before += source.cache.num_documents
    mixed = mix(sources, train)
    return Data(mixed, join(held_out) if held_out else None, [], dict(counts),
                data_report(sources, splits, train, mixed, counts, row_tokens or max_seq_len))


def _packed(pack: Pack, cache: TokenCache, documents: np.ndarray, max_seq_len: int,
            before: int) -> tuple[Rows, dict[str, int]]:
    """As ``pack``, the documents counted over all sources: ``before`` of them stand in front of this one's."""
    rows, left_out = pack(cache, documents, max_seq_len)
    if rows.documents is not None:
        rows.documents = rows.documents + before
    return rows, left_out
