"""Small random checkpoints, whole ones and adapters. torch is imported late: not every test that uses them needs it."""

from __future__ import annotations

import tempfile
from pathlib import Path


def make_checkpoint(path: Path, *, seed: int, hidden_size: int = 32, positions: int = 20_000) -> Path:
    """A random model with a context of ``positions`` tokens that, being greedy, never ends an answer."""
    import torch

    from minimind.checkpoint import WEIGHTS_FILE, save_weights
    from minimind.manifest import Manifest
    from minimind.model import MiniMindForCausalLM
    from minimind.presets import ModelConfig
    from minimind.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["The lamp in the harbour is green."] * 20, 420)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=hidden_size, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
                         max_position_embeddings=positions)
    torch.manual_seed(seed)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12)  # sharp: neighbouring checkpoints say different things
        # the tied output never prefers what ends an answer
        model.model.embed_tokens.weight[[tokenizer.eos_id, tokenizer.pad_id]] = 0
    path.mkdir(parents=True)
    tokenizer.save(path)
    save_weights(model.state_dict(), path / WEIGHTS_FILE)
    Manifest(stage="sft", step=1, tokens=1, attempt=1, world_size=1, loss=None, eval_loss=None,
             model=config.as_dict(), config_fingerprint="", data_fingerprint="",
             tokenizer_fingerprint=tokenizer.fingerprint, lineage={}, versions={}, created_at=1e9).seal(path)
    return path


def make_adapter(run: Path, base: Path, *, seed: int, rank: int = 4, targets: tuple[str, ...] | None = None) -> Path:
    """A checkpoint of adapters, random and strong, whose own base is ``base``, in the run directory ``run``."""
    import torch

    from minimind.config import ADAPTABLE
    from minimind.formats.adapter_files import import_adapter, write_peft
    from minimind.lora import AdapterConfig, adapter_shapes
    from minimind.manifest import Manifest
    from minimind.presets import ModelConfig

    adapter = AdapterConfig(rank, 2.0 * rank, targets=targets or ADAPTABLE)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) * 0.5
               for name, shape in adapter_shapes(adapter, ModelConfig.from_dict(Manifest.read(base).model)).items()}
    with tempfile.TemporaryDirectory() as scratch:
        return import_adapter(run, write_peft(Path(scratch) / "peft", adapter, weights), base)
