"""Who trains: this project's step, a plain padded loop over Hugging Face's Qwen3, and trl's SFTTrainer.

All have the same shape of model, the same documents, AdamW, and gradients clipped to 1.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.train.documents import Documents, Reader, Shape
from minimind.attention import Segments
from minimind.formats.hf_config import hf_config
from minimind.model import MiniMindForCausalLM
from minimind.optim import Optimizer

LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-3, 0.1, (0.9, 0.95)
IGNORE = -100
TRL_MOST_STEPS_A_MINUTE = 120  # no shape here makes as many; rows are laid out for them beforehand


class Contestant(Protocol):
    name: str

    def train(self, steps: int) -> tuple[int, float]:
        """``(real tokens, CPU seconds)`` of that many optimizer steps."""
        ...

    def mean_loss(self, documents: list[np.ndarray]) -> float:
        """Nats a token over ``documents``."""
        ...


def packed(documents: list[np.ndarray]) -> tuple[Tensor, Tensor, Segments]:
    """Documents as one stream, shortest first, each token's target the next one of its document."""
    documents = sorted(documents, key=len)
    ids = np.concatenate(documents)
    targets = np.concatenate([np.append(d[1:], IGNORE) for d in documents])
    return (torch.from_numpy(ids)[None], torch.from_numpy(targets)[None], Segments(tuple(map(len, documents)), "sdpa"))


def padded(documents: list[np.ndarray], seq_len: int) -> dict[str, Tensor]:
    """Documents as rows of ``seq_len``, in Hugging Face's words."""
    ids = torch.zeros(len(documents), seq_len, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, :len(document)] = labels[row, :len(document)] = torch.from_numpy(document)
        mask[row, :len(document)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class Ours:
    """One step of the trainer: the packed stream, the summed loss over its targets, clipping, fused AdamW."""

    def __init__(self, shape: Shape, documents: Documents, *, compiled: bool = False, weights: dict | None = None):
        self.name = "ours, compiled" if compiled else "ours"
        self.shape = shape
        self.model = MiniMindForCausalLM(shape.model)
        if weights is not None:
            self.model.load_weights(weights)
        if compiled:
            self.model.compile_blocks()
        self.optimizer = Optimizer(self.model, "adamw", weight_decay=WEIGHT_DECAY, beta2=BETAS[1])
        self.reader = documents.reader()

    def gradients(self, documents: list[np.ndarray]) -> float:
        """Mean loss in nats; leaves its gradients in the parameters."""
        ids, targets, segments = packed(documents)
        loss = self.model(ids, segments=segments, targets=targets).loss / int((targets != IGNORE).sum())
        loss.backward()
        return float(loss.detach())

    def train(self, steps: int) -> tuple[int, float]:
        tokens = seconds = 0
        for _ in range(steps):
            documents = self.reader.fill_up(self.shape.batch_size * self.shape.seq_len)
            start = time.process_time()
            self.gradients(documents)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step(LEARNING_RATE)
            self.optimizer.zero_grad()
            seconds += time.process_time() - start
            tokens += sum(map(len, documents))
        return tokens, seconds

    @torch.no_grad()
    def mean_loss(self, documents: list[np.ndarray]) -> float:
        ids, targets, segments = packed(documents)
        return float(self.model(ids, segments=segments, targets=targets).loss / (targets != IGNORE).sum())


def hugging_face_model(shape: Shape) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**hf_config(shape.model), attn_implementation="sdpa")
    config.use_cache = False
    return Qwen3ForCausalLM(config).train()


@torch.no_grad()
def mean_loss(model: Any, documents: list[np.ndarray]) -> float:
    """Nats a token of a Hugging Face model over ``documents``, one after the other."""
    nats = count = 0.0
    for document in documents:
        loss = model(**padded([document], len(document))).loss
        nats, count = nats + float(loss) * (len(document) - 1), count + len(document) - 1
    return nats / count


class HuggingFace:
    """The loop that everyone writes first: rows padded to the full length with an attention mask."""

    name = "hugging face, padded"

    def __init__(self, shape: Shape, documents: Documents):
        self.shape = shape
        self.model = hugging_face_model(shape)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, betas=BETAS,
                                           weight_decay=WEIGHT_DECAY)
        self.reader: Reader = documents.reader()

    def gradients(self, documents: list[np.ndarray]) -> float:
        loss = self.model(**padded(documents, self.shape.seq_len)).loss
        loss.backward()
        return float(loss.detach())

    def train(self, steps: int) -> tuple[int, float]:
        tokens = seconds = 0
        for _ in range(steps):
            documents = self.reader.take(self.shape.batch_size)
            start = time.process_time()
            self.gradients(documents)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            seconds += time.process_time() - start
            tokens += sum(map(len, documents))
        return tokens, seconds

    def mean_loss(self, documents: list[np.ndarray]) -> float:
        return mean_loss(self.model, documents)


