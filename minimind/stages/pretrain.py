"""Pretraining: continue plain text (Radford et al., 2018). Loss on every token but each document's first."""

from __future__ import annotations

from minimind.data.cache import TokenCache
from minimind.data.packing import cut_stream
from minimind.stages.base import Data, split
from minimind.tokenizer import Tokenizer


class Pretrain:
    name = "pretrain"

    def data(self, cache: TokenCache, max_seq_len: int, eval_fraction: float) -> Data:
        train, held_out = split(cache, eval_fraction)
        return Data(cut_stream(cache, train, max_seq_len),
                    cut_stream(cache, held_out, max_seq_len) if len(held_out) else None, [])

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        return [tokenizer.bos_id, *tokenizer.encode(text)]
