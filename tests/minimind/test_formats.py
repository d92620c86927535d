"""Weights go to other programs and come back: against Hugging Face's own classes, and by upstream's conventions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimind.attention import Segments
from minimind.checkpoint import hf_config, load_weights, save_weights
from minimind.errors import CheckpointError
from minimind.formats import pth
from minimind.formats.hf_config import read_hf_config
from minimind.formats.huggingface import save_huggingface
from minimind.formats.pth import save_pth
from minimind.formats.source import load_weights_from
from minimind.formats.tensors import EMBEDDING, HEAD, tensor_shapes
from minimind.model import KVCache, MiniMindForCausalLM
from minimind.moe import stack_experts
from minimind.presets import PRESETS, ModelConfig
from minimind.tokenizer import Tokenizer
from tests.minimind.shapes import LLAMA, MOE, QWEN, SHAPES, SHARED_MOE, model_of, random_weights

LENGTH = 200


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some words to learn from"] * 5, 320)


@pytest.fixture
def hugging_face() -> object:
    return pytest.importorskip("transformers", reason="transformers is not installed")


def ids_of(config: ModelConfig, length: int = LENGTH, seed: int = 3) -> Tensor:
    return torch.randint(0, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


def same(ours: Tensor, theirs: Tensor) -> None:
    assert float(theirs.detach().abs().max()) > 0.5, "logits too small to show a mistake"
    torch.testing.assert_close(ours.detach(), theirs.detach(), atol=1e-5, rtol=0)


@torch.no_grad()
def cached_logits(model: MiniMindForCausalLM, ids: Tensor) -> Tensor:
    """A prompt, a second piece behind it, then token by token."""
    cache = KVCache(model.config, 1, ids.shape[1], "cpu", torch.float32)
    pieces = [ids[:, :100], ids[:, 100:170], *ids[:, 170:].split(1, dim=1)]
    logits, start = [], 0
    for piece in pieces:
        logits.append(model(piece, cache=cache, start=start))
        start += piece.shape[1]
    return torch.cat(logits, dim=1)


@torch.no_grad()
def compare(model: MiniMindForCausalLM, theirs: torch.nn.Module) -> None:
    """Logits of one sequence without and with a cache, packed beside another, and padded on the left."""
    ids = ids_of(model.config)
    expected = theirs(ids).logits
    same(model(ids), expected)
    same(cached_logits(model, ids), expected)
    short = ids_of(model.config, 60, seed=4)
    packed = model(torch.cat((short, ids), dim=1), segments=Segments((60, LENGTH)))
    same(packed[:, 60:], expected)
    same(packed[:, :60], theirs(short).logits)
    padded = torch.cat((torch.cat((torch.zeros(1, LENGTH - 60, dtype=torch.long), short), dim=1), ids))
    mask = torch.ones_like(padded)
    mask[0, :LENGTH - 60] = 0
    beside = theirs(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    same(model(short), beside[:1, -60:])
    same(model(ids), beside[1:])


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_hugging_faces_in_both_directions(name: str, tmp_path: Path, hugging_face,
                                                       tokenizer: Tokenizer) -> None:
    config = SHAPES[name]
    weights = random_weights(config)
    model = model_of(config, weights)
    save_huggingface(tmp_path / "ours", config, model.state_dict(), tokenizer)
    theirs = hugging_face.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(theirs).__name__ == hf_config(config)["architectures"][0]
    compare(model, theirs)

    theirs.save_pretrained(tmp_path / "theirs")
    source = load_weights_from(tmp_path / "theirs")
    assert source.config == config and source.format == "huggingface" and source.warnings == ()
    assert set(source.weights) == set(weights)
    assert all(torch.equal(source.weights[n], weights[n]) for n in weights)
    same(model_of(source.config, source.weights)(ids_of(config)), model(ids_of(config)))


@pytest.mark.parametrize("name", SHAPES)
def test_weights_that_hugging_face_made(name: str, tmp_path: Path, hugging_face) -> None:
    """Nothing of ours takes part in the making but the numbers of the shape."""
    config = SHAPES[name]
    family = getattr(hugging_face, hf_config(config)["architectures"][0].replace("ForCausalLM", "Config"))
    torch.manual_seed(0)
    theirs = getattr(hugging_face, hf_config(config)["architectures"][0])(family(**hf_config(config))).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.5 + torch.rand_like(parameter) if parameter.ndim == 1 else
                            0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path, max_shard_size="40kB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    source = load_weights_from(tmp_path)
    compare(model_of(source.config, source.weights), theirs)


@pytest.mark.parametrize("config", [QWEN, LLAMA, MOE], ids=["qwen3", "llama", "moe"])
def test_a_checkpoint_of_ours_is_a_hugging_face_model(config: ModelConfig, tmp_path: Path, hugging_face) -> None:
    model = model_of(config, random_weights(config))
    save_weights(model.named_weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))
    theirs = hugging_face.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = MiniMindForCausalLM(config).eval()
    load_weights(again, tmp_path)
    compare(again, theirs)
    assert torch.equal(again(ids_of(config)), model(ids_of(config)))


def test_the_folder_has_all_that_a_program_needs(tmp_path: Path, hugging_face, tokenizer: Tokenizer) -> None:
    config = replace(QWEN, vocab_size=tokenizer.vocab_size)
    made = save_huggingface(tmp_path / "out", config, random_weights(config), tokenizer, torch.bfloat16)
    assert {t.dtype for t in load_file(made / "model.safetensors").values()} == {torch.bfloat16}
    theirs = hugging_face.AutoTokenizer.from_pretrained(made)
    messages = [{"role": "user", "content": "words"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "words" in text and theirs(text)["input_ids"] == tokenizer.encode(text)
    model = hugging_face.AutoModelForCausalLM.from_pretrained(made)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [tokenizer.pad_id, tokenizer.eos_id]
    assert model.generation_config.pad_token_id == tokenizer.pad_id
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(CheckpointError, match="exists already"):
        save_huggingface(made, config, random_weights(config), tokenizer)


def test_what_hugging_face_cannot_say_is_not_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match="num_shared_experts"):
        save_huggingface(tmp_path / "out", SHARED_MOE, {}, tokenizer)
    assert not any(tmp_path.iterdir())
    assert hf_config(SHARED_MOE)["architectures"] == ["MiniMindForCausalLM"]


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize("config", [QWEN, LLAMA, MOE, SHARED_MOE, SHAPES["qwen3, untied"]],
                         ids=["qwen3", "llama", "moe", "shared_moe", "untied"])
def test_pth_and_back(config: ModelConfig, tmp_path: Path) -> None:
    config = replace(config, rope_theta=1e6)
    weights = random_weights(config)
    path = save_pth(tmp_path / "out.pth", config, stack_experts(weights))
    raw = torch.load(path, weights_only=True)
    assert set(raw) == set(weights) | {HEAD} and {t.dtype for t in raw.values()} == {torch.float16}
    source = load_weights_from(path)
    assert source.config == config and source.format == "pth" and source.tokenizer_dir is None
    assert all(torch.equal(source.weights[n], weights[n].half().float()) for n in weights)
    assert set(source.weights) == set(weights)
    assert [p.name for p in tmp_path.iterdir()] == ["out.pth"]


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen3_moe"])
def test_logits_after_pth_equal_those_of_halved_weights(name: str, tmp_path: Path, hugging_face) -> None:
    config = SHAPES[name]
    weights = {n: t.half().float() for n, t in random_weights(config).items()}
    source = load_weights_from(save_pth(tmp_path / "out.pth", config, weights))
    (tmp_path / "hf").mkdir()
    save_file(weights, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "hf/config.json").write_text(json.dumps(hf_config(config)))
    theirs = hugging_face.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    compare(model_of(source.config, source.weights), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen3_moe"])
def test_a_half_precision_folder(name: str, dtype: torch.dtype, tmp_path: Path, hugging_face,
                                 tokenizer: Tokenizer) -> None:
    """In float32 its logits are those of rounded weights; in half precision, with sequences padded on the left beside
    each other as upstream's were when they became NaN, every real token's are near them."""
    config = SHAPES[name]
    weights = {n: t.to(dtype).float() for n, t in random_weights(config).items()}
    folder = save_huggingface(tmp_path / "out", config, random_weights(config), tokenizer, dtype)
    source = load_weights_from(folder)
    assert all(torch.equal(source.weights[n], t) for n, t in weights.items())
    model = model_of(source.config, source.weights)
    whole = hugging_face.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    compare(model, whole)
    if config.use_moe:
        return  # a token whose two likeliest experts are near each other may take the other one in half precision
    half = hugging_face.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert half.dtype == dtype
    short, long = ids_of(config, 60, seed=4), ids_of(config)
    padded = torch.cat((torch.cat((torch.zeros(1, LENGTH - 60, dtype=torch.long), short), dim=1), long))
    mask = torch.ones_like(padded)
    mask[0, :LENGTH - 60] = 0
    with torch.no_grad():
        theirs = half(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits.float()
        for got, ids in ((theirs[:1, -60:], short), (theirs[1:], long)):
            assert float((got - model(ids)).abs().max()) < (0.03 if dtype == torch.float16 else 0.2)


@pytest.mark.parametrize("preset", ["minimind-3", "minimind-3-moe", "minimind2-small", "minimind2-moe"])
def test_the_shape_of_published_files_is_found(preset: str) -> None:
    """Upstream's files hold these tensors; only the shapes matter here, so they take no memory."""
    config = PRESETS[preset].model
    weights = {n: torch.empty(s, device="meta") for n, s in tensor_shapes(config).items()}
    assert sum(t.numel() for t in weights.values()) == config.num_parameters()
    assert pth.infer_config(weights, Path("x.pth")) == config