class Trl:
    """``trl.SFTTrainer`` as it comes, or with ``packing=True``; its own steps are timed, from start to end."""

    def __init__(self, shape: Shape, documents: Documents, *, packing: bool, tokenizer_file: str,
                 weights: dict | None = None):
        self.name = "trl, packing" if packing else "trl"
        self.shape, self.packing, self.tokenizer_file = shape, packing, tokenizer_file
        self.reader: Reader = documents.reader()
        self.model = hugging_face_model(shape)
        if weights is not None:
            self.model.load_state_dict(weights)

    def train(self, steps: int) -> tuple[int, float]:
        return self._train(steps + 1, not_timed=1)

    def train_for(self, seconds: float) -> tuple[int, float]:
        """As many steps as begin within ``seconds`` of CPU time, all of one optimizer."""
        steps = TRL_MOST_STEPS_A_MINUTE * max(1, round(seconds / 60))
        return self._train(steps, limit_s=seconds)

    def mean_loss(self, documents: list[np.ndarray]) -> float:
        return mean_loss(self.model, documents)

    def _train(self, steps: int, *, not_timed: int = 0, limit_s: float = float("inf")) -> tuple[int, float]:
        from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        clock = {"seconds": 0.0, "tokens": 0, "on": 0.0}

        class Clock(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                clock["on"] = time.process_time()

            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                if state.global_step > not_timed:
                    clock["seconds"] += time.process_time() - clock["on"]
                control.should_training_stop |= clock["seconds"] >= limit_s

        class Counted(SFTTrainer):
            def training_step(self, model: Any, inputs: dict, *rest: Any, **more: Any) -> Any:
                if self.state.global_step >= not_timed:
                    mask = inputs.get("attention_mask")
                    clock["tokens"] += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
                return super().training_step(model, inputs, *rest, **more)

        tokenizer = PreTrainedTokenizerFast(tokenizer_file=self.tokenizer_file, eos_token="<|im_end|>",
                                            pad_token="<|endoftext|>")
        with tempfile.TemporaryDirectory() as place:
            config = SFTConfig(
                output_dir=place, max_steps=steps, max_length=self.shape.seq_len, packing=self.packing,
                per_device_train_batch_size=self.shape.batch_size, learning_rate=LEARNING_RATE, max_grad_norm=1.0,
                weight_decay=WEIGHT_DECAY, adam_beta2=BETAS[1], lr_scheduler_type="constant", report_to=[],
                save_strategy="no", logging_strategy="no", use_cpu=True, bf16=False, fp16=False, disable_tqdm=True,
                gradient_checkpointing=False)
            trainer = Counted(model=self.model, args=config, processing_class=tokenizer, callbacks=[Clock()],
                              train_dataset=_data_set(self.reader, steps * self.shape.batch_size * 2))
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return int(clock["tokens"]), clock["seconds"]


def _data_set(reader: Reader, count: int) -> Any:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset.from_list([{"input_ids": d.tolist()} for d in reader.take(count)])


def matmul_rate() -> float:
    """FLOPs per CPU second of a float32 product of the size that these models live on."""
    a, b = torch.randn(2048, 512), torch.randn(512, 1408)
    start = time.process_time()
    for _ in range(10):
        a @ b
    return 10 * 2 * 2048 * 512 * 1408 / (time.process_time() - start)


def contestants(names: list[str], shape: Shape, documents: Documents, tokenizer_file: str) -> Iterator[Contestant]:
    make: dict[str, Callable[[], Contestant]] = {
        "hf": lambda: HuggingFace(shape, documents),
        "ours": lambda: Ours(shape, documents),
        "compiled": lambda: Ours(shape, documents, compiled=True),
        "trl": lambda: Trl(shape, documents, packing=False, tokenizer_file=tokenizer_file),
        "trl_packing": lambda: Trl(shape, documents, packing=True, tokenizer_file=tokenizer_file),
    }
    for name in names:
        torch.manual_seed(0)
        yield make[name]()
