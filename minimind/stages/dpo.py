"""Direct preference optimization (Rafailov et al., arXiv:2305.18290) and its kin: ``objectives.Preference``.

The base checkpoint is the reference. What it thinks of every answer is computed once before step 1 and kept, so a step
passes one model over the data and not two.
"""

from __future__ import annotations

from collections.abc import Sequence

from minimind.config import DpoConfig
from minimind.data.mixture import Source
from minimind.data.packing import pack_pairs
from minimind.errors import DataError
from minimind.objectives import Preference
from minimind.reference import reference_of
from minimind.stages.base import Data, Setup, lay_out
from minimind.stages.sft import Sft


class Dpo(Sft):
    name = "dpo"

    def data(self, sources: Sequence[Source], max_seq_len: int, eval_fraction: float) -> Data:
        """Rows of whole pairs: each side has at most ``max_seq_len`` tokens, a row twice as many."""
        nothing = DataError(f"Every prompt fills the window of {max_seq_len} tokens, or both answers are equal in it, "
                            "so nothing is left to compare.", field="max_seq_len",
                            hint="Choose a larger max_seq_len, or shorten the prompts.")
        data = lay_out(sources, max_seq_len, eval_fraction, pack_pairs, nothing=nothing, row_tokens=2 * max_seq_len)
        cut, dropped, of = data.counts["cut"], data.counts["dropped"], data.report["documents"]
        if cut:
            data.warnings.append(f"{cut} of {of} sides are longer than {max_seq_len} tokens and lost the end of their "
                                 "answer; a larger max_seq_len keeps them whole.")
        if dropped:
            first = f" (the first is pair {data.counts['first_dropped']})" if len(sources) == 1 else ""
            data.warnings.append(f"{dropped} of {of // 2} pairs were left out{first}: the prompt alone fills the "
                                 f"window of {max_seq_len} tokens, or both answers are equal in it. A larger "
                                 "max_seq_len keeps them.")
        return data

    def objective(self, setup: Setup) -> Preference:
        config = setup.config
        assert isinstance(config, DpoConfig)
        reference = reference_of(setup) if config.needs_reference else None
        return Preference(config.loss_type, config.strength, config.simpo_gamma, reference)