@pytest.mark.usefixtures("no_other_process")
def test_wrapped_names_and_resume_files(tmp_path: Path) -> None:
    weights = random_weights(QWEN)
    names = {n: n.replace(".mlp.", ".mlp._orig_mod.") for n in weights}
    wrapped = {f"module._orig_mod.{names[n]}": t.half() for n, t in weights.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    torch.save({"model": wrapped, "optimizer": optimizer, "epoch": 1, "step": 7, "wandb_id": None},
               tmp_path / "x_resume.pth")
    source = load_weights_from(tmp_path / "x_resume.pth")
    assert all(torch.equal(source.weights[n], weights[n].half().float()) for n in weights)


@pytest.mark.usefixtures("no_other_process")
def test_a_folder_of_upstreams_own_class(tmp_path: Path) -> None:
    """MiniMindForCausalLM with pickled weights, as its converter writes it; minimind2's names of the fields."""
    weights = random_weights(SHARED_MOE)
    torch.save({**weights, HEAD: weights[EMBEDDING]}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "minimind", "architectures": ["MiniMindForCausalLM"], "auto_map": {"AutoConfig": "x"},
        "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 96, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0, "use_moe": True, "num_experts_per_tok": 2, "n_routed_experts": 4,
        "n_shared_experts": 1, "norm_topk_prob": True, "aux_loss_alpha": 0.1, "dropout": 0.0}))
    source = load_weights_from(tmp_path)
    assert source.config == replace(SHARED_MOE, router_aux_loss_coef=0.1)
    assert all(torch.equal(source.weights[n], weights[n]) for n in weights)


