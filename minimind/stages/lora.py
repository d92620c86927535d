"""Fine-tuning in small matrices beside frozen weights (Hu et al., arXiv:2106.09685): ``minimind/lora.py``.

Data, loss and prompts are those of supervised fine-tuning. A checkpoint holds the adapters alone; the weights that they
stand on lie once in the run (``formats/adapters.py``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minimind.config import LoraConfig
from minimind.formats.adapters import check_base, keep_base
from minimind.lora import adapter_for
from minimind.prepare import Prepared
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir
from minimind.stages.sft import Sft
from minimind.tokenizer import Tokenizer


class Lora(Sft):
    name = "lora"


def stand_on(config: LoraConfig, run_dir: RunDir, prepared: Prepared, resume_from: Path | None) -> Prepared:
    """Give the run its base, or find it whole in a run that goes on. Raises ``ConfigError`` or ``CheckpointError``."""
    adapter_for(config, ModelConfig.from_dict(prepared.model))  # says now what is wrong
    if resume_from is not None:
        check_base(run_dir.base, resume_from, prepared.base_weights)
        return prepared
    weights = keep_base(run_dir, Path(str(prepared.base)), Tokenizer.load(prepared.tokenizer))
    return replace(prepared, base_weights=weights)
