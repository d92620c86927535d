"""The decoder: Qwen3's shape (arXiv:2505.09388), small enough to read in a sitting.

x -> x + attention(norm(x)) -> x + swiglu(norm(x)), rotary positions, grouped queries, optional q/k norm, tied
embeddings, no biases. Parameter names are Hugging Face's, so the same file loads as ``Qwen3ForCausalLM``.

Shapes: B rows, T positions, C hidden_size, H query heads, G key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.attention import Segments, attend, attend_cached
from minimind.losses import linear_cross_entropy
from minimind.norm import rms_norm
from minimind.presets import ModelConfig

INIT_STD = 0.02


class KVCache:
    """Keys and values of ``batch`` sequences of up to ``max_len`` positions.

    ``layers[i]`` is one tensor [2, B, G, max_len, D]: keys, then values.
    """

    def __init__(self, config: ModelConfig, batch: int, max_len: int, device: torch.device | str,
                 dtype: torch.dtype):
        shape = (2, batch, config.num_key_value_heads, max_len, config.head_dim)
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.max_len = max_len
        self.device = torch.device(device)

    def update(self, layer: int, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Store k, v [B, T, G, D] from position ``start`` on; all keys and values so far, [B, G, start + T, D]."""
        end = start + k.shape[1]
        assert end <= self.max_len, f"position {end} does not fit a cache of {self.max_len}"
        store = self.layers[layer]
        store[0, :, :, start:end] = k.transpose(1, 2)
        store[1, :, :, start:end] = v.transpose(1, 2)
        return store[0, :, :, :end], store[1, :, :, :end]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rope_tables(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin, [..., T, 1, D / 2] float32, of ``positions`` [..., T] (Su et al., arXiv:2104.09864)."""
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    angles = positions[..., None].float() * config.rope_theta ** -exponents
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + D / 2) of x [B, T, heads, D]; float32 inside, dtype of x outside."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        c, d = config.hidden_size, config.head_dim
        self.head_dim = d
        self.q_proj = nn.Linear(c, config.num_attention_heads * d, bias=False)
        self.k_proj = nn.Linear(c, config.num_key_value_heads * d, bias=False)
        self.v_proj = nn.Linear(c, config.num_key_value_heads * d, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * d, c, bias=False)
        self.q_norm = RMSNorm(d, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(d, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], segments: Segments | None,
                cache: KVCache | None, start: int, layer: int) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope)
        if cache is None:
            out = attend(q, k, v, segments)
        else:
            out = attend_cached(q, *cache.update(layer, k, v, start), start)
        return self.o_proj(out.flatten(-2))


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], segments: Segments | None,
                cache: KVCache | None, start: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, segments, cache, start, self.layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MiniMindForCausalLM(nn.Module):
    """Next-token model. Weights start as N(0, 0.02) from torch's global generator, norms as 1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = (None if config.tie_word_embeddings else
                        nn.Linear(config.hidden_size, config.vocab_size, bias=False))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)

    @property
    def output_weight(self) -> Tensor:
        """[V, C]: the embedding itself where they are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, input_ids: Tensor, *, segments: Segments | None = None, position_ids: Tensor | None = None,
               cache: KVCache | None = None, start: int = 0) -> Tensor:
        """Output of the last norm, [B, T, C]."""
        if position_ids is None:
            position_ids = (torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
                            if segments is None else segments.positions(input_ids.device).view(input_ids.shape))
        rope = rope_tables(position_ids, self.config)
        x = self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            x = layer(x, rope, segments, cache, start)
        return self.model.norm(x)

    def forward(self, input_ids: Tensor, *, segments: Segments | None = None, position_ids: Tensor | None = None,
                cache: KVCache | None = None, start: int = 0, targets: Tensor | None = None) -> Tensor:
        """Logits [B, T, V], or with ``targets`` [B, T] the summed cross entropy in nats, a scalar.

        ``targets[b, t]`` is the token that follows ``input_ids[b, t]``, -100 where nothing is learnt.
        ``segments``: the B * T tokens are one stream of documents (training). ``cache`` and ``start``: the
        tokens stand at ``start``.. behind those already in the cache.
        """
        x = self.hidden(input_ids, segments=segments, position_ids=position_ids, cache=cache, start=start)
        if targets is None:
            return F.linear(x, self.output_weight)
        return linear_cross_entropy(x.flatten(0, 1), self.output_weight, targets.flatten())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load a state dict strictly; a duplicate of the tied embedding under ``lm_head.weight`` is ignored."""
        if self.lm_head is None:
            weights = {k: v for k, v in weights.items() if k != "lm_head.weight"}
        self.load_state_dict(weights, strict=True)
