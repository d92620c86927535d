"""Saving and reading checkpoints: whole or not at all, verified, and kept within bounds."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind import checkpoint as saving
from minimind.checkpoint import (
    SaveFailed,
    apply_retention,
    load_model,
    load_weights,
    remove_leftovers,
    save_checkpoint,
    save_weights,
)
from minimind.control import write_control
from minimind.distributed import World
from minimind.errors import CheckpointError
from minimind.manifest import Manifest, newest_valid
from minimind.model import MiniMindForCausalLM
from minimind.optim import Optimizer
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir
from minimind.tokenizer import Tokenizer
from tests.minimind import training

CONFIG = ModelConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=8, intermediate_size=32)


def manifest(step: int, attempt: int = 1, eval_loss: float | None = None) -> Manifest:
    return Manifest(stage="pretrain", step=step, tokens=step * 10, attempt=attempt, world_size=1, loss=1.0,
                    eval_loss=eval_loss, model=CONFIG.as_dict(), config_fingerprint="c", data_fingerprint="d",
                    tokenizer_fingerprint="t", lineage={"base": None}, versions={}, created_at=0.0)


@pytest.fixture(scope="module")
def parts() -> tuple[MiniMindForCausalLM, Optimizer, Tokenizer]:
    model = MiniMindForCausalLM(CONFIG)
    optimizer = Optimizer(model, "adamw", weight_decay=0.1, beta2=0.95)
    ids = torch.randint(0, 400, (1, 8))
    model(ids, targets=ids).loss.backward()
    optimizer.step(1e-3)
    return model, optimizer, Tokenizer.train(["some words to learn from"] * 5, 320)


@pytest.fixture
def save(tmp_path: Path, parts) -> Callable[..., Path]:
    model, optimizer, tokenizer = parts

    def save(step: int, attempt: int = 1, eval_loss: float | None = None) -> Path:
        return save_checkpoint(RunDir(tmp_path), World(), manifest(step, attempt, eval_loss), model,
                               optimizer.state_dict(), {"step": step}, tokenizer)

    return save


def test_what_is_saved_is_read_back(tmp_path: Path, save, parts) -> None:
    path = save(7)
    assert path.name == "step-00000007-a1"
    names = {p.name for p in path.iterdir()}
    assert names == {"manifest.json", "model.safetensors", "optimizer.pt", "trainer.json", "rng-rank0.pt",
                     "tokenizer.json", "tokenizer_config.json", "config.json"}
    read = Manifest.read(path)
    read.verify(path)
    assert set(read.files) == names - {"manifest.json"} and read.bytes > 0
    model, tokenizer = load_model(path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parts[0].parameters()))
    assert tokenizer.fingerprint == parts[2].fingerprint
    assert json.loads((path / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_the_weights_file_depends_on_the_weights_alone(tmp_path: Path, save, parts) -> None:
    one, other = save(1), save(2, attempt=3)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    save_weights(dict(reversed(list(parts[0].state_dict().items()))), tmp_path / "turned")
    assert (tmp_path / "turned").read_bytes() == (one / "model.safetensors").read_bytes()


def test_the_first_tensor_that_does_not_fit_is_named_with_both_shapes(save) -> None:
    path = save(4)
    wider = MiniMindForCausalLM(replace(CONFIG, intermediate_size=48))
    with pytest.raises(CheckpointError) as raised:
        load_weights(wider, path)
    assert str(raised.value).startswith(f"model.layers.0.mlp.gate_proj.weight in {path / 'model.safetensors'} has the "
                                        "shape [32, 16], and the model needs [48, 16].")
    with pytest.raises(CheckpointError, match="lacks the tensor model.layers.1.input_layernorm.weight"):
        load_weights(MiniMindForCausalLM(replace(CONFIG, num_hidden_layers=2)), path)
    with pytest.raises(CheckpointError, match="does not know: 'model.layers.0.self_attn.k_norm.weight'"):
        load_weights(MiniMindForCausalLM(replace(CONFIG, qk_norm=False)), path)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        load_weights(MiniMindForCausalLM(CONFIG), path)


def test_experts_are_saved_one_by_one(tmp_path: Path, parts) -> None:
    """As other programs read them; in memory they are stacked."""
    model = MiniMindForCausalLM(replace(CONFIG, num_experts=3, num_experts_per_tok=2, num_shared_experts=1))
    path = save_checkpoint(RunDir(tmp_path), World(), replace(manifest(1), model=model.config.as_dict()), model, {},
                           {"step": 1}, parts[2])
    names = set(load_file(path / "model.safetensors"))
    layer = "model.layers.0.mlp"
    assert {f"{layer}.experts.{e}.{part}_proj.weight" for e in range(3) for part in ("gate", "up", "down")} < names
    assert f"{layer}.shared_experts.0.up_proj.weight" in names and not any("gate_up" in n for n in names)
    again, _ = load_model(path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_damage_is_found(save, damage: str) -> None:
    path = save(3)
    file = path / ("manifest.json" if damage == "manifest" else "model.safetensors")
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data[:-5])
    with pytest.raises(CheckpointError):
        load_model(path)


def test_newest_valid_follows_the_order_of_training(tmp_path: Path, save) -> None:
    save(10)
    save(40)
    save(30, attempt=2)  # went back to 10 or so and trained anew
    assert newest_valid(tmp_path)[0].name == "step-00000030-a2"
    (tmp_path / "checkpoints/step-00000030-a2/trainer.json").unlink()
    path, damaged = newest_valid(tmp_path)
    assert path.name == "step-00000040-a1" and len(damaged) == 1
    assert newest_valid(tmp_path / "nowhere") == (None, [])


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path: Path, save, parts,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """So there is no moment without it."""
    path = save(5)
    before = path.stat().st_ino
    again = manifest(5)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "_begin", None)
        assert save_checkpoint(RunDir(tmp_path), World(), again, parts[0], {}, {}, parts[2]) == path
    assert path.stat().st_ino == before and again.bytes == Manifest.read(path).bytes > 0


def test_a_damaged_one_gives_way(tmp_path: Path, save) -> None:
    path = save(5)
    (path / "trainer.json").write_text("{}")
    assert save(5) == path
    assert newest_valid(tmp_path) == (path, [])
    assert {p.name for p in path.parent.iterdir()} == {path.name, f".corrupt-{path.name}-1"}


def test_who_was_superseded_writes_nothing(tmp_path: Path, save, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(1)
    run_dir = RunDir(tmp_path)
    with monkeypatch.context() as patch:  # it was stopped in the middle of its save
        patch.setattr(Manifest, "seal", lambda self, *_: run_dir.make_attempt(2))
        with pytest.raises(SaveFailed, match="A later attempt has taken the run over"):
            save(2)
    with pytest.raises(SaveFailed, match="A later attempt"):
        save(3)
    assert [p.name for p in old.parent.iterdir()] == [old.name]
    assert save(2, attempt=2).exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, save, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save(1)

    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving.torch, "save", full)
        with pytest.raises(SaveFailed, match="disk is full"):
            save(2)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(SaveFailed, match="almost full"):
            save(2)
    assert [p.name for p in old.parent.iterdir()] == [old.name]
    Manifest.read(old).verify(old)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 6 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("nobody but root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def middling() -> tuple[MiniMindForCausalLM, Optimizer]:
    """A checkpoint of them takes 1.7 MB."""
    model = MiniMindForCausalLM(replace(CONFIG, vocab_size=2000, hidden_size=64))
    optimizer = Optimizer(model, "adamw", weight_decay=0.1, beta2=0.95)
    ids = torch.randint(0, 400, (1, 8))
    model(ids, targets=ids).loss.backward()
    optimizer.step(1e-3)
    return model, optimizer


def fill(place: Path, left: int) -> None:
    (place / "others").write_bytes(bytes(max(0, shutil.disk_usage(place).free - left)))


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_disk_that_is_really_full(small_disk: Path, parts, monkeypatch: pytest.MonkeyPatch,
                                    is_foreseen: bool) -> None:
    """Seen before the first byte is written, or in the middle because somebody else has filled it meanwhile."""
    model, optimizer = middling()
    run_dir = RunDir(small_disk)
    (run_dir.checkpoints / "step-00000001-a1").mkdir(parents=True)
    fill(small_disk, 800_000)
    if not is_foreseen:
        monkeypatch.setattr(saving, "_check_space", lambda *_: None)
    with pytest.raises(SaveFailed, match="almost full" if is_foreseen else "The disk is full"):
        save_checkpoint(run_dir, World(), manifest(2), model, optimizer.state_dict(), {"step": 2}, parts[2])
    assert [p.name for p in run_dir.checkpoints.iterdir()] == ["step-00000001-a1"]
    assert shutil.disk_usage(small_disk).free > 700_000, "what was written of it is gone again"


def test_a_file_that_may_not_grow(tmp_path: Path, parts) -> None:
    """As a quota says it."""
    model, optimizer = middling()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SaveFailed):
            save_checkpoint(RunDir(tmp_path), World(), manifest(2), model, optimizer.state_dict(), {}, parts[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(RunDir(tmp_path).checkpoints.iterdir()) == []


def test_a_run_outlives_a_full_disk_until_its_end(small_disk: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves between are left out, a pause is refused, and the end says what is missing; what was saved stays."""
    training.write_texts(tmp_path / "data.jsonl")
    run_dir = RunDir(small_disk / "run")
    training.at_step(monkeypatch, 6, lambda: fill(small_disk, 500_000))
    training.at_step(monkeypatch, 8, lambda: write_control(run_dir.attempt(1).control, "pause"))
    assert training.start(tmp_path, "--max_steps", 12, "--save_interval", 5, out="small/run") == 2
    warned = [e["data"]["code"] for e in training.events(run_dir.path, 1, "warning")]
    assert warned == ["save_failed", "save_skipped"]
    found = training.result(run_dir.path)
    assert (found["status"], found["step"], found["error"]["class"]) == ("failed", 12, "DISK_FULL")
    assert newest_valid(run_dir) == (run_dir.checkpoint(5, 1), []) and len(list(run_dir.checkpoints.iterdir())) == 1

    monkeypatch.undo()
    (small_disk / "others").unlink()
    assert training.start(tmp_path, "--max_steps", 12, "--save_interval", 5, "--resume", "auto", out="small/run") == 0
    assert newest_valid(run_dir) == (run_dir.checkpoint(12, 2), [])


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def test_a_kill_at_any_moment_of_a_save_hurts_nothing(tmp_path: Path, save, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the first touch of the disk, before the second, ... until a save gets through."""
    old = save(1)
    touches = ((saving.torch, "save"), (saving, "save_file"), (saving, "_fsync"), (saving, "fsync_dir"),
               (saving, "write_json"), (Tokenizer, "save"), (Manifest, "seal"), (Path, "mkdir"), (Path, "rename"),
               (shutil, "rmtree"))
    names: list[str] = []

    def deadly(name: str, call: Callable, at: int) -> Callable:
        def touch(*arguments: object, **more: object) -> object:
            names.append(name)
            if len(names) == at:
                raise Killed
            return call(*arguments, **more)
        return touch

    is_saved = []
    while not is_saved or names[-1] != "done":
        names.clear()
        with monkeypatch.context() as patch:
            for owner, name in touches:
                patch.setattr(owner, name, deadly(name, getattr(owner, name), len(is_saved) + 1))
            with contextlib.suppress(Killed):
                save(2)
                names.append("done")
        found, damaged = newest_valid(tmp_path)
        assert found is not None and damaged == []
        Manifest.read(old).verify(old)
        is_saved.append(found != old)
        remove_leftovers(RunDir(tmp_path))
        assert {p.name for p in old.parent.iterdir()} == {old.name, found.name}
        if found != old:
            shutil.rmtree(found)
    assert set(names) == {name for _, name in touches} | {"done"}
    assert is_saved.index(True) == names.index("rename") + 1 and all(is_saved[names.index("rename") + 1:])


def test_leftovers_of_killed_attempts_go(tmp_path: Path, save) -> None:
    path = save(1)
    (path.parent / ".tmp-step-00000002-a1").mkdir()
    shutil.copytree(path, path.with_name("step-00000003-a1"))
    (path.parent / "step-00000003-a1" / "manifest.json").unlink()  # killed while it was deleted
    remove_leftovers(RunDir(tmp_path))
    assert list(path.parent.iterdir()) == [path]


def test_retention(tmp_path: Path, save, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(10, 101, 10):
        save(step, eval_loss=0.5 if step == 40 else 1.0)
    (tmp_path / "checkpoints/step-00000060-a1.pin").touch()
    assert apply_retention(RunDir(tmp_path), 100, 2) == []  # all of it is small
    monkeypatch.setattr(saving, "KEEP_ALL_BYTES", 10)
    apply_retention(RunDir(tmp_path), 100, 2)
    kept = [int(p.name.split("-")[1]) for p in RunDir(tmp_path).checkpoint_dirs()]
    # last two, best, the first of each half, the pinned one; 60 is also the first of the second half
    assert kept == [100, 90, 60, 40, 10]
    assert newest_valid(tmp_path)[0].name == "step-00000100-a1"
