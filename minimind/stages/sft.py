"""Supervised fine-tuning on dialogues (Ouyang et al., arXiv:2203.02155). Loss on the assistant's turns alone."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.data.mixture import Source
from minimind.data.packing import pack_documents
from minimind.errors import DataError
from minimind.objectives import NextToken, Objective
from minimind.stages.base import Data, Setup, lay_out
from minimind.tokenizer import Tokenizer


class Sft:
    name = "sft"

    def data(self, sources: Sequence[Source], max_seq_len: int, eval_fraction: float) -> Data:
        data = lay_out(sources, max_seq_len, eval_fraction, pack_documents)
        cut, dropped, of = data.counts["cut"], data.counts["dropped"], data.report["documents"]
        late = data.counts["late"]
        if late and late == of - dropped:
            raise DataError("In every conversation the prompt alone is longer than the window of "
                            f"{max_seq_len} tokens, so no answer is left to learn.", field="max_seq_len",
                            hint="Choose a larger max_seq_len, or shorten the prompts.")
        if cut:
            data.warnings.append(f"{cut} of {of} conversations are longer than {max_seq_len} tokens and were cut; a "
                                 "larger max_seq_len keeps them whole.")
        if dropped:
            data.warnings.append(f"{dropped} of {of} conversations have no assistant's turn and teach nothing.")
        if late:
            first = f" (the first is conversation {data.counts['first_late']})" if len(sources) == 1 else ""
            data.warnings.append(f"{late} of {of} conversations have a prompt that alone is longer than {max_seq_len} "
                                 f"tokens{first}: they lost the beginning of it, so their answers are learnt without "
                                 "all of what was asked.")
        return data

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        from minimind.chat_format import encode_prompt

        return encode_prompt(tokenizer, [{"role": "user", "content": text}])

    def objective(self, setup: Setup) -> Objective:
        return NextToken()
