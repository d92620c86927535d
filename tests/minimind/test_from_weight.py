"""``--from_weight``: runs, checkpoints, Hugging Face folders and ``.pth`` files to start from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minimind.checkpoint import load_model
from minimind.errors import CheckpointError
from minimind.formats import base as importing
from minimind.formats.base import open_base
from minimind.formats.huggingface import save_huggingface
from minimind.formats.pth import save_pth
from minimind.manifest import Manifest, sha256_of
from minimind.presets import ModelConfig
from minimind.tokenizer import Tokenizer
from tests.minimind.shapes import model_of, random_weights
from tests.minimind.training import events, result, run, write_dialogues, write_texts

SHAPE = ModelConfig(vocab_size=420, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                    head_dim=16, intermediate_size=64)
#: a step that changes next to nothing
STILL = ("--max_steps", 1, "--learning_rate", 1e-9, "--weight_decay", 0, "--optimizer", "adamw", "--max_seq_len", 32,
         "--batch_size", 2, "--device", "cpu", "--sample_interval", 0, "--eval_fraction", 0)

pytestmark = pytest.mark.usefixtures("no_other_process")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some words to learn from"] * 5, 320)


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return save_huggingface(tmp_path / "hf", SHAPE, random_weights(SHAPE), tokenizer)


@pytest.fixture
def common(tmp_path: Path) -> list[object]:
    return [*STILL, "--out", tmp_path / "run", "--cache_dir", tmp_path / "cache", "--data_path",
            write_texts(tmp_path / "data.jsonl")]


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints/step-00000001-a1/model.safetensors")


def test_a_folder_becomes_a_checkpoint_once(tmp_path: Path, folder: Path, tokenizer: Tokenizer,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    made = open_base(folder, cache)
    assert made.path.parent == cache / "weights" and made.has_tokenizer and made.warnings == ()
    assert made.weights_sha256 == sha256_of(folder / "model.safetensors")
    assert made.manifest.lineage["base"] == str(folder)
    model, beside = load_model(made.path)
    ids = torch.arange(50)[None]
    assert torch.equal(model(ids), model_of(SHAPE, random_weights(SHAPE))(ids))
    assert beside.fingerprint == tokenizer.fingerprint

    with monkeypatch.context() as patch:
        patch.setattr(importing, "load_weights_from", lambda path: pytest.fail("read again"))
        assert open_base(folder, cache) == made
    (made.path / "model.safetensors").write_bytes(b"damaged")
    open_base(folder, cache).manifest.verify(made.path)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5e4}))
    other = open_base(folder, cache)
    assert other.path != made.path and other.manifest.model["rope_theta"] == 5e4
    assert other.weights_sha256 == made.weights_sha256
    assert not [p for p in (cache / "weights").iterdir() if p.name.startswith(".")]


def test_shards_have_one_hash(tmp_path: Path, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-1.safetensors": names[:4], "model-2.safetensors": names[4:]}
    for file, inside in parts.items():
        save_file({n: weights[n] for n in inside}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {n: file for file, inside in parts.items() for n in inside}}))
    base = open_base(folder, tmp_path / "cache")
    assert len(base.weights_sha256) == 64 and load_file(base.path / "model.safetensors").keys() == weights.keys()
    save_file({n: weights[n] + 1 for n in parts["model-2.safetensors"]}, folder / "model-2.safetensors")
    assert open_base(folder, tmp_path / "cache").weights_sha256 != base.weights_sha256


def test_a_run_from_a_folder(folder: Path, tmp_path: Path, common: list[object], tokenizer: Tokenizer) -> None:
    assert run("pretrain", *common, "--from_weight", folder) == 0
    weights = random_weights(SHAPE)
    assert all(torch.allclose(t, weights[n], atol=1e-6) for n, t in final_weights(tmp_path / "run").items())
    made = Manifest.read(tmp_path / "run/checkpoints/step-00000001-a1")
    assert made.lineage["base_weights"] == sha256_of(folder / "model.safetensors")
    assert made.tokenizer_fingerprint == tokenizer.fingerprint
    # and fine-tuning from that run
    write_dialogues(tmp_path / "talks.jsonl")
    assert run("sft", *STILL, "--out", tmp_path / "sft", "--cache_dir", tmp_path / "cache", "--data_path",
               tmp_path / "talks.jsonl", "--from_weight", tmp_path / "run") == 0


def test_a_run_from_a_pth_file_needs_its_tokenizer(tmp_path: Path, common: list[object], tokenizer: Tokenizer,
                                                   capfd: pytest.CaptureFixture) -> None:
    path = save_pth(tmp_path / "full_sft_32.pth", SHAPE, random_weights(SHAPE))
    assert run("pretrain", *common, "--from_weight", path) == 2
    error = capfd.readouterr().err
    assert f"no usable tokenizer with the weights {path}" in error and "--tokenizer DIR" in error
    words = [f"{a}{b} word" for a in "abcdefghijklmnop" for b in "qrstuvwxyz" * 3]
    Tokenizer.train(words, 450).save(tmp_path / "large")
    assert run("pretrain", *common, "--from_weight", path, "--tokenizer", tmp_path / "large") == 2
    assert "and the weights" in (error := capfd.readouterr().err) and "know 420" in error
    tokenizer.save(tmp_path / "fits")
    assert run("pretrain", *common, "--from_weight", path, "--tokenizer", tmp_path / "fits") == 0
    weights = random_weights(SHAPE)
    assert all(torch.allclose(t, weights[n].half().float(), atol=1e-6)
               for n, t in final_weights(tmp_path / "run").items())
    lineage = Manifest.read(tmp_path / "run/checkpoints/step-00000001-a1").lineage
    assert lineage["base_weights"] == sha256_of(path)


@pytest.mark.parametrize(("damage", "says"), [
    ("cut", "is damaged or not a .pth file"), ("shape", "mlp.up_proj.weight in"), ("gone", "no checkpoint")])
def test_bad_weights_are_one_sentence(tmp_path: Path, common: list[object], damage: str, says: str,
                                      capfd: pytest.CaptureFixture) -> None:
    path = save_pth(tmp_path / "x.pth", SHAPE, random_weights(SHAPE))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "shape":
        torch.save({**torch.load(path), "model.layers.0.mlp.up_proj.weight": torch.ones(3, 4)}, path)
    else:
        path.unlink()
    assert run("pretrain", *common, "--from_weight", path) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error and "x.pth" in error
    assert result(tmp_path / "run")["error"]["class"] == "CHECKPOINT"
    assert not (tmp_path / "cache/weights").exists()


def test_options_cannot_change_its_shape(folder: Path, common: list[object], capfd: pytest.CaptureFixture) -> None:
    assert run("pretrain", *common, "--from_weight", folder, "--hidden_size", 64) == 2
    assert "hidden_size is 64, and the checkpoint has 32" in capfd.readouterr().err


def test_what_is_wrong_beside_the_weights_is_said_each_time(tmp_path: Path, folder: Path, common: list[object],
                                                            tokenizer: Tokenizer) -> None:
    """Weights that are not finite, and a tokenizer of another kind: warnings, also when the cache has the weights."""
    weights = random_weights(SHAPE)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    broken = json.loads((folder / "tokenizer.json").read_text())
    broken["model"]["type"] = "WordPiece"
    (folder / "tokenizer.json").write_text(json.dumps(broken))
    tokenizer.save(tmp_path / "fits")
    for _ in range(2):
        base = open_base(folder, tmp_path / "cache")
        assert not base.has_tokenizer
        assert "not finite" in base.warnings[0] and "cannot be used" in base.warnings[1]
    run("pretrain", *common, "--from_weight", folder, "--tokenizer", tmp_path / "fits")
    said = [e["data"]["message"] for e in events(tmp_path / "run", 1, "warning")]
    assert set(base.warnings) <= set(said)


def test_a_tokenizer_larger_than_the_model_is_no_use(tmp_path: Path, folder: Path) -> None:
    small = ModelConfig.from_dict({**SHAPE.as_dict(), "vocab_size": 300})
    save_file(random_weights(small), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    base = open_base(folder, tmp_path / "cache")
    assert not base.has_tokenizer and "and the model knows 300" in base.warnings[0]


def test_an_empty_run_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has no whole checkpoint"):
        open_base(tmp_path / "run", tmp_path / "cache")
