"""A weight matrix as an engine multiplies with it: y = x W^T for x [N, K], W [O, K].

``Full``: the numbers themselves. ``Int8``: a byte each and a scale per row. ``Adapted``: another one and low-rank
changes beside it (``minimind.lora``).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.lora import LoRALinear

#: from 2 rows to this many, oneDNN's packed float32 weights are faster than the BLAS
PACKED_ROWS = 64
#: weights from which on it matters how one row is multiplied: a megabyte
MEASURED_WEIGHTS = 2**18
#: columns must take less than that of what rows take: a compiled step, which reads rows, is lost with them
COLUMNS_GAIN = 0.8
#: rows from which int8 weights are turned into floats first, where there is no FBGEMM
DEQUANTIZE_ROWS = 16


class Matrix(Protocol):
    #: whether ``weight`` is all of it, and may be multiplied with by whoever knows better
    can_compile: bool
    nbytes: int

    def is_tensor(self, other: Tensor) -> bool:
        """Whether its memory is that of ``other``."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, K] -> [N, O] in the type of x."""


def matrix_of(sources: Sequence[nn.Module | Tensor], weights: str, *, owns: bool = False,
              plain: Matrix | None = None) -> Matrix:
    """One matrix of linear layers (or weights) that take the same input, their outputs one behind the other.

    ``owns``: the layers' weights become views of it. ``plain``: it is there already, and the layers only bring their
    adapters.
    """
    layers = [s for s in sources if isinstance(s, nn.Module)]
    if plain is None:
        found = [s if isinstance(s, Tensor) else s.weight for s in sources]
        plain = Int8(found) if weights == "int8" else Full(found, layers if owns else ())
        if weights == "int8" and owns:
            for layer in layers:  # of the right shape, and no memory: what is laid over the model asks for shapes
                layer.weight = nn.Parameter(layer.weight.new_zeros(1).expand(layer.weight.shape), requires_grad=False)
    if any(isinstance(layer, LoRALinear) for layer in layers):
        return Adapted(plain, layers)
    return plain


class Full:
    """Weights in their own precision. ``layers``: whose weights become views of the fused one."""

    can_compile = True

    def __init__(self, weights: Sequence[Tensor], layers: Sequence[nn.Module] = ()):
        weights = [w.detach() for w in weights]
        self._way: Way = "rows"
        if can_pack(weights[0]):
            self._way = best_way(sum(w.numel() for w in weights), may_move=len(layers) > 0)
        if layers:
            fused = torch.cat(weights)
            if self._way == "columns":
                fused = fused.T.contiguous().T
            for layer, view in zip(layers, fused.split([len(w) for w in weights])):
                layer.weight = nn.Parameter(view, requires_grad=False)
            weights = [fused]
        self._weights = weights
        self.can_compile = len(weights) == 1
        self.weight = weights[0]
        self.nbytes = sum(w.numel() * w.element_size() for w in weights)
        self._packed: Tensor | None = None
        self._packs = len(weights) == 1 and can_pack(weights[0])

    def is_tensor(self, other: Tensor) -> bool:
        return self.weight.data_ptr() == other.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        if len(self._weights) > 1:
            return torch.cat([F.linear(x, w) for w in self._weights], dim=-1)
        weight = self._weights[0]
        if self._packs and 1 < len(x) <= PACKED_ROWS:
            if self._packed is None:
                self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS // 2)
            return torch.ops.mkldnn._linear_pointwise.default(x, self._packed, None, "none", [], "")
        if self._way == "pairs" and len(x) == 1:
            return (weight @ torch.cat((x, x)).T)[:, :1].T
        return F.linear(x, weight)


#: How the BLAS multiplies one row fastest: with the weights' rows as they are; the same for two equal rows; or with
#: the weights stored column by column
Way = Literal["rows", "pairs", "columns"]


def best_way(num_weights: int, may_move: bool) -> Way:
    """The fastest on this machine; ``may_move``: whether the weights may be stored anew. Small matrices stay in the
    caches, and are not worth the fifth of a second that measuring takes."""
    if num_weights < MEASURED_WEIGHTS:
        return "rows"
    seconds = _seconds_of_ways()
    way: Way = min(("rows", "pairs"), key=lambda way: seconds[way])
    return "columns" if may_move and seconds["columns"] < COLUMNS_GAIN * seconds[way] else way


