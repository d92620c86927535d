"""What the base checkpoint thinks of every answer of the preference pairs, computed once.

Kept in the cache under the hash of all that decides it, so that a second run with another ``beta`` finds it, and in
every checkpoint of the run, so that a resumed run needs neither the base nor the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimind.checkpoint import OBJECTIVE_FILE
from minimind.data.mixture import fingerprint
from minimind.errors import ResumeError
from minimind.model import MiniMindForCausalLM
from minimind.objectives import NextToken, Reference, answer_logps
from minimind.stages.base import Setup

REFERENCE_VERSION = 1


def reference_of(setup: Setup) -> Reference:
    """From the checkpoint that is resumed, from the cache, or computed now by all ranks together.

    Raises ``ResumeError`` where the pairs are not those that the run has begun with: the base's opinion of new ones
    cannot be known any more.
    """
    hashes = torch.from_numpy(np.concatenate([s.cache.hashes for s in setup.sources]).view(np.int64))
    max_seq_len = setup.trainer.resolved["max_seq_len"]
    if setup.resume_from is not None:
        kept = _load(setup.resume_from / OBJECTIVE_FILE)
        if kept is None or not torch.equal(kept.hashes, hashes) or kept.max_seq_len != max_seq_len:
            raise ResumeError("The pairs or max_seq_len of this run changed, and what the base checkpoint thinks of "
                              "them can no longer be computed.", field="data_path",
                              hint="Go on with the data that the run has begun with, or start a new run.")
        return kept
    path = setup.cache_dir / "reference" / f"{_key(setup, max_seq_len)}.safetensors"
    world = setup.trainer.world
    found = _load(path) if world.is_main else None
    if world.from_main(found is not None):
        kept = found if found is not None else _load(path)
        assert kept is not None
        return kept
    reference = Reference(_compute(setup, len(hashes)), hashes, max_seq_len)
    if world.is_main:
        _save(reference, path)
    return reference


def _key(setup: Setup, max_seq_len: int) -> str:
    resolved = setup.trainer.resolved
    identity = [REFERENCE_VERSION, setup.prepared.base_weights, resolved["model"], fingerprint(setup.sources),
                max_seq_len, resolved["dtype"], resolved["device"], resolved["attention"], resolved["batch_size"],
                setup.config.eval_fraction]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


@torch.no_grad()
def _compute(setup: Setup, documents: int) -> Tensor:
    """[documents] float32; 0 for pairs that are in no row. Each batch is the same whatever the number of ranks."""
    trainer, world = setup.trainer, setup.trainer.world
    stepper = trainer.stepper
    batches = [(rows, np.arange(i, min(i + stepper.batch_size, len(rows))))
               for rows in (setup.data.train, setup.data.held_out) if rows is not None
               for i in range(0, len(rows), stepper.batch_size)]
    logps = torch.zeros(documents, dtype=torch.float64, device=world.device)
    trainer.minimise(NextToken())  # nothing of what it says is used
    with stepper.resting():
        for first in range(0, len(batches), world.size):
            trainer.reporter.phase("eval", first, len(batches), "batches",
                                   "What the base checkpoint thinks of the answers.")
            trainer.look_up()
            if first + world.rank < len(batches):
                rows, numbers = batches[first + world.rank]
                assert rows.documents is not None
                places = torch.from_numpy(rows.documents[rows.pieces(numbers)]).to(world.device)
                logps[places] = _logps(trainer.model, stepper, rows, numbers)
    return world.agree(logps, [])[0].float().cpu()


def _logps(model: MiniMindForCausalLM, stepper, rows, numbers: np.ndarray) -> Tensor:
    """Log-probability of each piece's answer, in the order of the stream."""
    batch = stepper.batch(numbers, rows)
    found: list[Tensor] = []

    def head(hidden: Tensor, output_weight: Tensor) -> tuple[Tensor, Tensor]:
        logps, _ = answer_logps(hidden, output_weight, batch)
        found.append(logps)
        return logps.sum(), logps.new_zeros(0)

    stepper.run(model, batch, head)
    return found[0]


def _load(path: Path) -> Reference | None:
    """A reference on the disk; None where there is none that can be read."""
    try:
        values = load_file(path)
        return Reference(values["logps"], values["hashes"], int(values["max_seq_len"]))
    except (OSError, SafetensorError, KeyError):
        return None


def _save(reference: Reference, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        save_file(reference.state(), aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
