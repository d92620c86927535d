"""The engine's forward pass against the model's own: fused, packed, int8, compiled, stretched, adapted, experts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minimind import matrices
from minimind.decoding import Decoder, Piece, _Compiled, gemv
from minimind.engine import Engine, SamplingParams, stretched
from minimind.lora import AdapterConfig, attach, laid_over
from minimind.matrices import Full, Int8
from minimind.model import MiniMindForCausalLM
from minimind.presets import ModelConfig
from tests.checkpoint_rig import make_checkpoint

SHAPE = ModelConfig(vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                    head_dim=16, intermediate_size=96, max_position_embeddings=1024)
SHAPES = {"dense": SHAPE, "no q/k norm": replace(SHAPE, qk_norm=False, rms_norm_eps=1e-5),
          "untied": replace(SHAPE, tie_word_embeddings=False),
          "experts": replace(SHAPE, num_experts=4, num_experts_per_tok=2, num_shared_experts=1),
          "one key head": replace(SHAPE, num_key_value_heads=1),
          "YaRN": replace(SHAPE, rope_scaling={"rope_type": "yarn", "factor": 4.0,
                                               "original_max_position_embeddings": 256})}
IDS = torch.randint(0, 300, (70,), generator=torch.Generator().manual_seed(1)).tolist()


def model_of(shape: ModelConfig) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def expected_of(model: MiniMindForCausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0]


def read(decoder: Decoder, *parts: list[int]) -> torch.Tensor:
    """Logits [T, V] of parts that are read one behind the other."""
    cache = decoder.new_cache()
    return torch.cat([decoder.logits(decoder.hidden([Piece(cache, part)])) for part in parts])


@pytest.mark.parametrize("owns", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_the_models_logits(name: str, owns: bool) -> None:
    """A prompt in two chunks, then tokens one by one, across the places where the cache grows."""
    model = model_of(SHAPES[name])
    expected = expected_of(model, IDS)
    decoder = Decoder(model, owns=owns)
    found = read(decoder, IDS[:9], IDS[9:40], *([i] for i in IDS[40:]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(expected_of(model, IDS), expected)  # the model itself still says the same


def test_owning_takes_no_memory_twice() -> None:
    model = model_of(SHAPE)
    size = sum(p.numel() for p in model.parameters()) * 4
    decoder = Decoder(model, owns=True)
    assert model.model.layers[0].self_attn.k_proj.weight.untyped_storage().data_ptr() == \
        decoder.layers[0].qkv.weight.untyped_storage().data_ptr()
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1) * 4
    assert decoder.num_bytes() == size - norms


def test_sequences_of_unequal_length_do_not_see_each_other() -> None:
    model = model_of(SHAPE)
    decoder = Decoder(model)
    texts = [IDS[:5], IDS[10:50], IDS[3:20]]
    caches = [decoder.new_cache() for _ in texts]
    for cache, text in zip(caches, texts):
        decoder.hidden([Piece(cache, text[:-2])])
    for back in (-2, -1):
        found = decoder.logits(decoder.hidden([Piece(c, [t[back]]) for c, t in zip(caches, texts)]))
        for row, text in zip(found, texts):
            ids = text if back == -1 else text[:-1]
            torch.testing.assert_close(row, expected_of(model, ids)[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 5, 63, 64, 65, 200])
def test_products_of_any_number_of_rows(rows: int) -> None:
    """Each number of rows has its kernel: pairs of columns, oneDNN's packed weights, the BLAS."""
    weight, x = torch.randn(96, 64), torch.randn(rows, 64)
    for matrix in (Full([weight]), Full([weight[:40], weight[40:]])):
        torch.testing.assert_close(matrix(x), x @ weight.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["fbgemm", "own"])
def test_int8_is_near(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "fbgemm" and not matrices.has_fbgemm():
        pytest.skip("this PyTorch has no FBGEMM")
    monkeypatch.setattr(matrices, "has_fbgemm", lambda: kernel == "fbgemm")
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64), torch.randn(20, 64) * torch.logspace(-2, 2, 20)[:, None]  # rows of unequal size
    matrix = Int8([weight[:40], weight[40:]])
    for rows in (x[:1], x[:5], x):
        error = (matrix(rows) - rows @ weight.T).norm(dim=1) / (rows @ weight.T).norm(dim=1)
        assert error.max() < 0.03, error


def test_an_int8_engine_frees_the_weights_and_talks_alike(tmp_path: Path) -> None:
    place = make_checkpoint(tmp_path / "model", seed=1)
    exact, small = Engine.from_checkpoint(place), Engine.from_checkpoint(place, weights="int8")
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in small.model.parameters()}
    assert sum(held.values()) < 0.6 * sum(p.numel() * 4 for p in exact.model.parameters())  # the embedding is kept
    assert small.num_bytes() < 0.7 * exact.num_bytes()
    ids = exact.tokenizer.encode("The lamp in the harbour")
    one, other = (read(engine.decoder, ids) for engine in (exact, small))
    assert torch.nn.functional.cosine_similarity(one, other).min() > 0.99
    assert len(small.generate(ids, SamplingParams(temperature=0, max_tokens=5)).token_ids) > 0


def test_bfloat16_on_request(tmp_path: Path) -> None:
    place = make_checkpoint(tmp_path / "model", seed=1)
    engine = Engine.from_checkpoint(place, weights="bf16")
    ids = engine.tokenizer.encode("The lamp")
    expected = read(Engine.from_checkpoint(place).decoder, ids)
    assert engine.decoder.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(read(engine.decoder, ids), expected).min() > 0.99