def test_stacked_experts_on_disk(tmp_path: Path) -> None:
    weights = random_weights(MOE)
    save_file(stack_experts(weights), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hf_config(MOE)))
    source = load_weights_from(tmp_path)
    assert set(source.weights) == set(weights)
    assert all(torch.equal(source.weights[n], weights[n]) for n in weights)


def test_positions_are_read_where_either_version_writes_them(folder: Callable[..., Path]) -> None:
    yarn = {"factor": 4.0, "beta_fast": 16.0}
    four = folder(rope_theta=5e5, rope_scaling={"type": "yarn", **yarn})
    shape = read_hf_config(four, ())
    assert shape.rope_theta == 5e5
    assert shape.rope_scaling == {"rope_type": "yarn", "original_max_position_embeddings": 32768, **yarn}
    five = folder(rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **yarn})
    assert read_hf_config(five, ()) == shape
    plain = folder(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 7e5})
    assert (read_hf_config(plain, ()).rope_theta, read_hf_config(plain, ()).rope_scaling) == (7e5, None)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a whole model, and ``changes`` in its config.json."""
    def folder(config: ModelConfig = QWEN, **changes: object) -> Path:
        save_file(random_weights(config), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({**hf_config(config), **changes}))
        return tmp_path

    return folder


@pytest.mark.parametrize(("changes", "says"), [
    ({"model_type": "gpt2"}, "model_type is 'gpt2'"), ({"model_type": ["qwen3"]}, "model_type is"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window is True"),
    ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}},
     "partial_rotary_factor is 0.5"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' in rope_scaling"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": "large"}}, "factor is 'large'"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters"),
    ({"rope_theta": -1}, "rope_theta is -1"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"hidden_size": "large"}, "hidden_size is 'large'"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ({"head_dim": 15}, "head_dim is 15"),
    ({"intermediate_size": 128}, r"mlp.gate_proj.weight in .* has the shape \[96, 64\], and the model needs "
                                 r"\[128, 64\]"),
    ({"num_hidden_layers": 4}, r"lacks the tensor model.layers.3.input_layernorm.weight \(and 10 more\)"),
    ({"num_hidden_layers": 2}, r"does not know: 'model.layers.2.*' \(and 10 more\)"),
    ({"tie_word_embeddings": False}, "lacks the tensor lm_head.weight"),
])
def test_configurations_of_other_models_are_refused(folder: Callable[..., Path], changes: dict, says: str) -> None:
    path = folder(**changes)
    with pytest.raises(CheckpointError, match=says) as raised:
        load_weights_from(path)
    assert str(path) in raised.value.message and raised.value.hint


@pytest.mark.parametrize(("changes", "says"), [
    ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2"), ({"mlp_only_layers": [0]}, "mlp_only_layers"),
    ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5"), ({"num_experts": 3}, "does not know"),
    ({"router_aux_loss_coef": "none"}, "router_aux_loss_coef is 'none'"),
])
def test_other_mixtures_are_refused(folder: Callable[..., Path], changes: dict, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_weights_from(folder(MOE, **changes))


def test_damaged_folders(folder: Callable[..., Path], tmp_path: Path) -> None:
    path = folder() / "model.safetensors"
    data = path.read_bytes()
    for cut in (len(data) - 100, 50, 0):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
            load_weights_from(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="has neither model.safetensors nor"):
        load_weights_from(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EMBEDDING: "part-1.safetensors"}}))
    with pytest.raises(CheckpointError, match="lacks part-1.safetensors"):
        load_weights_from(tmp_path)
    for hostile in ({"weight_map": {EMBEDDING: "../secret.safetensors"}}, {"weight_map": []}, {"weight_map": {"a": 3}}):
        index.write_text(json.dumps(hostile))
        with pytest.raises(CheckpointError, match="names no usable safetensors files"):
            load_weights_from(tmp_path)
    save_file(random_weights(QWEN), path)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="config.json is missing or not a JSON object"):
            load_weights_from(tmp_path)


def test_quantised_and_not_finite_weights(folder: Callable[..., Path]) -> None:
    path = folder()
    weights = random_weights(QWEN)
    save_file({**weights, "model.norm.weight": torch.ones(64, dtype=torch.int8)}, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="'model.norm.weight' in .* is of the type int8"):
        load_weights_from(path)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path / "model.safetensors")
    [warning] = load_weights_from(path).warnings
    assert "model.norm.weight" in warning and "not finite" in warning


def test_places_without_weights(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "nowhere", "no checkpoint"), (tmp_path, "neither a checkpoint nor"),
                       (tmp_path / "x.zip", "neither a .pth nor a .gguf"), (tmp_path / "x.gguf", "cannot be read")):
        if path.suffix:
            path.touch()
        with pytest.raises(CheckpointError, match=says):
            load_weights_from(path)
