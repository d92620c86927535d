"""The forward pass of an engine: many sequences at once, in few and fast calls.

``MiniMindForCausalLM.forward`` is the readable version and the reference (tests/minimind/test_decoding.py compares
them); here are the same equations arranged for one token per sequence, where time goes into reading weights and into
the calls themselves:

- q, k and v are one product, gate and up another; q and k are normed and turned together.
- One row times a matrix is done the way that is fastest on this machine (``minimind.matrices.best_way``), or by a
  ``gemv`` that ``torch.compile`` makes of a product and a sum: with AVX-512, 5.4 ms for the matrices of a 26M model in
  place of F.linear's 9.6 (one thread, float32; reading them takes 4.5). Few rows go through oneDNN's packed weights:
  8.9 ms for 8 rows in place of 17.1.
- int8 weights (``minimind.matrices.Int8``) are a quarter to read.
- Sequences that are written stand in slots and attend in one call (``minimind.caches``).

docs/benchmarks.md has what whole answers take beside Hugging Face's and llama.cpp's.

Nothing in it depends on what other sequences are in the batch, except how sums are rounded.

Shapes: N tokens of all sequences, C hidden_size, H query heads, G key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.attention import attend_cached
from minimind.caches import SequenceCache, SlotGroup, Slots
from minimind.matrices import Matrix, matrix_of
from minimind.mlp import MLP
from minimind.model import MiniMindForCausalLM
from minimind.norm import rms_norm
from minimind.presets import ModelConfig
from minimind.rope import rope_tables

#: positions whose rotations are computed at once
ROPE_STEP = 512


@dataclass
class Piece:
    """``ids`` to be read behind what ``cache`` holds."""

    cache: SequenceCache
    ids: Sequence[int]


class Layer(NamedTuple):
    """Weights of one block. ``qk_norm`` [H + G, D]: of every query and key head; None without."""

    input_norm: Tensor
    qkv: Matrix
    qk_norm: Tensor | None
    o: Matrix
    post_norm: Tensor
    gate_up: Matrix | None  #: None with experts
    down: Matrix | None
    mlp: nn.Module | None  #: the experts


class Decoder:
    """The weights of ``model`` arranged for decoding. With ``owns`` the model's own tensors become parts of the fused
    ones, so that nothing is twice in memory; a model that is being trained keeps its tensors (and they are not fused).

    ``weights``: ``"full"`` as they are, or ``"int8"``. ``base``: another decoder of the same weights without the
    adapters that ``model`` carries, whose matrices are shared.
    """

    def __init__(self, model: MiniMindForCausalLM, *, owns: bool = False, weights: str = "full",
                 base: Decoder | None = None):
        self.config = model.config
        self.device = model.output_weight.device
        self.dtype = model.output_weight.dtype
        self.embedding = model.model.embed_tokens.weight.detach()
        self.final_norm = model.model.norm.weight.detach()
        self.layers = [_layer(block, model.config, owns, weights, base.layers[i] if base else None)
                       for i, block in enumerate(model.model.layers)]
        self.head = base.head if base else self._head(model, owns, weights)
        self._arithmetic = _Arithmetic(model.config)
        self._one: _Compiled | None = None  # for a single row
        self.tokens_seen = 0  #: read and written so far
        self._rope = rope_tables(torch.zeros(0, dtype=torch.long, device=self.device), model.config)

    def _head(self, model: MiniMindForCausalLM, owns: bool, weights: str) -> Matrix:
        is_tied = model.lm_head is None
        if weights != "full" or not owns:
            return matrix_of([model.output_weight], weights)
        head = matrix_of([model.model.embed_tokens if is_tied else model.lm_head], weights, owns=True)
        if is_tied:
            self.embedding = model.output_weight.detach()
        return head

    @property
    def can_compile(self) -> bool:
        return all(layer.mlp is None and layer.qkv.can_compile for layer in self.layers)

    @property
    def is_compiled(self) -> bool:
        return self._one is not None

    def compile(self) -> bool:
        """Make the step of one row fast: four small graphs, whatever the length, one of them for all layers. Takes 5 to
        30 s, less where the compiler finds them on disk; may run in another thread. What turns out to be slower than
        the eager step, as on CPUs without AVX-512, is dropped; whether it was kept. Raises what the compiler does."""
        assert self.can_compile
        made = _Compiled(self._arithmetic)
        eager, compiled = self._seconds_of_steps(self._arithmetic, made)
        if compiled < eager:
            self._one = made
        return self.is_compiled

    @torch.inference_mode()
    def _seconds_of_steps(self, *ways: _Arithmetic | _Compiled) -> list[float]:
        """The fastest of a few steps of one row each, taken in turn, with the head; the first ones do not count."""
        caches = [self.new_cache() for _ in ways]
        ids = torch.zeros(1, dtype=torch.long, device=self.device)
        found = [float("inf") for _ in ways]
        for number in range(8):
            for at, (way, cache) in enumerate(zip(ways, caches)):
                self._wait()
                began = time.perf_counter()
                hidden = self._run(way, ids, [Piece(cache, [0])])
                way.head(hidden, self.head)
                self._wait()
                if number:
                    found[at] = min(found[at], time.perf_counter() - began)
        return found

    def _wait(self) -> None:
        """A GPU is done with what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def num_bytes(self) -> int:
        """Memory of the weights; what two decoders share is counted in both."""
        modules = [layer.mlp for layer in self.layers if layer.mlp is not None]
        matrices = [m for layer in self.layers for m in (layer.qkv, layer.o, layer.gate_up, layer.down) if m]
        own_head = 0 if self.head.is_tensor(self.embedding) else self.head.nbytes
        return (self.embedding.numel() * self.embedding.element_size() + own_head + sum(m.nbytes for m in matrices)
                + sum(p.numel() * p.element_size() for module in modules for p in module.parameters()))

    @property
    def cache_bytes_per_token(self) -> int:
        config = self.config
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * self.dtype.itemsize

    def new_cache(self) -> SequenceCache:
        return SequenceCache(self.config, self.device, self.dtype)

    def new_slots(self) -> Slots:
        return Slots(self.config, self.device, self.dtype)

    @torch.inference_mode()
    def hidden(self, pieces: Sequence[Piece]) -> Tensor:
        """Output of the last norm, [N, C], for the tokens of all pieces one behind the other; caches grow by them."""
        ids = torch.tensor([i for piece in pieces for i in piece.ids], device=self.device)
        return self._run(self._one if self._one and len(ids) == 1 else self._arithmetic, ids, pieces)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[N, C] -> [N, V] in float32."""
        one = self._one if len(hidden) == 1 else None
        return (one or self._arithmetic).head(hidden, self.head).float()

    def _run(self, do: _Arithmetic | _Compiled, ids: Tensor, pieces: Sequence[Piece]) -> Tensor:
        cos, sin = self._rotations(pieces)
        for piece in pieces:
            piece.cache.reserve(piece.cache.length + len(piece.ids))
        parts = _parts(pieces)
        x = F.embedding(ids, self.embedding)
        qk, v = do.first(x, self.layers[0], cos, sin)
        for number, layer in enumerate(self.layers):
            found = [part.attend(number, qk[part.rows], v[part.rows]) for part in parts]
            attended = found[0] if len(found) == 1 else torch.cat(found)
            if number + 1 < len(self.layers):
                x, qk, v = do.between(x, attended, layer, self.layers[number + 1], cos, sin)
            else:
                x = do.last(x, attended, layer, self.final_norm)
        for piece in pieces:
            piece.cache.length += len(piece.ids)
        self.tokens_seen += len(ids)
        return x

    def _rotations(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """cos and sin [N, 1, D / 2] of every token's position."""
        longest = max(piece.cache.length + len(piece.ids) for piece in pieces)
        if longest > len(self._rope[0]):
            size = -(-longest // ROPE_STEP) * ROPE_STEP
            self._rope = rope_tables(torch.arange(size, device=self.device), self.config)
        if len(pieces) == 1:
            start = pieces[0].cache.length
            places: slice | Tensor = slice(start, start + len(pieces[0].ids))
        else:
            places = torch.tensor([p.cache.length + i for p in pieces for i in range(len(p.ids))], device=self.device)
        return self._rope[0][places], self._rope[1][places]


def _parts(pieces: Sequence[Piece]) -> list[_Alone | _Together]:
    """How the pieces attend: all members of a group, in the order of their slots, together; others each alone."""
    parts: list[_Alone | _Together] = []
    number = row = 0
    while number < len(pieces):
        group = pieces[number].cache.group
        count = len(group.members) if group is not None else 0
        side_by_side = pieces[number:number + count]
        if count and [p.cache for p in side_by_side] == group.members and all(len(p.ids) == 1 for p in side_by_side):
            parts.append(_Together(group, slice(row, row + count)))
            number, row = number + count, row + count
        else:
            piece = pieces[number]
            parts.append(_Alone(piece.cache, slice(row, row + len(piece.ids))))
            number, row = number + 1, row + len(piece.ids)
    return parts


class _Alone:
    """The tokens ``rows`` of one sequence."""

    def __init__(self, cache: SequenceCache, rows: slice):
        self.cache, self.rows = cache, rows
        self.start, self.end = cache.length, cache.length + rows.stop - rows.start

    def attend(self, number: int, qk: Tensor, v: Tensor) -> Tensor:
        """Store keys and values of layer ``number`` and attend to all: qk [T, H + G, D], v [T, G, D] -> [T, H * D]."""
        store = self.cache.layers[number]
        heads = qk.shape[1] - v.shape[1]
        store[0, :, self.start:self.end] = qk[:, heads:].transpose(0, 1)
        store[1, :, self.start:self.end] = v.transpose(0, 1)
        kept = store[:, None, :, :self.end]
        return attend_cached(qk[None, :, :heads], kept[0], kept[1], self.start)[0].flatten(1)


class _Together:
    """One token each of all members of ``group``."""

    def __init__(self, group: SlotGroup, rows: slice):
        self.group, self.rows = group, rows
        lengths = [member.length for member in group.members]
        first = group.layers[0]
        starts = torch.tensor(lengths, device=first.device)
        self.keys_at = (group.first_rows[:len(lengths)] + starts[:, None]).flatten()
        self.values_at = self.keys_at + group.kv_heads * group.capacity
        self.seen = max(lengths) + 1
        self.mask: Tensor | None = None
        if min(lengths) < max(lengths):
            is_hidden = torch.arange(self.seen, device=first.device) > starts[:, None]
            self.mask = torch.zeros(is_hidden.shape, dtype=first.dtype, device=first.device)
            self.mask = self.mask.masked_fill_(is_hidden, -torch.inf)[:, None, None]

    def attend(self, number: int, qk: Tensor, v: Tensor) -> Tensor:
        """As ``_Alone.attend``, for T sequences with a token each. The query heads of one key head stand as if they
        were positions: they see the same keys, and none needs to be repeated for them."""
        count, kv_heads, head_dim = v.shape
        heads = qk.shape[1] - kv_heads
        rows = self.group.rows[number]
        rows.index_copy_(0, self.keys_at, qk[:, heads:].reshape(-1, head_dim))
        rows.index_copy_(0, self.values_at, v.reshape(-1, head_dim))
        store = self.group.layers[number][:count, :, :, :self.seen]
        q = qk[:, :heads].reshape(count, kv_heads, heads // kv_heads, head_dim)
        return F.scaled_dot_product_attention(q, store[:, 0], store[:, 1], attn_mask=self.mask).flatten(1)


def _layer(block: nn.Module, config: ModelConfig, owns: bool, weights: str, base: Layer | None) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
    qk_norm = None
    if config.qk_norm:
        qk_norm = torch.cat([attention.q_norm.weight.detach().expand(config.num_attention_heads, -1),
                             attention.k_norm.weight.detach().expand(config.num_key_value_heads, -1)])
    is_dense = isinstance(mlp, MLP)

    def make(modules: list[nn.Module], plain: Matrix | None) -> Matrix:
        return matrix_of(modules, weights, owns=owns, plain=plain)

    return Layer(block.input_layernorm.weight.detach(), make(qkv, base and base.qkv), qk_norm,
                 make([attention.o_proj], base and base.o), block.post_attention_layernorm.weight.detach(),
                 make([mlp.gate_proj, mlp.up_proj], base and base.gate_up) if is_dense else None,
                 make([mlp.down_proj], base and base.down) if is_dense else None, None if is_dense else mlp)


class _Arithmetic:
    """Everything between two attentions, in which no token sees another."""

    def __init__(self, config: ModelConfig):
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps

    def first(self, x: Tensor, layer: Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        normed = rms_norm(x, layer.input_norm, self.eps)
        return self.turned(layer.qkv(normed), layer.qk_norm, cos, sin)

    def between(self, x: Tensor, attended: Tensor, layer: Layer, following: Layer, cos: Tensor,
                sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.after(x, attended, layer)
        return x, *self.first(x, following, cos, sin)

    def last(self, x: Tensor, attended: Tensor, layer: Layer, norm: Tensor) -> Tensor:
        return rms_norm(self.after(x, attended, layer), norm, self.eps)

    def after(self, x: Tensor, attended: Tensor, layer: Layer) -> Tensor:
        x = x + layer.o(attended)
        normed = rms_norm(x, layer.post_norm, self.eps)
        if layer.mlp is not None:
            return x + layer.mlp(normed)[0]
        gate, up = layer.gate_up(normed).chunk(2, dim=-1)
        return x + layer.down(F.silu(gate) * up)

    def head(self, hidden: Tensor, head: Matrix) -> Tensor:
        return head(hidden)

    def turned(self, qkv: Tensor, qk_norm: Tensor | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [N, H + G, D], normed and turned to their positions, and values [N, G, D]."""
        parts = qkv.unflatten(-1, (-1, self.head_dim))
        qk, v = parts[:, :self.heads + self.kv_heads], parts[:, self.heads + self.kv_heads:]
        if qk_norm is not None:
            qk = (F.rms_norm(qk.float(), (self.head_dim,), None, self.eps) * qk_norm).to(qkv.dtype)
        first, second = qk.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(qkv.dtype), v


class _Compiled:
    """The same for one row. Weights are arguments, so all layers share one graph."""

    def __init__(self, arithmetic: _Arithmetic):
        def turned(x: Tensor, norm: Tensor, qkv: Tensor, qk_norm: Tensor | None, cos: Tensor,
                   sin: Tensor) -> tuple[Tensor, Tensor]:
            return arithmetic.turned(gemv(rms_norm(x, norm, arithmetic.eps), qkv), qk_norm, cos, sin)

        def after(x: Tensor, attended: Tensor, o: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
            x = x + gemv(attended, o)
            gate, up = gemv(rms_norm(x, norm, arithmetic.eps), gate_up).chunk(2, dim=-1)
            return x + gemv(F.silu(gate) * up, down)

        def between(x: Tensor, attended: Tensor, o: Tensor, post_norm: Tensor, gate_up: Tensor, down: Tensor,
                    norm: Tensor, qkv: Tensor, qk_norm: Tensor | None, cos: Tensor,
                    sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = after(x, attended, o, post_norm, gate_up, down)
            return x, *turned(x, norm, qkv, qk_norm, cos, sin)

        def last(x: Tensor, attended: Tensor, o: Tensor, post_norm: Tensor, gate_up: Tensor, down: Tensor,
                 norm: Tensor) -> Tensor:
            return rms_norm(after(x, attended, o, post_norm, gate_up, down), norm, arithmetic.eps)

        self._turned, self._between, self._last, self._gemv = (
            torch.compile(function, dynamic=False) for function in (turned, between, last, gemv))

    def first(self, x: Tensor, layer: Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return self._turned(x, layer.input_norm, layer.qkv.weight, layer.qk_norm, cos, sin)

    def between(self, x: Tensor, attended: Tensor, layer: Layer, following: Layer, cos: Tensor,
                sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._between(x, attended, layer.o.weight, layer.post_norm, layer.gate_up.weight, layer.down.weight,
                             following.input_norm, following.qkv.weight, following.qk_norm, cos, sin)

    def last(self, x: Tensor, attended: Tensor, layer: Layer, norm: Tensor) -> Tensor:
        return self._last(x, attended, layer.o.weight, layer.post_norm, layer.gate_up.weight, layer.down.weight, norm)

    def head(self, hidden: Tensor, head: Matrix) -> Tensor:
        return self._gemv(hidden, head.weight)


def gemv(x: Tensor, weight: Tensor) -> Tensor:
    """One row x [1, K] times a matrix [O, K] -> [1, O]: inductor makes one pass over the weight of it, and reads four
    rows at a time, each from another part, which keeps memory busier than one does (5.4 ms in place of 6.7)."""
    return torch.cat([(part * x).sum(-1) for part in weight.chunk(4)])[None]


