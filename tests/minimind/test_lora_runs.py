"""Runs of the stage lora: what they keep, how they go on, and what can be done with their checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minimind import resolve as resolution
from minimind.checkpoint import load_model
from minimind.control import write_control
from minimind.data.sampler import Window
from minimind.device import missing_for_compile
from minimind.engine import Engine
from minimind.errors import CheckpointError
from minimind.formats import adapters
from minimind.formats.adapters import read_adapter
from minimind.formats.base import open_base
from minimind.formats.source import load_weights_from
from minimind.lora import adapter_weights, attach, load_adapter
from minimind.manifest import Manifest, newest_valid, sha256_of
from minimind.model import Losses
from minimind.resolve import check_positions
from minimind.run_dir import RunDir
from minimind.step import Stepper
from tests.minimind.training import (
    TINY,
    at_step,
    changed_ranks,
    curve,
    events,
    result,
    run,
    unchanged,
    watch_micro_steps,
    write_dialogues,
    write_texts,
)

STEPS = 12
IDS = torch.randint(0, 400, (1, 16), generator=torch.Generator().manual_seed(1))
COMMON = ("--max_seq_len", 32, "--batch_size", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a base to start from, made once."""
    place = tmp_path_factory.mktemp("lora")
    write_texts(place / "text.jsonl")
    write_dialogues(place / "data.jsonl")
    assert run("pretrain", *TINY, "--out", place / "base", "--data_path", place / "text.jsonl", "--cache_dir",
               place / "cache", "--max_steps", 5, "--sample_interval", 0) == 0
    return place


def options(place: Path, *more: object, base: Path | None = None) -> list[object]:
    return ["lora", *COMMON, "--data_path", place / "data.jsonl", "--cache_dir", place / "cache", "--from_weight",
            base or place / "base", "--max_steps", STEPS, "--save_interval", 5, "--eval_interval", 6,
            "--sample_interval", 6, "--lora_rank", 4, *more]


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    assert run(*options(place, "--out", place / "made")) == 0
    return place / "made"


def last(run_dir: Path) -> Path:
    found, damaged = newest_valid(run_dir)
    assert found is not None and not damaged
    return found


def learnt(run_dir: Path) -> bytes:
    return (last(run_dir) / "adapter_model.safetensors").read_bytes()


