"""The stage that makes a vocabulary: byte-level BPE (Sennrich et al., arXiv:1508.07909) on the run's texts."""

from __future__ import annotations

from pathlib import Path

from minimind.metrics import Reporter
from minimind.prepare import Materials
from minimind.run_dir import RunDir
from minimind.tokenizer import Tokenizer

DIRECTORY = "tokenizer"


def run(materials: Materials, run_dir: RunDir, reporter: Reporter) -> Path:
    """Train (or take from the cache) a tokenizer and write it into the run. Returns its directory."""
    made = Tokenizer.load(materials.trained_tokenizer())
    target = run_dir.path / DIRECTORY
    made.save(target)
    reporter.log(f"The vocabulary has {made.vocab_size} entries: {target}")
    return target
