"""The decoder against a naive NumPy one, against itself (cache, packing), and against Hugging Face where installed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from minimind.attention import Segments, _padded, attend, choose_kernel, pack_order
from minimind.checkpoint import hf_config
from minimind.errors import ConfigError
from minimind.model import KVCache, MiniMindForCausalLM
from minimind.norm import rms_norm
from minimind.presets import PRESETS, ModelConfig

CONFIG = ModelConfig(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     head_dim=8, intermediate_size=40, rope_theta=10_000.0)


def model_of(config: ModelConfig = CONFIG, seed: int = 1) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start, so that mistakes show
            parameter += 0.2 * torch.randn_like(parameter)
    return model


class NaiveDecoder:
    """Straight from the formulas, one sequence, float64 loops over heads and positions."""

    def __init__(self, model: MiniMindForCausalLM):
        self.c = model.config
        self.w = {k: v.detach().numpy().astype(np.float64) for k, v in model.state_dict().items()}

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c.rms_norm_eps) * self.w[name]

    def rope(self, x: np.ndarray) -> np.ndarray:
        half = self.c.head_dim // 2
        out = np.empty_like(x)
        for position in range(len(x)):
            for i in range(half):
                angle = position / self.c.rope_theta ** (2 * i / self.c.head_dim)
                a, b = x[position, i], x[position, i + half]
                out[position, i] = a * math.cos(angle) - b * math.sin(angle)
                out[position, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def logits(self, ids: list[int]) -> np.ndarray:
        c, w = self.c, self.w
        x = w["model.embed_tokens.weight"][ids]
        for n in range(c.num_hidden_layers):
            p = f"model.layers.{n}."
            h = self.norm(x, p + "input_layernorm.weight")
            q, k, v = (h @ w[f"{p}self_attn.{name}_proj.weight"].T for name in "qkv")
            heads = []
            for head in range(c.num_attention_heads):
                group = head // (c.num_attention_heads // c.num_key_value_heads)
                qh, kh, vh = (m[:, i * c.head_dim:(i + 1) * c.head_dim] for m, i in ((q, head), (k, group), (v, group)))
                if c.qk_norm:
                    qh, kh = self.norm(qh, p + "self_attn.q_norm.weight"), self.norm(kh, p + "self_attn.k_norm.weight")
                qh, kh = self.rope(qh), self.rope(kh)
                out = np.zeros_like(qh)
                for t in range(len(ids)):
                    score = qh[t] @ kh[:t + 1].T / math.sqrt(c.head_dim)
                    weight = np.exp(score - score.max())
                    out[t] = weight / weight.sum() @ vh[:t + 1]
                heads.append(out)
            x = x + np.concatenate(heads, 1) @ w[p + "self_attn.o_proj.weight"].T
            h = self.norm(x, p + "post_attention_layernorm.weight")
            gate = h @ w[p + "mlp.gate_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return self.norm(x, "model.norm.weight") @ head.T


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, qk_norm=False),
                                    replace(CONFIG, tie_word_embeddings=False, num_key_value_heads=4)])
def test_logits_equal_a_naive_decoder(config: ModelConfig) -> None:
    model = model_of(config)
    ids = torch.randint(0, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got = model(ids).numpy()
    for row in range(2):
        np.testing.assert_allclose(got[row], NaiveDecoder(model).logits(ids[row].tolist()), atol=2e-4)


def test_packed_documents_do_not_see_each_other() -> None:
    model = model_of()
    documents = [torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 3, 7, 1, 5)]
    documents = [documents[i] for i in pack_order([len(d) for d in documents])]
    stream, segments = torch.cat(documents), Segments(tuple(len(d) for d in documents))
    assert segments.groups == ((1, 1), (2, 3), (1, 5), (1, 7))
    alone = torch.cat([model(d[None])[0] for d in documents])
    torch.testing.assert_close(model(stream[None], segments=segments)[0], alone, atol=1e-5, rtol=1e-4)
    # the same stream as rows of equal width
    torch.testing.assert_close(model(stream[:18].view(2, 9), segments=Segments((1, 3, 3, 5, 6))).flatten(0, 1)[:12],
                               alone[:12], atol=1e-5, rtol=1e-4)


def test_padded_kernel_equals_the_one_by_length_gradients_included() -> None:
    generator = torch.Generator().manual_seed(5)
    segments = Segments((2, 2, 5, 9))
    q = torch.randn(18, 4, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(18, 2, 8, generator=generator, requires_grad=True) for _ in range(2))
    grad = torch.randn(18, 4, 8, generator=generator)
    results = []
    for run in (lambda: attend(q[None], k[None], v[None], segments)[0], lambda: _padded(q, k, v, segments)):
        out = run()
        results.append((out, *torch.autograd.grad(out, (q, k, v), grad)))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cuts", [[9], [4, 5], [1] * 9, [5, 1, 3]])
def test_cache_gives_the_logits_of_the_whole(cuts: list[int]) -> None:
    model = model_of().eval()
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(8))
    cache = KVCache(CONFIG, 2, 9, "cpu", torch.float32)
    start, parts = 0, []
    with torch.no_grad():
        for length in cuts:
            parts.append(model(ids[:, start:start + length], cache=cache, start=start))
            start += length
        torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-5, rtol=1e-4)
    assert len(cache.layers) == CONFIG.num_hidden_layers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, num_experts=2, num_experts_per_tok=2)],
                         ids=["dense", "experts"])
def test_half_precision_has_no_nan_on_any_path(config: ModelConfig, dtype: torch.dtype) -> None:
    """Upstream's mask overflowed in float16. Here a position that sees nothing does not exist: padding stands on the
    right (of documents in training), and a request is alone in its cache."""
    plain = model_of(config).eval()
    half = model_of(config).eval().to(dtype)
    documents = [torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(n)) for n in (1, 1, 4, 70)]
    stream, lengths = torch.cat(documents)[None], (1, 1, 4, 70)
    cache = KVCache(config, 1, 70, "cpu", dtype)
    with torch.no_grad():
        expected = plain(stream, segments=Segments(lengths))
        got = {"packed": half(stream, segments=Segments(lengths)),
               "cached": torch.cat([half(part, cache=cache, start=start) for start, part in (
                   (0, stream[:, 6:40]), (34, stream[:, 40:75]), (69, stream[:, 75:]))], 1)}
        q, k, v = (torch.randn(76, heads, 8, dtype=dtype) * 20 for heads in (4, 2, 2))
        assert bool(torch.isfinite(_padded(q, k, v, Segments(lengths))).all())
    scale = float(expected.abs().max())
    for name, logits in got.items():
        assert logits.dtype == dtype
        assert float((logits.float() - expected[:, -logits.shape[1]:]).abs().max()) < 0.05 * scale, name


def test_norm_and_its_gradient_equal_autograds() -> None:
    x = torch.randn(3, 4, 24, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(24, requires_grad=True)
    grad = torch.randn(3, 4, 24)
    ours = rms_norm(x, weight, 1e-6)
    plain = torch.nn.functional.rms_norm(x, (24,), weight, 1e-6)
    torch.testing.assert_close(ours, plain)
    for one, other in zip(torch.autograd.grad(ours, (x, weight), grad), torch.autograd.grad(plain, (x, weight), grad)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_parameters_they_say(name: str) -> None:
    model = MiniMindForCausalLM.unfilled(PRESETS[name].model)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].model.num_parameters()


def test_published_sizes() -> None:
    published = {"minimind-3": 63_912_192, "minimind-3-moe": 198_416_640, "minimind2-small": 25_829_888,
                 "minimind2": 104_030_976, "minimind2-moe": 145_029_760}
    assert {n: PRESETS[n].model.num_parameters() for n in published} == published


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(replace(CONFIG, vocab_size=2000, hidden_size=64))
    assert abs(float(model.model.embed_tokens.weight.detach().std()) - 0.02) < 5e-4
    assert bool((model.model.norm.weight == 1).all())


def test_tied_duplicate_is_accepted_and_a_wrong_shape_is_not() -> None:
    model = model_of()
    weights = model.state_dict()
    model.load_weights({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    with pytest.raises(RuntimeError):
        model.load_weights({k: v for k, v in weights.items() if "norm" not in k})


def test_kernel_choice_says_what_is_missing() -> None:
    kernel, reason = choose_kernel("auto", torch.device("cpu"), torch.float32)
    assert kernel == "sdpa" and reason
    for name in ("flash_attn", "flex"):
        with pytest.raises(ConfigError, match="CUDA"):
            choose_kernel(name, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_logits_equal_hugging_faces(qk_norm: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = model_of(replace(CONFIG, qk_norm=qk_norm))
    values = hf_config(model.config)
    family = transformers.Qwen3Config if qk_norm else transformers.LlamaConfig
    theirs = getattr(transformers, values["architectures"][0])(family(**values)).eval()
    theirs.load_state_dict(model.state_dict() | {"lm_head.weight": model.output_weight}, strict=True)
    ids = torch.randint(0, 61, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_kernels_equal_the_cpu() -> None:
    model = model_of()
    segments = Segments((2, 2, 5, 9))
    ids = torch.randint(0, 61, (1, 18))
    expected = model(ids, segments=segments)
    got = model.cuda()(ids.cuda(), segments=segments).cpu()
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
