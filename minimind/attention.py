"""Causal attention behind one door: ``attend`` for training and prompts, ``attend_cached`` for decoding.

Training rows hold several documents which must not see each other. A block-diagonal mask says that, and on a
CPU costs three times what the attention itself does; instead the documents of a micro-batch are laid out by
length in one flat stream (``pack_order``), and documents of equal length share one batched call without a mask.
GPUs prefer one launch: a kernel that is told where each document begins, in half precision; else the documents are
padded on the right, which a causal mask never sees.

Shapes: B rows, T positions, H query heads, G key/value heads, D channels of a head, N = B * T.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.device import to_device
from minimind.errors import ConfigError

#: what can compute attention -> why it would be chosen
KERNELS = {
    "sdpa": "PyTorch's own kernel",
    "varlen": "PyTorch's variable-length flash kernel: documents share one launch",
    "flash_attn": "flash-attn is installed: documents share one launch",
    "flash_attn_4": "flash-attn-4 is installed: documents share one launch",
    "flex": "PyTorch's FlexAttention, compiled for a stream of documents",
}
#: ``--attention`` -> kernels, the best first
CHOICES = {"auto": ("flash_attn_4", "flash_attn", "varlen", "sdpa"), "sdpa": ("varlen", "sdpa"),
           "flash_attn": ("flash_attn_4", "flash_attn"), "flex": ("flex",)}
PACKAGES = {"flash_attn": "flash-attn", "flash_attn_4": "flash-attn-4"}
#: largest head_dim of flash kernels. flash-attn-4 knows more on some GPUs.
MAX_HEAD_DIM = {"varlen": 256, "flash_attn": 256, "flash_attn_4": 128}


def choose_kernel(name: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None,
                  before: str | None = None) -> tuple[str, str]:
    """``(kernel, reason)`` for ``--attention name``. Raises ``ConfigError`` where it cannot run here.

    ``head_dim``: the model's, ``None`` while it is not known yet. ``before``: the kernel of earlier attempts, which is
    kept where it can be: kernels round differently, and a package that was installed meanwhile is no reason to end up
    elsewhere.
    """
    missing = {kernel: missing_for(kernel, device, dtype, head_dim) for kernel in CHOICES[name]}
    able = [kernel for kernel, problem in missing.items() if problem is None]
    if not able:
        problems = " and ".join(dict.fromkeys(filter(None, missing.values())))
        raise ConfigError([{"field": "attention", "message": f"attention {name} cannot be used here: {problems}.",
                            "hint": "Use --attention auto."}])
    if before in able[1:]:
        return before, f"as before: {KERNELS[before]}"
    if able[0] != "sdpa":
        return able[0], KERNELS[able[0]]
    if device.type == "cpu":
        return "sdpa", "PyTorch's own kernel, once per document length"
    return "sdpa", f"PyTorch's own kernel on right-padded documents; its variable-length one: {missing['varlen']}"


def missing_for(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Why ``kernel`` cannot compute this here, in words; ``None`` where it can."""
    if kernel == "sdpa":
        return None
    if device.type != "cuda":
        return "it needs a CUDA device"
    if kernel == "flex":
        return None
    if dtype not in (torch.float16, torch.bfloat16):
        return "it needs float16 or bfloat16"
    if head_dim is not None and (head_dim % 8 or head_dim > MAX_HEAD_DIM[kernel]):
        return f"it needs a head_dim that is a multiple of 8 up to {MAX_HEAD_DIM[kernel]}, not {head_dim}"
    major, minor = torch.cuda.get_device_capability(device)
    # flash-attn-4 has no backward pass for 8.x, and for 12.x none that sums in a fixed order.
    if major < 8 or (kernel == "flash_attn_4" and major not in (9, 10, 11)):
        return (f"it needs compute capability {'9.x to 11.x' if kernel == 'flash_attn_4' else '8.0 or higher'}, "
                f"this GPU has {major}.{minor}")
    if kernel == "varlen":
        if torch.version.hip is not None:  # there it is another kernel
            return "it was not tried on AMD GPUs"
        return None if torch.backends.cuda.is_flash_attention_available() else "this PyTorch is built without it"
    try:
        importlib.metadata.distribution(PACKAGES[kernel])  # both packages are imported as flash_attn
    except importlib.metadata.PackageNotFoundError:
        return f"the package {PACKAGES[kernel]} is not installed"
    try:
        _flash_function(kernel)
    except (ImportError, OSError) as error:
        return f"the package {PACKAGES[kernel]} is installed and cannot be loaded ({error})"
    return None


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
    if segments.kernel == "varlen":
        out = _varlen(q, k, v, segments)
    elif segments.kernel in PACKAGES:
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
    padded = [x[gather].unflatten(0, rows) for x in (q, k, v)]
    return _in_fixed_order(lambda: _causal(*padded)).flatten(0, 1)[back]


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """PyTorch's flash kernel for streams of documents; no package is needed for it."""
    from torch.nn.attention.varlen import varlen_attn

    bounds, options = segments.bounds(q.device), _varlen_options(varlen_attn, k.shape[1] != q.shape[1])
    return _in_fixed_order(lambda: varlen_attn(q, k, v, bounds, bounds, segments.longest, segments.longest, **options))