@pytest.mark.parametrize("shape", ["dense", "no q/k norm", "experts"])
def test_an_adapter_shares_the_matrices_of_its_base(shape: str) -> None:
    base = model_of(SHAPES[shape])
    over = AdapterConfig(4, 8.0, targets=("q_proj", "v_proj", "o_proj") + (() if shape == "experts" else ("up_proj",)))
    donor = model_of(SHAPES[shape])
    attach(donor, over)
    weights = {n: torch.randn_like(p) * 0.1 for n, p in donor.named_parameters() if "lora_" in n}
    expected_base = expected_of(base, IDS)
    expected = expected_of(laid_over(base, over, weights), IDS)
    plain = Decoder(base, owns=True)
    adapted = Decoder(laid_over(base, over, weights), base=plain)
    assert adapted.layers[0].qkv.plain is plain.layers[0].qkv and not adapted.can_compile
    torch.testing.assert_close(read(adapted, IDS[:30], *([i] for i in IDS[30:])), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(read(plain, IDS), expected_base, atol=1e-4, rtol=0)


def test_a_stretched_context_is_yarn(tmp_path: Path) -> None:
    """The switch gives what a model of that configuration gives, and keeps what was stretched before."""
    place = make_checkpoint(tmp_path / "model", seed=1, positions=64)
    engine = Engine.from_checkpoint(place, context_factor=4.0)
    assert engine.max_positions == 256
    assert engine.model.config.rope_scaling == {"rope_type": "yarn", "factor": 4.0,
                                                "original_max_position_embeddings": 64}
    ids = [i % 200 + 10 for i in range(200)]
    torch.testing.assert_close(read(engine.decoder, ids), expected_of(engine.model, ids), atol=1e-4, rtol=0)
    assert (read(engine.decoder, ids) - read(Engine.from_checkpoint(place).decoder, ids)).abs().max() > 1e-3
    again = stretched(engine.model, 2.0)
    assert (again.rope_scaling["factor"], again.max_position_embeddings) == (8.0, 512)
    assert again.rope_scaling["original_max_position_embeddings"] == 64


@pytest.mark.parametrize("seconds, fixed, free", [
    ((3.0, 2.0, 1.9), "pairs", "pairs"),  # columns gain too little for what they cost a compiled step
    ((3.0, 2.0, 1.5), "pairs", "columns"),
    ((3.0, 3.5, 2.0), "rows", "columns"),
    ((3.0, 3.5, 2.9), "rows", "rows"),
])
def test_columns_are_worth_a_compiled_step(monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float, float],
                                           fixed: str, free: str) -> None:
    """What was measured for rows, pairs and columns, and what is taken where the weights may not move and may."""
    monkeypatch.setattr(matrices, "_seconds_of_ways", lambda: dict(zip(("rows", "pairs", "columns"), seconds)))
    large = matrices.MEASURED_WEIGHTS
    assert matrices.best_way(large, may_move=False) == fixed and matrices.best_way(large, may_move=True) == free
    assert matrices.best_way(large - 1, may_move=True) == "rows"


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 50])
def test_a_product_of_one_row_is_linear_for_any_number_of_rows(rows: int) -> None:
    x, weight = torch.randn(1, 24), torch.randn(rows, 24)
    torch.testing.assert_close(gemv(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("way", ["rows", "pairs", "columns"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_however_one_row_is_multiplied_the_logits_are_the_models(way: str, is_tied: bool,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimind.matrices.best_way", lambda num_weights, may_move: way)
    model = model_of(replace(SHAPE, tie_word_embeddings=is_tied))
    expected = expected_of(model, IDS)
    decoder = Decoder(model, owns=True)
    assert decoder.layers[0].o.weight.T.is_contiguous() == (way == "columns")
    cache = decoder.new_cache()
    found = [decoder.logits(decoder.hidden([Piece(cache, [i])])) for i in IDS]
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(read(decoder, IDS), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(expected_of(model, IDS), expected, atol=1e-4, rtol=0)  # its weights moved, no more


@pytest.mark.slow  # the C++ compiler takes its time
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # of the compiler's own modules
def test_a_compiled_step_gives_the_same_logits_while_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(SHAPE)
    expected = expected_of(model, IDS)
    decoder = Decoder(model, owns=True)
    assert decoder.can_compile and not decoder.is_compiled
    cache = decoder.new_cache()
    found = [decoder.logits(decoder.hidden([Piece(cache, [i])])) for i in IDS[:20]]
    seconds = decoder._seconds_of_steps
    monkeypatch.setattr(decoder, "_seconds_of_steps", lambda *ways: [seconds(*ways)[0], float("inf")])
    assert not decoder.compile() and not decoder.is_compiled, "slower ones are dropped"
    monkeypatch.setattr(decoder, "_seconds_of_steps", lambda *ways: [seconds(*ways)[0], 0.0])
    assert decoder.compile() and decoder.is_compiled
    found += [decoder.logits(decoder.hidden([Piece(cache, [i])])) for i in IDS[20:]]
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_a_compiled_step_on_a_gpu_gives_the_same_logits(dtype: torch.dtype, bound: float) -> None:
    model = model_of(SHAPE)
    expected = expected_of(model, IDS)
    decoder = Decoder(model.to("cuda", dtype), owns=True)
    eager = read(decoder, IDS)
    decoder.compile()
    decoder._one = decoder._one or _Compiled(decoder._arithmetic)  # also where it is the slower one
    cache = decoder.new_cache()
    found = [decoder.logits(decoder.hidden([Piece(cache, [i])])) for i in IDS]
    for logits in (eager, torch.cat(found)):
        torch.testing.assert_close(logits.cpu(), expected, atol=bound, rtol=0)
