"""Distillation with a teacher whose probabilities are seen (Hinton et al., arXiv:1503.02531):
``objectives.Distillation``.

Rows are laid out as for fine-tuning where the data are dialogues, as for pretraining where they are texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from minimind.attention import choose_kernel, missing_for
from minimind.checkpoint import load_weights
from minimind.config import DistillConfig
from minimind.data.mixture import Source
from minimind.device import choose_dtype
from minimind.manifest import Manifest
from minimind.model import MiniMindForCausalLM
from minimind.objectives import Distillation
from minimind.presets import ModelConfig
from minimind.stages.base import Data, Setup
from minimind.stages.pretrain import Pretrain
from minimind.stages.sft import Sft
from minimind.tokenizer import Tokenizer


class Distill:
    name = "distill"

    def __init__(self) -> None:
        self._like: Sft | Pretrain = Sft()  # whose data it has

    def data(self, sources: Sequence[Source], max_seq_len: int, eval_fraction: float) -> Data:
        self._like = Sft() if sources[0].cache.is_masked else Pretrain()
        return self._like.data(sources, max_seq_len, eval_fraction)

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        return self._like.prompt(tokenizer, text)

    def objective(self, setup: Setup) -> Distillation:
        config = setup.config
        assert isinstance(config, DistillConfig) and setup.prepared.teacher is not None
        device = setup.trainer.world.device
        dtype = torch.float32
        if config.teacher_dtype != "auto":
            dtype = choose_dtype(config.teacher_dtype, device)[0]
        elif device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            dtype = torch.bfloat16
        place = Path(setup.prepared.teacher)
        teacher = MiniMindForCausalLM.unfilled(ModelConfig.from_dict(Manifest.read(place).model), device)
        load_weights(teacher, place)
        setup.trainer.reporter.log(f"Teacher: {teacher.config.num_parameters():,} parameters in "
                                   f"{str(dtype).removeprefix('torch.')}.")
        length, positions = setup.trainer.resolved["max_seq_len"], teacher.config.max_position_embeddings
        if length > positions:
            setup.trainer.reporter.warn(f"The teacher knows {positions} positions and rows have {length} tokens: what "
                                        "it thinks of tokens far behind is a guess. Choose a smaller max_seq_len.")
        kernel = kernel_for(setup.trainer.resolved["attention"], device, dtype, teacher.config.head_dim)
        return Distillation(teacher.to(dtype), alpha=config.alpha, temperature=config.temperature,
                            reverse=config.kl == "reverse", attention=kernel)


def kernel_for(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The run's attention kernel, where it can compute the teacher too: a float32 teacher of a bfloat16 student, or
    one with other heads, may need another."""
    if missing_for(kernel, device, dtype, head_dim) is None:
        return kernel
    return choose_kernel("auto", device, dtype, head_dim)[0]
