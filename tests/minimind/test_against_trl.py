"""Preferences against trl's ``DPOTrainer``: its tokens, its loss and its gradients on the same batch.

trl is no dependency of the studio: without it these skip (``test_objectives.py`` has the formulas written out).
"""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from minimind.data.cache import content_hash, open_cache
from minimind.data.packing import Rows, pack_pairs
from minimind.data.sampler import Window
from minimind.distributed import World
from minimind.formats.huggingface import save_huggingface
from minimind.objectives import Preference, Reference, answer_logps
from minimind.optim import Optimizer
from minimind.presets import ModelConfig
from minimind.step import Stepper
from minimind.tokenizer import Tokenizer
from tests.minimind.shapes import model_of, random_weights
from tests.minimind.training import WORDS

datasets = pytest.importorskip("datasets", reason="trl is not installed")
transformers = pytest.importorskip("transformers", reason="trl is not installed")
trl = pytest.importorskip("trl", reason="trl is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # trl takes half a minute to begin

SHAPE = ModelConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    head_dim=16, intermediate_size=48)
BETA = 0.3


def write_rows(path: Path) -> list[dict]:
    """Conversations of one and of several turns, with and without a system message."""
    rng = random.Random(0)

    def words() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))

    rows = []
    for number in range(6):
        prompt = [{"role": "system", "content": words()}] * (number % 2)
        for _ in range(number % 3):
            prompt += [{"role": "user", "content": words()}, {"role": "assistant", "content": words()}]
        prompt.append({"role": "user", "content": words()})
        rows.append({side: [*prompt, {"role": "assistant", "content": f"{side} {words()}"}]
                     for side in ("chosen", "rejected")})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def packed(tmp_path: Path, path: Path, tokenizer: Tokenizer) -> Rows:
    cache = open_cache(path, "dpo", tokenizer, tmp_path / "cache", content=content_hash(path), workers=1)
    return pack_pairs(cache, np.arange(cache.num_documents), 128)[0]


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_tokens_loss_and_gradients_are_trls(tmp_path: Path, loss_type: str) -> None:
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 3 + ["chosen rejected"], 400)
    policy_weights, base_weights = random_weights(SHAPE, 1), random_weights(SHAPE, 2)
    for name, weights in (("policy", policy_weights), ("base", base_weights)):
        save_huggingface(tmp_path / name, SHAPE, weights, tokenizer)
    rows = write_rows(tmp_path / "pairs.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompts = [{"prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:]}
                   for row in rows]
        theirs = trl.DPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32),
            ref_model=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32),
            args=trl.DPOConfig(output_dir=str(tmp_path / "trl"), beta=BETA, loss_type=[loss_type], report_to="none",
                               use_cpu=True, bf16=False, per_device_train_batch_size=len(rows), max_length=None,
                               gradient_checkpointing=False, disable_dropout=True),
            train_dataset=datasets.Dataset.from_list(prompts),
            processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "policy"))
        examples = [theirs.train_dataset[i] for i in range(len(rows))]
        batch = theirs.data_collator(examples)
        theirs.model.train()
        expected = theirs._compute_loss(theirs.model, batch, False)
        expected.backward()

    layout = packed(tmp_path, tmp_path / "pairs.jsonl", tokenizer)
    policy, base = model_of(SHAPE, policy_weights), model_of(SHAPE, base_weights)
    numbers = np.arange(len(layout))
    places = layout.pieces(numbers)
    tokens, _, lengths = layout.read(numbers)
    ours = dict(zip(layout.documents[places].tolist(), np.split(tokens, np.cumsum(lengths)[:-1])))
    for pair, example in enumerate(examples):
        for side, name in enumerate(("chosen_ids", "rejected_ids")):
            assert ours[2 * pair + side].tolist() == list(example["prompt_ids"]) + list(example[name])

    stepper = Stepper(policy, Optimizer(policy, "adamw", weight_decay=0.0, beta2=0.95), World(), layout,
                      dtype=torch.float32, attention="sdpa", batch_size=2, grad_clip=0.0)
    logps = torch.zeros(2 * len(rows), dtype=torch.float64)
    whole = stepper.batch(numbers)
    with torch.no_grad():
        logps[torch.from_numpy(layout.documents[places])] = answer_logps(
            base.hidden(whole.ids, segments=whole.segments), base.output_weight, whole)[0]
    stepper.objective = Preference(loss_type, BETA, 0.0, Reference(logps.float(), torch.arange(len(logps)), 128))
    total = stepper.accumulate(Window(1, 0, 0, numbers))[0]
    assert float(total) / len(rows) == pytest.approx(expected.item(), rel=1e-4)
    gradients = dict(theirs.model.named_parameters())
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-3, msg=name)
