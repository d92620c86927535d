"""Causal attention behind one door: ``attend`` for training and prompts, ``attend_cached`` for decoding.

Training rows hold several documents which must not see each other. A block-diagonal mask says that, and on a
CPU costs three times what the attention itself does; instead the documents of a micro-batch are laid out by
length in one flat stream (``pack_order``), and documents of equal length share one batched call without a mask.
GPUs prefer one launch: there the documents are padded on the right, which a causal mask never sees.

Shapes: B rows, T positions, H query heads, G key/value heads, D channels of a head, N = B * T.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.device import to_device
from minimind.errors import ConfigError

KERNELS = ("sdpa", "flash_attn", "flex")


def choose_kernel(name: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """``(kernel, reason)`` for ``--attention name``. Raises ``ConfigError`` where it cannot run here."""
    half = dtype in (torch.float16, torch.bfloat16)
    has_flash = importlib.util.find_spec("flash_attn") is not None
    if name == "auto":
        if device.type == "cuda" and half and has_flash:
            return "flash_attn", "flash-attn is installed and the arithmetic is half precision"
        return "sdpa", "PyTorch's own kernel, once per document length" if device.type == "cpu" else \
            "PyTorch's own kernel on right-padded documents"
    if name == "flash_attn" and not (device.type == "cuda" and half and has_flash):
        missing = ("it needs a CUDA device" if device.type != "cuda" else
                   "it needs float16 or bfloat16" if not half else "the package flash-attn is not installed")
        raise ConfigError([{"field": "attention", "message": f"attention flash_attn cannot be used here: {missing}.",
                            "hint": "Use --attention auto."}])
    if name == "flex" and device.type != "cuda":
        raise ConfigError([{"field": "attention", "message": "attention flex cannot be used here: it needs a CUDA "
                                                             "device.", "hint": "Use --attention auto."}])
    return name, "asked for"


@dataclass(frozen=True)
class Segments:
    """Documents of a flat stream of tokens, one behind the other. ``lengths`` in tokens, in stream order."""

    lengths: tuple[int, ...]
    kernel: str = "sdpa"
    _memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Neighbours of equal length: ``(count, length)`` in stream order."""
        found: list[list[int]] = []
        for length in self.lengths:
            if found and found[-1][1] == length:
                found[-1][0] += 1
            else:
                found.append([1, length])
        return tuple((count, length) for count, length in found)

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each group."""
        return [count * length for count, length in self.groups]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def positions(self, device: torch.device | str = "cpu") -> Tensor:
        """Position of each token in its own document, [N]."""
        made = torch.cat([torch.arange(length).repeat(count) for count, length in self.groups])
        return to_device(made, torch.device(device))

    def bounds(self, device: torch.device) -> Tensor:
        """Start of each document and the end of the last, [documents + 1] int32."""
        return self._once("bounds", device, lambda: torch.cumsum(torch.tensor((0, *self.lengths)), 0).int())

    def documents(self, device: torch.device) -> Tensor:
        """Number of the document of each token, [N]."""
        return self._once("documents", device, lambda: torch.repeat_interleave(torch.tensor(self.lengths)))

    def padding(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(gather, back)``: stream -> documents padded to the longest, [documents * longest], and back, [N].

        Padding reads token 0; it stands right of every real token, where a causal mask hides it.
        """
        def make() -> Tensor:
            return (self.documents(torch.device("cpu")) * self.longest + self.positions())

        back = self._once("back", device, make)

        def spread() -> Tensor:
            gather = torch.zeros(len(self.lengths) * self.longest, dtype=torch.long)
            gather[make()] = torch.arange(self.tokens)
            return gather

        return self._once("gather", device, spread), back

    def _once(self, name: str, device: torch.device, make: Any) -> Tensor:
        key = f"{name}@{device}"
        if key not in self._memo:
            self._memo[key] = to_device(make(), device)
        return self._memo[key]


def pack_order(lengths: Sequence[int]) -> list[int]:
    """Order of documents, shortest first, in which those of one length are neighbours (stable)."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None) -> Tensor:
    """Causal softmax attention: q [B, T, H, D], k and v [B, T, G, D] -> [B, T, H, D].

    With ``segments`` the B * T tokens are one stream of documents; without, each row is one sequence.
    """
    if segments is None:
        return _causal(q, k, v)
    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    if segments.kernel == "flash_attn":
        out = _flash(q, k, v, segments)
    elif segments.kernel == "flex":
        out = _flex(q, k, v, segments)
    elif q.device.type == "cpu":
        out = _by_length(q, k, v, segments)
    else:
        out = _padded(q, k, v, segments)
    return out.reshape(shape)


def attend_cached(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """New positions ``start``..``start + T - 1`` against all before: q [B, T, H, D], k, v [B, G, start + T, D]."""
    q = q.transpose(1, 2)
    new, seen = q.shape[2], k.shape[2]
    mask = None
    if new > 1 and start > 0:
        mask = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(start)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=new > 1 and start == 0,
                                         enable_gqa=k.shape[1] != q.shape[1])
    return out.transpose(1, 2)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, T, H, D] and [B, T, G, D] -> [B, T, H, D]; the transposes are views."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True,
                                         enable_gqa=k.shape[2] != q.shape[2])
    return out.transpose(1, 2)


def _by_length(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """One call for each run of equal lengths; q [N, H, D]."""
    parts = []
    for (count, length), *qkv in zip(segments.groups, *(x.split(segments.sizes) for x in (q, k, v))):
        out = _causal(*(x.unflatten(0, (count, length)) for x in qkv))
        parts.append(out.flatten(0, 1))
    return torch.cat(parts)


def _padded(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """One call for all documents, padded on the right to the longest; q [N, H, D]."""
    gather, back = segments.padding(q.device)
    rows = (len(segments.lengths), segments.longest)
    out = _causal(*(x[gather].unflatten(0, rows) for x in (q, k, v)))
    return out.flatten(0, 1)[back]


def _flash(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """flash-attn's kernel for streams of documents (Dao, arXiv:2307.08691)."""
    from flash_attn import flash_attn_varlen_func  # optional package

    bounds = segments.bounds(q.device)
    return flash_attn_varlen_func(q, k, v, bounds, bounds, segments.longest, segments.longest, causal=True,
                                  deterministic=True)


def _flex(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """PyTorch's compiled FlexAttention with the block mask "same document, not later"."""
    from torch.nn.attention.flex_attention import create_block_mask

    document = segments.documents(q.device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document[query] == document[key]) & (query >= key)

    mask = segments._memo.setdefault("block_mask", create_block_mask(
        visible, None, None, segments.tokens, segments.tokens, device=q.device))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=k.shape[1] != q.shape[1])
    return out[0].transpose(0, 1)


_FLEX: list[Any] = []


def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if not _FLEX:
        _FLEX.append(torch.compile(flex_attention))
    return _FLEX[0]
