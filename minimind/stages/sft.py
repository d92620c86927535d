"""Supervised fine-tuning on dialogues (Ouyang et al., arXiv:2203.02155). Loss on the assistant's turns alone."""

from __future__ import annotations

from minimind.data.cache import TokenCache
from minimind.data.packing import pack_documents
from minimind.errors import DataError
from minimind.stages.base import Data, split
from minimind.tokenizer import Tokenizer


class Sft:
    name = "sft"

    def data(self, cache: TokenCache, max_seq_len: int, eval_fraction: float) -> Data:
        train, held_out = split(cache, eval_fraction)
        rows, counts = pack_documents(cache, train, max_seq_len)
        if not len(rows):
            raise DataError("No conversation has an assistant's turn, so there is nothing to learn from.",
                            field="conversations", hint='Rows need messages with "role": "assistant".')
        warnings = []
        if counts["cut"]:
            warnings.append(f"{counts['cut']} of {len(train)} conversations are longer than {max_seq_len} tokens and "
                            "were cut; a larger max_seq_len keeps them whole.")
        if counts["dropped"]:
            warnings.append(f"{counts['dropped']} of {len(train)} conversations have no assistant's turn and teach "
                            "nothing.")
        held_rows = pack_documents(cache, held_out, max_seq_len)[0] if len(held_out) else None
        return Data(rows, held_rows if held_rows is not None and len(held_rows) else None, warnings)

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        from minimind.chat_format import encode_prompt

        return encode_prompt(tokenizer, [{"role": "user", "content": text}])
