"""Adapters of other programs, both ways; and ``python -m minimind.adapter``."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimind import adapter as door
from minimind.checkpoint import load_model
from minimind.errors import CheckpointError
from minimind.formats import pth, pth_reader
from minimind.formats.adapter_files import import_adapter, write_merged, write_peft
from minimind.formats.adapters import read_adapter, save_upstream
from minimind.formats.base import open_base
from minimind.formats.huggingface import save_huggingface
from minimind.formats.pth import save_pth
from minimind.formats.source import load_weights_from
from minimind.lora import AdapterConfig, adapter_shapes, merged
from minimind.manifest import Manifest, newest_valid
from minimind.presets import ModelConfig
from minimind.run_dir import RunDir
from minimind.tokenizer import Tokenizer
from tests.minimind.shapes import QWEN, model_of, random_weights

SHAPE = replace(QWEN, vocab_size=300, num_hidden_layers=2, head_dim=8)  # q_proj and o_proj are square
PLAIN = AdapterConfig(4, 6.0, 0.1)
UPSTREAM = AdapterConfig(4, 4.0, 0.0, ("q_proj", "o_proj"))
IDS = torch.randint(0, 300, (1, 16), generator=torch.Generator().manual_seed(1))
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("no_other_process")


def weights_of(adapter: AdapterConfig, model: ModelConfig = SHAPE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(s, generator=generator) * 0.1 for n, s in adapter_shapes(adapter, model).items()}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some words to learn from"] * 5, 300)


@pytest.fixture
def base(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return save_huggingface(tmp_path / "hf", SHAPE, random_weights(SHAPE), tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder as peft writes it, with changes to its configuration."""
    def make(**changes: object) -> Path:
        path = tmp_path / "peft"
        if not path.exists():
            write_peft(path, PLAIN, weights_of(PLAIN), "a/model")
        file = path / "adapter_config.json"
        if changes:
            file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return path
    return make


def upstream_file(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """As upstream's train_lora.py writes it."""
    weights = {}
    for name, tensor in weights_of(UPSTREAM).items():
        layer, side = name.rsplit(".lora_", 1)
        weights[f"{prefix}{layer}.lora.{side}.weight"] = tensor.half()
    torch.save(weights, path)
    return weights


def test_peft_to_ours_and_back(folder: Callable[..., Path], tmp_path: Path) -> None:
    path = folder()
    adapter, weights = read_adapter(path)
    assert adapter == PLAIN and weights.keys() == weights_of(PLAIN).keys()
    assert all(torch.equal(t, weights[n]) for n, t in weights_of(PLAIN).items())
    again = write_peft(tmp_path / "again", adapter, weights, "a/model")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again / name).read_bytes() == (path / name).read_bytes()
    with pytest.raises(CheckpointError, match="again exists already"):
        write_peft(again, adapter, weights)


def test_types_scales_and_pickles_of_peft(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(use_rslora=True, lora_alpha=8, target_modules="all-linear")
    adapter, _ = read_adapter(path)
    assert adapter.scale == pytest.approx(8 / math.sqrt(4)) and adapter.targets == PLAIN.targets
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, path / "adapter_model.safetensors")
    assert {t.dtype for t in read_adapter(path)[1].values()} == {torch.float32}
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="and no adapter_model.safetensors"):
        read_adapter(path)
    torch.save(tensors, path / "adapter_model.bin")
    asked = []
    monkeypatch.setattr(pth, "_read_apart", lambda path, out: asked.append(path) or pth_reader.answer(str(path),
                                                                                                      str(out)))
    assert len(read_adapter(path)[1]) == len(tensors) and asked == [path / "adapter_model.bin"]


@pytest.mark.parametrize("renamed", [
    lambda name: name.replace(".weight", ".default.weight"), lambda name: f"module.{name}",
    lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    lambda name: name.removeprefix("base_model.model."), lambda name: name.replace(".model.model.", ".model.")],
    ids=["named", "ddp", "compiled", "bare", "headless"])
def test_names_as_they_come_from_other_places(folder: Callable[..., Path], renamed: Callable[[str], str]) -> None:
    """The state dict of a PeftModel, wrappers round the model, and a model without its head."""
    file = folder() / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, file)
    adapter, weights = read_adapter(folder())
    assert adapter == PLAIN and all(torch.equal(t, weights[n]) for n, t in weights_of(PLAIN).items())
    save_file({**tensors, **{name.replace(".weight", ".x.weight"): t.clone() for name, t in tensors.items()}}, file)
    with pytest.raises(CheckpointError, match="it holds several adapters"):
        read_adapter(folder())


@pytest.mark.parametrize(("changes", "says"), [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"), ({"use_dora": True}, "use_dora is True: DoRA"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is .*: ranks that differ"),
    ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"), ({"bias": "all"}, "bias is 'all': biases"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is .*: whole layers"),
    ({"layers_to_transform": [0]}, "layers_to_transform"), ({"init_lora_weights": "pissa"}, "stands on a changed base"),
    ({"r": 0}, "r is 0"), ({"r": "many"}, "r is 'many', which must be a number"), ({"lora_dropout": 1.0}, "cannot be"),
])
def test_what_is_no_plain_lora_is_refused_by_name(folder: Callable[..., Path], changes: dict, says: str) -> None:
    path = folder(**changes)
    with pytest.raises(CheckpointError, match=says) as raised:
        read_adapter(path)
    assert str(path / "adapter_config.json") in raised.value.message and raised.value.hint


