"""Pretraining: continue plain text (Radford et al., 2018). Loss on every token but each document's first."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.data.mixture import Source
from minimind.data.packing import cut_stream
from minimind.objectives import NextToken
from minimind.stages.base import Data, Setup, lay_out
from minimind.tokenizer import Tokenizer


class Pretrain:
    name = "pretrain"

    def data(self, sources: Sequence[Source], max_seq_len: int, eval_fraction: float) -> Data:
        return lay_out(sources, max_seq_len, eval_fraction, lambda *what: (cut_stream(*what), {}))

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        return [tokenizer.bos_id, *tokenizer.encode(text)]

    def objective(self, setup: Setup) -> NextToken:
        return NextToken()