@functools.cache
def _varlen_options(varlen_attn: Callable, grouped: bool) -> dict[str, Any]:
    """"Causal" and "fewer key heads than query heads", as this version of PyTorch wants to be told."""
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}  # 2.10
    if grouped and "enable_gqa" in known:  # 2.10 and 2.11 see it themselves
        options["enable_gqa"] = True
    return options


def _flash(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """flash-attn's kernels for streams of documents (Dao, arXiv:2307.08691)."""
    bounds = segments.bounds(q.device)
    out = _flash_function(segments.kernel)(
        q, k, v, cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=segments.longest,
        max_seqlen_k=segments.longest, causal=True, deterministic=True)
    return out[0] if isinstance(out, tuple) else out  # flash-attn-4: with the logarithms of the softmax's sums


@functools.cache
def _flash_function(kernel: str) -> Callable:
    """Raises ``ImportError`` where the package is not there or fits another version of PyTorch."""
    if kernel == "flash_attn_4":
        from flash_attn.cute import flash_attn_varlen_func
    else:
        from flash_attn import flash_attn_varlen_func
    return flash_attn_varlen_func


def _in_fixed_order(compute: Callable[[], Tensor]) -> Tensor:
    """``compute()``, a kernel of PyTorch's, whose backward pass adds up in the same order every time.

    Its flash and memory-efficient kernels do so only where determinism is demanded; where it is wished for, as in all
    the rest of a training (``minimind.device.make_repeatable``), they warn and do not. cuDNN's never does, and is left
    out in a forward pass with the demand.
    """
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        return compute()
    _demand(True)
    try:
        out = compute()
    finally:
        _demand(False)
    if out.grad_fn is not None:
        out.grad_fn.register_prehook(lambda *_: _demand(True))
        out.grad_fn.register_hook(lambda *_: _demand(False))
    return out


def _demand(determinism: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=not determinism)


def _flex(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """PyTorch's compiled FlexAttention with the block mask "same document, not later"."""
    from torch.nn.attention.flex_attention import create_block_mask

    document = segments.documents(q.device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document[query] == document[key]) & (query >= key)

    if "block_mask" not in segments._memo:  # one for all layers
        segments._memo["block_mask"] = create_block_mask(visible, None, None, segments.tokens, segments.tokens,
                                                         device=q.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = _compiled_flex()(q, k, v, block_mask=segments._memo["block_mask"], enable_gqa=k.shape[1] != q.shape[1])
    return out[0].transpose(0, 1)


@functools.cache
def _compiled_flex() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