def test_tensors_that_our_models_have_no_place_for(folder: Callable[..., Path]) -> None:
    path = folder()
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in ("base_model.model.lm_head.lora_A.weight", "base_model.model.model.embed_tokens.lora_embedding_A",
                 "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"):
        save_file({**tensors, name: torch.ones(2, 2)}, file)
        with pytest.raises(CheckpointError, match=f"has the tensor {name}, beside which"):
            read_adapter(path)
    for content, says in ((b"cut", "damaged or not a safetensors file"), (None, "has no tensors")):
        file.write_bytes(content) if content else save_file({}, file)
        with pytest.raises(CheckpointError, match=says):
            read_adapter(path)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is missing or not a JSON object"):
        read_adapter(path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_upstream_to_ours_and_back(tmp_path: Path, prefix: str) -> None:
    """Bit for bit: its adapters have no scale, so alpha is the rank."""
    given = upstream_file(tmp_path / "lora_medical_64.pth", prefix)
    adapter, weights = read_adapter(tmp_path / "lora_medical_64.pth")
    assert adapter == UPSTREAM
    x = torch.ones(64)
    name = f"{prefix}model.layers.1.self_attn.q_proj.lora"
    expected = given[f"{name}.B.weight"].float() @ (given[f"{name}.A.weight"].float() @ x)
    ours = merged({n.rsplit(".lora_", 1)[0] + ".weight": torch.zeros(64, 64) for n in weights}, adapter, weights)
    assert torch.allclose(ours["model.layers.1.self_attn.q_proj.weight"] @ x, expected, atol=1e-5)
    again = torch.load(save_upstream(tmp_path / "again.pth", adapter, weights), weights_only=True)
    assert again.keys() == {n.removeprefix(prefix) for n in given}
    assert all(torch.equal(again[n.removeprefix(prefix)], t) for n, t in given.items())


def test_upstream_gets_the_scale_in_b_and_both_of_its_matrices(tmp_path: Path) -> None:
    adapter = AdapterConfig(4, 12.0, targets=("q_proj",))
    weights = weights_of(adapter)
    made = torch.load(save_upstream(tmp_path / "x.pth", adapter, weights), weights_only=True)
    layer = "model.layers.0.self_attn"
    assert torch.equal(made[f"{layer}.q_proj.lora.A.weight"], weights[f"{layer}.q_proj.lora_A"].half())
    assert torch.equal(made[f"{layer}.q_proj.lora.B.weight"], (3 * weights[f"{layer}.q_proj.lora_B"]).half())
    assert len(made) == 8 and not made[f"{layer}.o_proj.lora.B.weight"].any()
    for targets, model, says in ((("q_proj", "v_proj"), SHAPE, "stands beside v_proj too"),
                                 (("q_proj",), replace(SHAPE, head_dim=16), "turns 64 channels into 128")):
        other = replace(adapter, targets=targets)
        with pytest.raises(CheckpointError, match=says):
            save_upstream(tmp_path / "y.pth", other, weights_of(other, model))
    with pytest.raises(CheckpointError, match="float16 cannot hold"):
        save_upstream(tmp_path / "y.pth", adapter, {n: t * 1e6 for n, t in weights.items()})
    assert not (tmp_path / "y.pth").exists()


def test_files_that_are_no_adapters(tmp_path: Path, base: Path) -> None:
    model = save_pth(tmp_path / "model.pth", SHAPE, random_weights(SHAPE))
    (tmp_path / "x.bin").touch()
    a, b = "model.layers.0.self_attn.q_proj.lora.A.weight", "model.layers.0.self_attn.q_proj.lora.B.weight"
    torch.save({a: torch.ones(4, 64), b: torch.ones(64, 3)}, tmp_path / "ranks.pth")
    for path, says in ((model, "has the tensor .*weight, which is none of an adapter"),
                       (base, "is no adapter: it has no manifest.json and no adapter_config.json"),
                       (tmp_path / "x.bin", "is not a .pth file"), (tmp_path / "nowhere", "There is no adapter"),
                       (tmp_path / "ranks.pth", r"ranks \[3, 4\]")):
        with pytest.raises(CheckpointError, match=says):
            read_adapter(path)


def test_an_adapter_is_no_model_to_start_from(folder: Callable[..., Path], tmp_path: Path) -> None:
    upstream_file(tmp_path / "x.pth")
    for path in (folder(), tmp_path / "x.pth"):
        with pytest.raises(CheckpointError, match="adapter") as raised:
            open_base(path, tmp_path / "cache")
        assert "python -m minimind.adapter merge" in str(raised.value)


@pytest.mark.parametrize("kind", ["peft", "upstream"])
def test_a_run_is_made_of_an_adapter_and_its_base(tmp_path: Path, base: Path, folder: Callable[..., Path],
                                                  kind: str) -> None:
    path = folder()
    if kind == "upstream":
        path = tmp_path / "x.pth"
        upstream_file(path)
    adapter, weights = read_adapter(path)
    checkpoint = import_adapter(tmp_path / "run", path, base)
    assert checkpoint == RunDir(tmp_path / "run").checkpoint(0, 0) and newest_valid(tmp_path / "run")[0] == checkpoint
    manifest = Manifest.read(checkpoint)
    assert manifest.adapter == adapter.as_dict() and manifest.lineage["adapter"] == str(path)
    expected = model_of(SHAPE, merged(random_weights(SHAPE), adapter, weights))(IDS)
    assert torch.equal(load_model(checkpoint)[0](IDS), expected)
    assert torch.equal(load_model(open_base(tmp_path / "run", tmp_path / "cache").path)[0](IDS), expected)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"base", "checkpoints"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(CheckpointError, match="run exists already"):
        import_adapter(tmp_path / "run", path, base)


def test_merged_folders(tmp_path: Path, base: Path, folder: Callable[..., Path]) -> None:
    path = folder()
    write_merged(tmp_path / "merged", path, base)
    expected = merged(random_weights(SHAPE), PLAIN, weights_of(PLAIN))
    found = load_weights_from(tmp_path / "merged")
    assert all(torch.equal(t, expected[n]) for n, t in found.weights.items()) and found.tokenizer_dir
    small = save_huggingface(tmp_path / "small", replace(SHAPE, num_hidden_layers=1),
                             random_weights(replace(SHAPE, num_hidden_layers=1)), Tokenizer.load(base))
    with pytest.raises(CheckpointError, match="has the matrix model.layers.1.*, and the model has no layer for it"):
        write_merged(tmp_path / "no", path, small)
    with pytest.raises(CheckpointError, match="comes without the model that it changes"):
        write_merged(tmp_path / "no", path)
    bare = save_pth(tmp_path / "model.pth", SHAPE, random_weights(SHAPE))
    with pytest.raises(CheckpointError, match="no tokenizer with the weights"):
        write_merged(tmp_path / "no", path, bare)
    assert write_merged(tmp_path / "yes", path, bare, tokenizer=base).is_dir() and not (tmp_path / "no").exists()


def test_what_would_make_a_useless_model(tmp_path: Path, base: Path, folder: Callable[..., Path]) -> None:
    """A tokenizer with tokens that the model does not know, and numbers beyond float16."""
    large = Tokenizer.train(["other words for a larger vocabulary, of which there are many"] * 5, 330)
    large.save(tmp_path / "large")
    assert large.vocab_size > SHAPE.vocab_size
    for make in (lambda: write_merged(tmp_path / "no", folder(), base, tokenizer=tmp_path / "large"),
                 lambda: import_adapter(tmp_path / "no", folder(), base, tokenizer=tmp_path / "large")):
        with pytest.raises(CheckpointError, match="entries, and the model knows 300"):
            make()
    file = folder() / "adapter_model.safetensors"
    save_file({name: tensor * 1e4 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match="float16 cannot hold"):
        write_merged(tmp_path / "no", folder(), base, dtype=torch.float16)
    assert not (tmp_path / "no").exists()


def test_the_command_line(tmp_path: Path, base: Path, folder: Callable[..., Path],
                          capsys: pytest.CaptureFixture) -> None:
    path = folder()

    def call(*words: object) -> tuple[int, str]:
        status = door.main([str(w) for w in words])
        said = capsys.readouterr()
        return status, said.out + said.err

    assert call("import", path, base, tmp_path / "run") == (
        0, f"Written: {tmp_path / 'run/checkpoints/step-00000000-a0'}\n")
    assert call("merge", tmp_path / "run", tmp_path / "merged")[0] == 0
    assert call("merge", path, tmp_path / "merged2", "--base", base, "--dtype", "bfloat16")[0] == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "merged2"))
    assert all(torch.equal(t.bfloat16(), two[n]) for n, t in one.items())
    assert call("to_peft", tmp_path / "run", tmp_path / "again", "--base_name", "a/model")[0] == 0
    assert (tmp_path / "again/adapter_config.json").read_bytes() == (path / "adapter_config.json").read_bytes()
    status, said = call("to_upstream", tmp_path / "run", tmp_path / "x.pth")
    assert status == 2 and "expect rank 16" in said and "error: Upstream has adapters beside q_proj and o_proj" in said
    upstream_file(tmp_path / "given.pth")
    assert call("to_upstream", tmp_path / "given.pth", tmp_path / "x.pth")[0] == 0 and (tmp_path / "x.pth").exists()
    status, said = call("merge", tmp_path / "nowhere", tmp_path / "y")
    assert status == 2 and said.startswith("error: There is no checkpoint") and said.count("\n") == 1
    with pytest.raises(SystemExit):
        door.main(["merge", "--help"])
    assert "--base BASE" in capsys.readouterr().out


def test_help_needs_no_torch() -> None:
    code = "import sys; from minimind.adapter import parser; parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
