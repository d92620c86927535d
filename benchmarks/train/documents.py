"""The same documents for all contestants: real text, cut to lengths that spread like a log-normal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimind.data.layouts import detect_layout, iter_rows
from minimind.presets import ModelConfig, intermediate_size_for
from minimind.stages.base import texts_of
from minimind.tokenizer import Tokenizer

VOCABULARY = 6400
SHORTEST = 8  # tokens


@dataclass(frozen=True)
class Shape:
    """A model, the batch it is trained with, and documents. ``fill``: mean document as a share of ``seq_len``."""

    name: str
    hidden_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    seq_len: int
    batch_size: int
    fill: float
    spread: float  # standard deviation of the logarithm of a document's length
    num_attention_heads: int = 8

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=VOCABULARY, hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads, num_key_value_heads=self.num_key_value_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            intermediate_size=intermediate_size_for(self.hidden_size))


SHAPES = {
    "S": Shape("S", hidden_size=256, num_hidden_layers=4, num_key_value_heads=4, seq_len=256, batch_size=16,
               fill=0.61, spread=0.5),
    "M": Shape("M", hidden_size=512, num_hidden_layers=8, num_key_value_heads=2, seq_len=340, batch_size=4,
               fill=0.59, spread=0.5),
}


class Documents:
    """Token ids of documents, handed out in turn. ``held_out`` is never handed out."""

    def __init__(self, stream: np.ndarray, shape: Shape, tokenizer: Tokenizer, count: int = 4000, held_out: int = 64):
        rng = np.random.default_rng(1)
        deviations = rng.standard_normal(count)

        def lengths_with(median: float) -> np.ndarray:
            lengths = np.round(median * np.exp(shape.spread * deviations))
            return np.clip(lengths, SHORTEST, shape.seq_len).astype(int)

        medians = np.arange(SHORTEST, shape.seq_len)
        self.lengths = lengths_with(min(
            medians, key=lambda m: abs(lengths_with(m).mean() / shape.seq_len - shape.fill)))
        starts = rng.integers(0, len(stream) - shape.seq_len, count)
        found = [np.concatenate([[tokenizer.bos_id], stream[s:s + n - 2], [tokenizer.eos_id]])
                 for s, n in zip(starts, self.lengths)]
        self.held_out, self._found = found[:held_out], found[held_out:]

    @property
    def mean_length(self) -> float:
        return float(self.lengths.mean())

    def fill(self, seq_len: int) -> float:
        return self.mean_length / seq_len

    def reader(self) -> Reader:
        """A place of one's own to read from: contestants see the same documents in the same order."""
        return Reader(self._found)


class Reader:
    def __init__(self, found: list[np.ndarray]):
        self._found = found
        self._place = 0

    def _next(self) -> np.ndarray:
        document = self._found[self._place % len(self._found)]
        self._place += 1
        return document

    def take(self, count: int) -> list[np.ndarray]:
        return [self._next() for _ in range(count)]

    def fill_up(self, tokens: int) -> list[np.ndarray]:
        """Documents of ``tokens`` tokens in all; the last one is cut."""
        found: list[np.ndarray] = []
        room = tokens
        while room > 1:
            document = self._next()[:room]
            found.append(document)
            room -= len(document)
        return found


def token_stream(paths: list[Path], tokenizer_dir: Path | None) -> tuple[np.ndarray, Tokenizer]:
    """All texts of ``paths`` in one line, and the tokenizer (learnt from them unless given)."""
    texts = [text for path in paths for _, row in iter_rows(path, detect_layout(path)) for text in texts_of(row)]
    tokenizer = Tokenizer.load(tokenizer_dir) if tokenizer_dir else Tokenizer.train(iter(texts), VOCABULARY)
    order = np.random.default_rng(0).permutation(len(texts))
    ids = tokenizer.encode_batch([texts[i] for i in order])
    return np.fromiter((i for document in ids for i in document), dtype=np.int64), tokenizer
