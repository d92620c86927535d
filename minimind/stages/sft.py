"""Supervised fine-tuning on dialogues (Ouyang et al., arXiv:2203.02155). Loss on the assistant's turns alone."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.data.mixture import Source
from minimind.data.packing import pack_documents
from minimind.stages.base import Data, lay_out
from minimind.tokenizer import Tokenizer


class Sft:
    name = "sft"

    def data(self, sources: Sequence[Source], max_seq_len: int, eval_fraction: float) -> Data:
        data = lay_out(sources, max_seq_len, eval_fraction, pack_documents)
        cut, dropped, of = data.counts["cut"], data.counts["dropped"], data.report["documents"]
        if cut:
            data.warnings.append(f"{cut} of {of} conversations are longer than {max_seq_len} tokens and were cut; a "
                                 "larger max_seq_len keeps them whole.")
        if dropped:
            data.warnings.append(f"{dropped} of {of} conversations have no assistant's turn and teach nothing.")
        return data

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        from minimind.chat_format import encode_prompt

        return encode_prompt(tokenizer, [{"role": "user", "content": text}])
