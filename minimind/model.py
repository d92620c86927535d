"""The decoder: Qwen3's shape (arXiv:2505.09388), small enough to read in a sitting.

x -> x + attention(norm(x)) -> x + swiglu(norm(x)), rotary positions, grouped queries, optional q/k norm, tied
embeddings, no biases. Parameter names are Hugging Face's, so the same file loads as ``Qwen3ForCausalLM``.

Shapes: B rows, T positions, C hidden_size, H query heads, G key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from minimind.attention import Segments, attend, attend_cached
from minimind.lora import AdapterConfig, adapter_weights, is_adapter
from minimind.losses import linear_cross_entropy
from minimind.mlp import MLP
from minimind.moe import MoE, Routing, split_experts, stack_experts
from minimind.norm import rms_norm
from minimind.presets import ModelConfig
from minimind.rope import rope_tables

INIT_STD = 0.02
#: ``head(hidden [B, T, C], output weight [V, C])``: a summed loss and sums of what else it counts
Head = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Losses(NamedTuple):
    """What a training batch came to. ``balance`` and ``load`` are ``None`` without experts."""

    loss: Tensor  #: what the head makes of the batch, a sum and a scalar: of cross entropy, nats
    balance: Tensor | None  #: balance losses of all layers with their coefficient, a mean over the batch's tokens
    load: Tensor | None  #: [L, E] tokens that each expert of each layer got
    sums: Tensor | None = None  #: [M] what else the head counts


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + D / 2) of x [B, T, heads, D]; float32 inside, dtype of x outside."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., arXiv:2305.13245) with RMS-normed queries and keys where asked."""

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

    def queries_keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, H, D] and k, v [B, T, G, D]; q and k turned to their positions."""
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v


class DecoderLayer(nn.Module):
    """Two halves in which no position sees another, and between them attention, where they do.

    The halves are what ``torch.compile`` is good at: one graph each, shared by all layers. Attention has a kernel of
    its own, chosen by how the documents lie (``minimind.attention``).
    """

    def __init__(self, config: ModelConfig, layer: int, dropout: float):
        super().__init__()
        self.layer = layer
        self.dropout = dropout
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.use_moe else MLP(config)
        self._compiled: tuple[Callable, Callable] | None = None

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.queries_keys_values(self.input_layernorm(x), cos, sin)

    def after_attention(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Routing | None]:
        x = x + self._drop(self.self_attn.o_proj(attended.flatten(-2)))
        out = self.mlp(self.post_attention_layernorm(x))
        out, routing = out if isinstance(out, tuple) else (out, None)
        return x + self._drop(out), routing

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, training=self.training) if self.dropout else x

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], segments: Segments | None,
                cache: KVCache | None, start: int) -> tuple[Tensor, Routing | None]:
        before, after = (self._compiled if self._compiled and torch.is_grad_enabled() else
                         (self.before_attention, self.after_attention))
        q, k, v = before(x, *rope)
        if cache is None:
            attended = attend(q, k, v, segments)
        else:
            attended = attend_cached(q, *cache.update(self.layer, k, v, start), start)
        return after(x, attended)

    def compile_halves(self) -> None:
        """For training alone: evaluations and samples, with shapes of their own, would each be compiled anew."""
        # The number of tokens stays open: rows of conversations are not equally long. On a CPU that costs nothing.
        self._compiled = (torch.compile(self.before_attention, dynamic=True),
                          torch.compile(self.after_attention, dynamic=True))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, dropout) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class _NothingIsDrawn(TorchFunctionMode):
    """``torch.nn.init`` leaves everything as it is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class MiniMindForCausalLM(nn.Module):
    """Next-token model. Weights start as N(0, 0.02) from torch's global generator, norms as 1.

    ``dropout``: share of what attention and the MLP add to the residual stream that is left out in training.
    ``gradient_checkpointing``: keep only each block's input for the backward pass and compute the rest again (Chen et
    al., arXiv:1604.06174); about a third more arithmetic for memory of one block instead of all.
    """

    gradient_checkpointing = False
    adapter: AdapterConfig | None = None  # what it carries (minimind/lora.py)

    def __init__(self, config: ModelConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        self.lm_head = (None if config.tie_word_embeddings else
                        nn.Linear(config.hidden_size, config.vocab_size, bias=False))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
            elif isinstance(module, MoE):
                module.reset_parameters(INIT_STD)

    @classmethod
    def unfilled(cls, config: ModelConfig, device: torch.device | str = "meta") -> MiniMindForCausalLM:
        """For weights that come from elsewhere: its own are whatever is in memory, and nothing is on the meta device.

        Drawing there, and ``to_empty`` afterwards, would import torch's compiler and sympy: most of a second before the
        first answer of a chat, and up to two of a processor.
        """
        with torch.device(device), _NothingIsDrawn():
            return cls(config)

    def compile_blocks(self) -> None:
        """``torch.compile`` everything between two attentions (``DecoderLayer``)."""
        for layer in self.model.layers:
            layer.compile_halves()

    @property
    def output_weight(self) -> Tensor:
        """[V, C]: the embedding itself where they are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def _blocks(self, input_ids: Tensor, segments: Segments | None, position_ids: Tensor | None,
                cache: KVCache | None, start: int) -> tuple[Tensor, list[Routing]]:
        """Output of the last norm, [B, T, C], and what the routers of all layers did."""
        if position_ids is None:
            position_ids = (torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
                            if segments is None else segments.positions(input_ids.device).view(input_ids.shape))
        rope = rope_tables(position_ids, self.config)
        x = self.model.embed_tokens(input_ids)
        routings = []
        for layer in self.model.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, routing = checkpoint(layer, x, rope, segments, cache, start, use_reentrant=False)
            else:
                x, routing = layer(x, rope, segments, cache, start)
            routings += [] if routing is None else [routing]
        return self.model.norm(x), routings

    def hidden(self, input_ids: Tensor, *, segments: Segments | None = None, position_ids: Tensor | None = None,
               cache: KVCache | None = None, start: int = 0) -> Tensor:
        """Output of the last norm, [B, T, C]."""
        return self._blocks(input_ids, segments, position_ids, cache, start)[0]

    def forward(self, input_ids: Tensor, *, segments: Segments | None = None, position_ids: Tensor | None = None,
                cache: KVCache | None = None, start: int = 0, targets: Tensor | None = None,
                head: Head | None = None) -> Tensor | Losses:
        """Logits [B, T, V], or with ``targets`` [B, T] or a ``head`` the losses of a training batch.

        ``targets[b, t]`` is the token that follows ``input_ids[b, t]``, -100 where nothing is learnt: summed cross
        entropy. ``head(hidden [B, T, C], output weight [V, C])`` makes another loss (``minimind.objectives``).
        ``segments``: the B * T tokens are one stream of documents (training). ``cache`` and ``start``: the
        tokens stand at ``start``.. behind those already in the cache.
        """
        x, routings = self._blocks(input_ids, segments, position_ids, cache, start)
        if targets is None and head is None:
            return F.linear(x, self.output_weight)
        loss, sums = head(x, self.output_weight) if head is not None else (
            linear_cross_entropy(x.flatten(0, 1), self.output_weight, targets.flatten()), None)
        if not routings:
            return Losses(loss, None, None, sums)
        balance = torch.stack([r.balance_loss for r in routings]).sum()
        return Losses(loss, balance, torch.stack([r.load for r in routings]), sums)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load a state dict with Hugging Face's names strictly; a duplicate of the tied embedding under
        ``lm_head.weight`` is ignored. Raises ``RuntimeError`` or ``CheckpointError`` where it does not fit."""
        if self.lm_head is None:
            weights = {k: v for k, v in weights.items() if k != "lm_head.weight"}
        self.load_state_dict({**stack_experts(weights), **adapter_weights(self)}, strict=True)

    def named_weights(self) -> dict[str, Tensor]:
        """The inverse of ``load_weights``: weights under Hugging Face's names, matrices of experts one by one. Adapters
        are not among them: they stand beside what they belong to."""
        return split_experts({name: tensor for name, tensor in self.state_dict().items() if not is_adapter(name)})