@cache
def _seconds_of_ways() -> dict[Way, float]:
    """Measured once, in turn, with more weights than caches hold: on AVX-512 pairs take six tenths of rows, on a small
    AVX2 core columns take three quarters."""
    weights = [torch.full((2048, 512), 0.01) for _ in range(12)]  # 50 MB
    columns = [w.T.contiguous().T for w in weights]
    x = torch.ones(1, 512)

    ways: dict[Way, tuple[Sequence[Tensor], Callable[[Tensor], Tensor]]] = {
        "rows": (weights, lambda w: F.linear(x, w)),
        "pairs": (weights, lambda w: w @ torch.cat((x, x)).T),
        "columns": (columns, lambda w: F.linear(x, w))}
    seconds = dict.fromkeys(ways, float("inf"))
    with torch.inference_mode():
        for _ in range(8):
            for way, (stored, multiply) in ways.items():
                start = time.perf_counter()
                for weight in stored:
                    multiply(weight)
                seconds[way] = min(seconds[way], time.perf_counter() - start)
    return seconds


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN's packed products take this weight."""
    return (weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"))


class Int8:
    """Symmetric int8 weights with a scale per row (output channel).

    On x86 FBGEMM makes the activations bytes too, in one call: the matrices of a 26M model take 1.3 ms for one row and
    2.1 for eight, where ``torch._int_mm`` takes 2.8 and 5.5. It has one scale for all rows, so each row is brought to
    the same size before; how a row is rounded still depends a little on its neighbours. Elsewhere the activations
    stay floats.
    """

    can_compile = False

    def __init__(self, weights: Sequence[Tensor]):
        weight = torch.cat([w.detach().float() for w in weights])
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        self._packed = _fbgemm_packed(weight, scale) if weight.device.type == "cpu" and has_fbgemm() else None
        self._plain = None if self._packed is not None else ((weight / scale[:, None]).round().to(torch.int8), scale)
        self.nbytes = weight.numel() + 4 * len(scale)

    def is_tensor(self, other: Tensor) -> bool:
        return False

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            if len(x) == 1:
                return torch.ops.quantized.linear_dynamic.default(x, self._packed, not has_vnni())
            size = torch.linalg.vector_norm(x, float("inf"), dim=1, keepdim=True).clamp_min_(1e-12)
            return torch.ops.quantized.linear_dynamic.default(x / size, self._packed, not has_vnni()).mul_(size)
        weight, scale = self._plain
        if x.device.type == "cpu" and len(x) < DEQUANTIZE_ROWS:
            return torch._weight_int8pack_mm(x.bfloat16(), weight, scale.bfloat16()).to(x.dtype)
        return F.linear(x, (weight * scale[:, None]).to(x.dtype))


@cache
def has_fbgemm() -> bool:
    return ("x86" in torch.backends.quantized.supported_engines and torch.backends.quantized.engine in ("x86", "fbgemm")
            and hasattr(torch.ops.quantized, "linear_dynamic"))


@cache
def has_vnni() -> bool:
    """Whether the CPU adds products of bytes in 32 bits. Without, pairs are added in 16, and activations must leave a
    bit free."""
    return torch.cpu._is_vnni_supported()


def _fbgemm_packed(weight: Tensor, scale: Tensor) -> Any:
    with warnings.catch_warnings():  # the only way to FBGEMM's format; newer ones are for another library
        warnings.filterwarnings("ignore", message=".*quantize_per_channel.*deprecated", category=UserWarning)
        quantized = torch.quantize_per_channel(weight, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0,
                                               torch.qint8)
        return torch.ops.quantized.linear_prepack(quantized, None)


class Adapted:
    """``plain`` with adapters beside it: y + alpha / r * B (A x) for each of the layers that have one."""

    can_compile = False

    def __init__(self, plain: Matrix, layers: Sequence[nn.Module]):
        self.plain, self.nbytes = plain, plain.nbytes
        self._sizes = [layer.out_features for layer in layers]
        self._changes = [(number, layer.lora_A.detach(), layer.lora_B.detach(), layer.scale)
                         for number, layer in enumerate(layers) if isinstance(layer, LoRALinear)]

    def is_tensor(self, other: Tensor) -> bool:
        return self.plain.is_tensor(other)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.plain(x)
        outputs = y.split(self._sizes, dim=-1)
        for number, a, b, scale in self._changes:
            outputs[number].addmm_(F.linear(x, a), b.T, alpha=scale)
        return y
