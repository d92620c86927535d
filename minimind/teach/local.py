"""A teacher that is a checkpoint of ours. One question at a time: the model is asked from one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimind.errors import DataError
from minimind.manifest import in_run
from minimind.teach.teachers import Answer

DEFAULT_SEED = 42
#: far apart for neighbouring seeds, so that question 2 of seed 1 does not draw as question 1 of seed 2
_STRIDE = 1_000_003


class LocalTeacher:
    """``temperature`` 0 is greedy. Each question draws from a seed of its own, so its answer depends neither on the
    others nor on a restart. Of a run its newest whole checkpoint answers. Raises ``CheckpointError``."""

    max_concurrency = 1

    def __init__(self, checkpoint: Path | str, *, temperature: float | None = None, max_tokens: int | None = None,
                 seed: int | None = None, device: str = "cpu"):
        from minimind.engine import Engine, SamplingParams  # torch

        self._checkpoint = in_run(Path(checkpoint).absolute())
        self._seed = DEFAULT_SEED if seed is None else seed
        chosen = {"temperature": temperature, "max_tokens": max_tokens}
        self._params = SamplingParams(**{k: v for k, v in chosen.items() if v is not None})
        self.engine = Engine.from_checkpoint(self._checkpoint, device)
        self._is_closed = False

    def identity(self) -> dict[str, Any]:
        return {"checkpoint": str(self._checkpoint)}

    def close(self) -> None:
        self._is_closed = True

    def ask(self, messages: list[dict], number: int, should_stop: Callable[[], bool]) -> Answer | None:
        from dataclasses import replace

        from minimind.engine import ContextLengthError

        params = replace(self._params, seed=(self._seed * _STRIDE + number) % 2**63)
        try:
            made = self.engine.generate(self.engine.encode_chat(messages), params,
                                        lambda: self._is_closed or should_stop())
        except ContextLengthError as error:
            return Answer(left_out="too_long", note=error.message)
        except DataError as error:
            return Answer(left_out="refused", note=error.message)
        if made.finish_reason == "cancelled":
            return None
        return Answer.of(made.text, is_cut=made.finish_reason == "length")
