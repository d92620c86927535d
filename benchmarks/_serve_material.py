"""What the engines answer with: one random model as our checkpoint, as Hugging Face's folder and as GGUF."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.train.documents import SHAPES
from minimind.checkpoint import WEIGHTS_FILE, save_weights
from minimind.formats.huggingface import read_safetensors, save_huggingface
from minimind.manifest import Manifest
from minimind.model import MiniMindForCausalLM
from minimind.presets import ModelConfig
from minimind.tokenizer import SMALLEST_VOCABULARY, Tokenizer

#: of the 26M family, with q/k norm, so that Hugging Face's Qwen3 and llama.cpp compute the same; and one for tests
MODELS = {
    "26M": SHAPES["M"].model,
    "tiny": ModelConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=8, intermediate_size=64),
}
#: positions of the exported files: llama.cpp's cache and Hugging Face's tables need no more
POSITIONS = 2048
#: the first id behind reserved tokens and single bytes
FIRST_WORD = SMALLEST_VOCABULARY
#: Random matrices of the usual size make a model that repeats its last token; with these its answers vary
SHARPNESS = 2.0


@dataclass(frozen=True)
class Material:
    """One model in every form."""

    place: Path
    config: ModelConfig

    @property
    def checkpoint(self) -> Path:
        return self.place / "checkpoint"

    @property
    def hugging_face(self) -> Path:
        return self.place / "hf"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.checkpoint)

    @property
    def num_weights(self) -> int:
        """Weights that a token passes: the tied head is read whole, a token's embedding is one row of it."""
        return self.config.num_parameters()

    def gguf(self, kind: str) -> Path:
        """``kind``: ``f32`` or ``q8_0``. Written when it is first asked for; needs the package ``gguf``."""
        path = self.place / f"model-{kind}.gguf"
        if not path.exists():
            from minimind.formats.gguf import save_gguf

            weights = read_safetensors(self.checkpoint / WEIGHTS_FILE)
            save_gguf(path, self.config, weights, self.tokenizer, kind)
        return path

    def prompt(self, tokens: int, number: int = 0) -> list[int]:
        """``tokens`` ids of ordinary tokens; every ``number`` is another prompt, always the same."""
        rng = random.Random(f"prompt-{number}")
        return [rng.randrange(FIRST_WORD, self.config.vocab_size) for _ in range(tokens)]


def make_material(place: Path, name: str = "26M", seed: int = 0) -> Material:
    """Write the checkpoint and Hugging Face's folder of ``MODELS[name]`` into the directory ``place``."""
    config = replace(MODELS[name], max_position_embeddings=POSITIONS)
    tokenizer = Tokenizer.train(iter(_sentences(config.vocab_size)), config.vocab_size)
    if tokenizer.vocab_size != config.vocab_size:
        raise SystemExit(f"The tokenizer has {tokenizer.vocab_size} entries, not {config.vocab_size}.")
    torch.manual_seed(seed)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(SHARPNESS)
        # A tied row of zeros is never the likeliest: answers are of whole characters, and none ends early.
        model.model.embed_tokens.weight[:FIRST_WORD] = 0
    material = Material(place, config)
    material.checkpoint.mkdir(parents=True)
    tokenizer.save(material.checkpoint)
    save_weights(model.named_weights(), material.checkpoint / WEIGHTS_FILE)
    Manifest(stage="sft", step=1, tokens=1, attempt=1, world_size=1, loss=None, eval_loss=None, model=config.as_dict(),
             config_fingerprint="", data_fingerprint="", tokenizer_fingerprint=tokenizer.fingerprint, lineage={},
             versions={}, created_at=1e9).seal(material.checkpoint)
    save_huggingface(material.hugging_face, config, model.named_weights(), tokenizer)
    return material


def _sentences(vocab_size: int) -> list[str]:
    """Invented words, enough of them to learn ``vocab_size`` tokens from."""
    rng = random.Random(1)
    syllables = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "s")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(2 * vocab_size)]
    return [" ".join(rng.choices(words, k=12)) for _ in range(vocab_size)]