def test_a_checkpoint_holds_the_adapters_alone(place: Path, made: Path) -> None:
    path = last(made)
    assert {p.name for p in path.iterdir()} == {
        "manifest.json", "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "trainer.json",
        "rng-rank0.pt", "tokenizer.json", "tokenizer_config.json", "config.json"}
    manifest = Manifest.read(path)
    assert manifest.adapter == {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    assert manifest.lineage["base"].startswith(str(place / "base"))
    assert manifest.lineage["base_weights"] == sha256_of(last(place / "base") / "model.safetensors")
    tensors = load_file(path / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (4, 64)
    assert len(tensors) == 2 * 2 * 7 and any(bool(t.any()) for n, t in tensors.items() if "lora_B" in n)
    moments = torch.load(path / "optimizer.pt", weights_only=True)["adamw"]["state"]
    assert len(moments) == len(tensors)
    assert manifest.bytes < Manifest.read(last(place / "base")).bytes / 2
    [line] = [said for e in events(made, 1, "log") if "Adapters of rank" in (said := e["data"].get("message", ""))]
    assert f"{sum(t.numel() for t in tensors.values()):,} numbers are learnt" in line


def test_it_learns(made: Path) -> None:
    losses = [dict(point)["loss"] for point in curve(made).values()]
    assert sum(losses[-3:]) < sum(losses[:3])
    evals = [dict(point)["eval_loss"] for point in curve(made, "eval").values()]
    assert evals[-1] < evals[0]


def test_a_run_keeps_its_base(place: Path, made: Path) -> None:
    """As a checkpoint of its own, and without another copy on the disk."""
    base = RunDir(made).base
    weights = last(place / "base") / "model.safetensors"
    assert os.path.samefile(base / "model.safetensors", weights)
    manifest = Manifest.read(base)
    manifest.verify(base)
    assert set(manifest.files) == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    model, tokenizer = load_model(base)
    assert torch.equal(model(IDS), load_model(last(place / "base"))[0](IDS))
    assert not list(made.glob(".base*"))


def test_without_links_it_is_copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(adapters.os, "link", refuse)
    assert run(*options(place, "--out", tmp_path / "run", "--max_steps", 1)) == 0
    base = RunDir(tmp_path / "run").base
    assert not os.path.samefile(base / "model.safetensors", last(place / "base") / "model.safetensors")
    Manifest.read(base).verify(base)


def plain(run_dir: Path) -> torch.nn.Module:
    """The base with the checkpoint's adapters beside its matrices."""
    model, _ = load_model(RunDir(run_dir).base)
    adapter, weights = read_adapter(run_dir)
    attach(model, adapter)
    load_adapter(model, weights)
    return model.eval()


def test_it_is_loaded_as_base_and_adapters(place: Path, made: Path) -> None:
    unmerged = plain(made)(IDS)
    model, tokenizer = load_model(last(made))
    assert model.adapter is None and torch.allclose(model(IDS), unmerged, atol=1e-5)
    assert not torch.allclose(unmerged, load_model(RunDir(made).base)[0](IDS), atol=1e-3)
    # over another copy of the base, and over a base of another shape
    over, _ = load_model(last(place / "base"), adapter=made)
    assert torch.equal(over(IDS), model(IDS))
    engine = Engine.from_checkpoint(last(place / "base"), adapter=last(made))
    assert torch.equal(engine.model(IDS), model(IDS))
    assert torch.allclose(Engine.from_checkpoint(last(place / "base")).with_adapter(made).model(IDS), unmerged)
    assert torch.equal(load_weights_from(made).weights["model.layers.0.self_attn.q_proj.weight"],
                       model.state_dict()["model.layers.0.self_attn.q_proj.weight"])
    with pytest.raises(CheckpointError, match="is a whole model, and an adapter is needed"):
        load_model(last(made), adapter=place / "base")


@pytest.mark.filterwarnings("ignore")  # what peft says of transformers
def test_peft_reads_a_checkpoint_over_the_base_of_its_run(made: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = transformers.AutoModelForCausalLM.from_pretrained(RunDir(made).base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, last(made)).eval()
    assert torch.allclose(theirs(IDS).logits, plain(made)(IDS), atol=1e-4)
    merged, _ = load_model(last(made))
    assert torch.allclose(theirs.merge_and_unload()(IDS).logits, merged(IDS), atol=1e-4)


def test_a_base_that_is_gone_damaged_or_another_is_said(place: Path, made: Path, tmp_path: Path,
                                                        capfd: pytest.CaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "attempts/1/result.json").unlink()  # as if it had been killed
    path, weights = last(copy), copy / "base/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="The base .* is damaged"):
        load_model(path)
    assert run("lora", "--out", copy, "--resume", "auto") == 2
    assert "is damaged. Put an undamaged copy of the base" in capfd.readouterr().err
    shutil.rmtree(copy / "base")
    with pytest.raises(CheckpointError, match="is an adapter whose base is gone: there is no"):
        load_model(path)
    wrong = place / "wrong"
    assert run("pretrain", *TINY, "--out", wrong, "--data_path", place / "text.jsonl", "--cache_dir", place / "cache",
               "--max_steps", 1, "--sample_interval", 0, "--seed", 7) == 0
    shutil.copytree(last(wrong), copy / "base")
    with pytest.raises(CheckpointError, match="is an adapter for other weights than those in"):
        load_model(path)
    shutil.rmtree(copy / "base")
    shutil.copytree(last(place / "base"), copy / "base")
    assert torch.equal(load_model(path)[0](IDS), load_model(last(made))[0](IDS)), "any whole copy will do"


@pytest.mark.parametrize("more", [("--lora_dropout", 0.2), pytest.param(
    ("--optimizer", "muon", "--dropout", 0.1), marks=pytest.mark.slow)], ids=["dropout", "muon"])
def test_a_paused_run_is_the_whole_run(place: Path, tmp_path: Path, more: tuple,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, although the base it was started from is gone."""
    base = tmp_path / "base"
    shutil.copytree(place / "base", base)
    arguments = options(place, *more, base=base)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(*arguments, "--out", whole) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: write_control(RunDir(broken).attempt(1).control, "pause"))
        assert run(*arguments, "--out", broken) == 0
    assert (result(broken)["status"], result(broken)["step"]) == ("paused", 8)
    shutil.rmtree(base)
    assert run("lora", "--out", broken, "--resume", "auto") == 0
    for kind in ("metrics", "eval", "sample"):
        assert curve(whole, kind) == curve(broken, kind)
    assert len(curve(whole)) == STEPS and learnt(whole) == learnt(broken)
    states = [torch.load(last(r) / "optimizer.pt", weights_only=True) for r in (whole, broken)]
    assert str(states[0]) == str(states[1])


def dying(patch: pytest.MonkeyPatch, step: int) -> None:
    def watched(stepper: Stepper, now: int, number: int, compute: object) -> Losses:
        if (now, stepper.world.rank) == (step, stepper.world.size - 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return compute()  # type: ignore[operator]

    watch_micro_steps(patch, watched)


def test_a_run_that_lost_steps_does_them_again(place: Path, made: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made, broken)
    (broken / "attempts/1/result.json").unlink()  # as if it had been killed after step 5
    for path in RunDir(broken).checkpoint_dirs()[:-1]:
        shutil.rmtree(path)
    assert run("lora", "--out", broken, "--resume", "auto") == 0
    assert events(broken, 2)[0]["data"]["resumed_from_step"] == 5
    assert curve(made) == curve(broken) and learnt(made) == learnt(broken)


@pytest.mark.parametrize("change", [("--lora_rank", 2), ("--lora_targets", "q_proj")])
def test_adapters_of_another_shape_need_a_new_run(made: Path, tmp_path: Path, change: tuple) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made, broken)
    (broken / "attempts/1/result.json").unlink()
    for path in RunDir(broken).checkpoint_dirs()[:-1]:
        shutil.rmtree(path)
    assert run("lora", "--out", broken, "--resume", "auto", "--allow_changes", *change) == 2
    assert "the shape of the adapters is not the one" in result(broken, 2)["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_killed_run_is_the_whole_run(place: Path, tmp_path: Path, size: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = options(place, "--lora_dropout", 0.2)
    assert changed_ranks(size, unchanged, *arguments, "--out", whole) == [0] * size
    assert changed_ranks(size, partial(dying, step=8), *arguments, "--out", broken)[-1] == -signal.SIGKILL
    assert changed_ranks(size, unchanged, "lora", "--out", broken, "--resume", "auto") == [0] * size
    assert events(broken, 2)[0]["data"]["resumed_from_step"] == 5
    assert curve(whole) == curve(broken) and learnt(whole) == learnt(broken)


def noting(patch: pytest.MonkeyPatch, note: Path) -> None:
    """The gradients of the first window, as they are before they are clipped."""
    accumulate = Stepper.accumulate

    def watched(self: Stepper, window: Window) -> Tensor:
        totals = accumulate(self, window)
        if window.step == 2 and self.world.is_main:  # in the first one B is 0, and so is A's gradient
            torch.save({n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}, note)
        return totals

    patch.setattr(Stepper, "accumulate", watched)


def test_two_ranks_have_the_gradients_of_one(place: Path, tmp_path: Path) -> None:
    arguments = options(place, "--max_steps", 2, "--eval_interval", 0, "--sample_interval", 0)
    assert changed_ranks(2, partial(noting, note=tmp_path / "two"), *arguments, "--out", tmp_path / "pair") == [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        noting(patch, tmp_path / "one")
        assert run(*arguments, "--out", tmp_path / "single", "--accumulation_steps", 2) == 0
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    model, _ = load_model(RunDir(tmp_path / "pair").base)
    attach(model, read_adapter(tmp_path / "pair")[0])
    assert one.keys() == two.keys() == adapter_weights(model).keys()
    for name, grad in one.items():
        assert bool(grad.any()) and torch.allclose(grad, two[name], rtol=1e-4, atol=1e-7), name


def test_stages_can_start_from_it(place: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the run or a checkpoint: base and adapters as one checkpoint, made once."""
    base = open_base(made, tmp_path / "cache")
    assert base.path.parent == tmp_path / "cache/weights" and base.has_tokenizer
    assert torch.equal(load_model(base.path)[0](IDS), load_model(last(made))[0](IDS))
    monkeypatch.setattr("minimind.formats.base.load_weights_from", lambda path: pytest.fail("read again"))
    assert open_base(last(made), tmp_path / "cache").path == base.path
    monkeypatch.undo()
    still = ("--max_steps", 1, "--learning_rate", 1e-9, "--optimizer", "adamw", "--sample_interval", 0,
             "--eval_interval", 0)
    assert run("sft", *COMMON, *still, "--out", tmp_path / "sft", "--data_path", place / "data.jsonl", "--cache_dir",
               tmp_path / "cache", "--from_weight", made) == 0
    after, _ = load_model(last(tmp_path / "sft"))
    assert torch.allclose(after(IDS), load_model(last(made))[0](IDS), atol=1e-5)
    # adapters over adapters: the first ones are in the base of the second
    assert run(*options(place, *still, "--out", tmp_path / "second", base=made)) == 0
    lineage = Manifest.read(last(tmp_path / "second")).lineage
    assert lineage["base_weights"] == sha256_of(base.path / "model.safetensors")


def test_what_starts_from_it_speaks_of_the_same_world(made: Path, tmp_path: Path) -> None:
    """The starter data of the next stage is about the people whom the base knows."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    file = last(copy) / "manifest.json"
    raw = json.loads(file.read_text())
    raw["lineage"]["world"] = {"seed": 5}
    file.write_text(json.dumps(raw))
    assert open_base(copy, tmp_path / "cache").manifest.lineage["world"] == {"seed": 5}


def test_a_mistake_leaves_its_place(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """No base, or one that fails after it was laid down: the corrected command can have the directory."""
    out = tmp_path / "run"
    without = [a for a in options(place) if a not in ("--from_weight", place / "base")]
    assert run(*without, "--out", out) == 2
    assert "goes on from a trained model, and none is named" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(resolution, "check_positions", lambda length, most: check_positions(length, 16))
        assert run(*options(place, "--out", out)) == 2
    assert "longer than the model's" in capfd.readouterr().err and RunDir(out).base.is_dir()
    assert run(*options(place, "--out", out, "--max_steps", 1)) == 0


def test_a_mixture_has_adapters_in_its_attention(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert run("pretrain", *TINY, "--num_experts", 2, "--out", tmp_path / "base", "--data_path", place / "text.jsonl",
               "--cache_dir", place / "cache", "--max_steps", 1, "--sample_interval", 0) == 0
    arguments = options(place, "--max_steps", 2, "--out", tmp_path / "run", base=tmp_path / "base")
    assert run(*arguments, "--lora_targets", "v_proj,up_proj") == 2
    assert "lora_targets names up_proj, and the base checkpoint has experts there" in capfd.readouterr().err
    assert run(*arguments) == 0
    assert Manifest.read(last(tmp_path / "run")).adapter["targets"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert torch.allclose(load_model(last(tmp_path / "run"))[0].eval()(IDS), plain(tmp_path / "run")(IDS), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler itself imports
def test_it_compiles(place: Path, made: Path, tmp_path: Path) -> None:
    if (missing := missing_for_compile(torch.device("cpu"))) is not None:
        pytest.skip(f"{missing} was not found")
    assert run(*options(place, "--out", tmp_path / "run", "--use_compile", "--gradient_checkpointing")) == 0
    for (step, a), b in zip(curve(made).items(), curve(tmp_path / "run").values()):
        assert dict(a)["loss"] == pytest.approx(dict(b)["loss"], rel=1e-3), step


def test_older_manifests_stay_readable(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "step-00000005-a1"
    shutil.copytree(last(place / "base"), path)
    raw = json.loads((path / "manifest.json").read_text())
    assert raw.pop("adapter", "none") is None
    (path / "manifest.json").write_text(json.dumps(raw))
    assert Manifest.read(path).adapter is None
    load_model(path)
