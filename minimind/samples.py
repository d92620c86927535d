"""What the model says to three fixed prompts while it learns: greedy, in float32, without touching any random state."""

from __future__ import annotations

from collections.abc import Iterator

from minimind.engine import Engine, SamplingParams
from minimind.model import MiniMindForCausalLM
from minimind.prepare import sample_prompts
from minimind.stages.base import Stage
from minimind.tokenizer import Tokenizer

SAMPLE_TOKENS = 48


class Samples:
    def __init__(self, stage: Stage, tokenizer: Tokenizer, languages: list[str]):
        self.tokenizer = tokenizer
        self.prompts = [(text, stage.prompt(tokenizer, text)) for text in sample_prompts(languages)]

    def speak(self, model: MiniMindForCausalLM) -> Iterator[tuple[str, str]]:
        """``(prompt, answer)`` for each prompt."""
        device = next(model.parameters()).device
        engine = Engine(model, self.tokenizer, device)
        for text, ids in self.prompts:
            yield text, engine.generate(ids, SamplingParams(temperature=0.0, max_tokens=SAMPLE_TOKENS)).text
