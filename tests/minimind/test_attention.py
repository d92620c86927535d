"""Which kernel computes attention and why, how each one is called, and that all of them are softmax(q k^T) v.

Parity with a plain reference is proved on a GPU for every kernel that can run there, on a CPU for the rest.
"""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minimind import attention, session
from minimind.attention import CHOICES, KERNELS, Segments, attend, choose_kernel, missing_for
from minimind.control import write_control
from minimind.device import make_repeatable, missing_for_compile
from minimind.errors import ConfigError
from minimind.run_dir import RunDir
from tests.minimind.training import at_step, run, start, write_texts

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LENGTHS = (1, 1, 2, 7, 64, 129, 300)
#: H, G
HEADS = {"MHA": (4, 4), "GQA": (8, 2), "MQA": (4, 1)}


def reference(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Document by document, head by head, in float64: q [N, H, D], k and v [N, G, D] -> [N, H, D]."""
    group, parts = q.shape[1] // k.shape[1], []
    for document in zip(*(x.double().split(lengths) for x in (q, k, v))):
        heads = []
        for head in range(q.shape[1]):
            one, others, values = document[0][:, head], document[1][:, head // group], document[2][:, head // group]
            scores = (one @ others.T) / one.shape[-1] ** 0.5
            later = torch.ones_like(scores, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ values)
        parts.append(torch.stack(heads, 1))
    return torch.cat(parts)


def inputs(heads: tuple[int, int], head_dim: int, device: torch.device, dtype: torch.dtype,
           lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """q, k, v and the gradient of the result, [1, N, heads, D]."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, sum(lengths), count, head_dim) for count in (heads[0], heads[1], heads[1], heads[0])]
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    return [x.requires_grad_() for x in made[:3]] + made[3:]


def check_parity(kernel: str, heads: tuple[int, int], head_dim: int, device: torch.device, dtype: torch.dtype,
                 tolerance: float) -> None:
    """Result and gradients as those of the reference, to ``tolerance`` of the largest element."""
    *qkv, grad = inputs(heads, head_dim, device, dtype)
    out = attend(*qkv, Segments(LENGTHS, kernel))
    assert out.dtype == dtype and out.shape == qkv[0].shape
    got = [out, *torch.autograd.grad(out, qkv, grad)]
    exact = [x.detach()[0].double().requires_grad_() for x in qkv]
    expected = reference(*exact, LENGTHS)
    for ours, theirs in zip(got, [expected, *torch.autograd.grad(expected, exact, grad[0].double())]):
        assert (ours[0] - theirs).abs().max() < tolerance * theirs.abs().max()


# -- the choice -----------------------------------------------------------------------------------------------------

class Machine:
    """What ``choose_kernel`` asks of a machine with a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.capability, self.built = (9, 0), True
        self.packages: dict[str, types.ModuleType | None] = {}
        distribution = importlib.metadata.distribution

        def installed(name: str) -> Any:
            if name not in attention.PACKAGES.values():
                return distribution(name)
            if name not in self.packages:
                raise importlib.metadata.PackageNotFoundError(name)
            return object()

        monkeypatch.setattr(importlib.metadata, "distribution", installed)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: self.capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: self.built)
        self._monkeypatch = monkeypatch

    def install(self, package: str, function: Callable = print) -> None:
        """A package whose ``flash_attn_varlen_func`` is ``function``. Both are imported as ``flash_attn``."""
        self.packages[package] = None
        module = types.ModuleType("flash_attn.cute" if package == "flash-attn-4" else "flash_attn")
        module.flash_attn_varlen_func = function  # type: ignore[attr-defined]
        if package == "flash-attn-4" and "flash-attn" not in self.packages:
            space = types.ModuleType("flash_attn")  # a namespace, with nothing of flash-attn in it
            space.__path__ = []  # type: ignore[attr-defined]
            self._monkeypatch.setitem(sys.modules, "flash_attn", space)
        self._monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    attention._flash_function.cache_clear()
    yield Machine(monkeypatch)
    attention._flash_function.cache_clear()


def test_a_cpu_has_one_kernel() -> None:
    for name in ("auto", "sdpa"):
        for dtype in (torch.float32, torch.bfloat16):
            assert choose_kernel(name, CPU, dtype, 64) == ("sdpa", "PyTorch's own kernel, once per document length")


@pytest.mark.parametrize("packages", [(), ("flash-attn",), ("flash-attn-4",), ("flash-attn", "flash-attn-4")])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_a_gpu_takes_the_best_kernel_that_it_has(machine: Machine, packages: tuple[str, ...],
                                                 capability: tuple[int, int]) -> None:
    machine.capability = capability
    for package in packages:
        machine.install(package)
    fourth = "flash-attn-4" in packages and capability[0] in (9, 10)
    second = "flash-attn" in packages and capability[0] >= 8
    with_package = "flash_attn_4" if fourth else "flash_attn" if second else None
    without = "varlen" if capability[0] >= 8 else "sdpa"
    for dtype in (torch.bfloat16, torch.float16):
        assert choose_kernel("auto", CUDA, dtype, 96)[0] == (with_package or without)
        assert choose_kernel("sdpa", CUDA, dtype, 96)[0] == without
        if with_package:
            assert choose_kernel("flash_attn", CUDA, dtype, 96) == (with_package, KERNELS[with_package])
        else:
            with pytest.raises(ConfigError, match="attention flash_attn cannot be used here: .*" + (
                    "compute capability" if packages else "is not installed|compute capability")):
                choose_kernel("flash_attn", CUDA, dtype, 96)
    assert choose_kernel("auto", CUDA, torch.float32, 96)[0] == "sdpa"
    assert choose_kernel("flex", CUDA, torch.float32, 96)[0] == "flex"


@pytest.mark.parametrize("change, dtype, head_dim, words", [
    ({}, torch.float32, 64, "it needs float16 or bfloat16"),
    ({}, torch.bfloat16, 20, "it needs a head_dim that is a multiple of 8 up to 256, not 20"),
    ({}, torch.bfloat16, 264, "it needs a head_dim that is a multiple of 8 up to 256, not 264"),
    ({"capability": (7, 5)}, torch.float16, 64, "it needs compute capability 8.0 or higher, this GPU has 7.5"),
    ({"built": False}, torch.bfloat16, 64, "this PyTorch is built without it"),
])
def test_padding_says_why_it_is_needed(machine: Machine, change: dict, dtype: torch.dtype, head_dim: int,
                                       words: str) -> None:
    vars(machine).update(change)
    for name in ("auto", "sdpa"):
        assert choose_kernel(name, CUDA, dtype, head_dim) == (
            "sdpa", f"PyTorch's own kernel on right-padded documents; its variable-length one: {words}")


def test_the_reason_of_the_fast_kernel_can_be_read(machine: Machine) -> None:
    assert choose_kernel("auto", CUDA, torch.bfloat16, 96) == (
        "varlen", "PyTorch's variable-length flash kernel: documents share one launch")
    assert choose_kernel("auto", CUDA, torch.bfloat16)[0] == "varlen"  # the model is not known yet


def test_a_package_that_does_not_load_is_passed_over(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.packages["flash-attn"] = None
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # "import flash_attn" raises ImportError
    assert choose_kernel("auto", CUDA, torch.bfloat16, 64)[0] == "varlen"
    with pytest.raises(ConfigError, match="flash-attn is installed and cannot be loaded"):
        choose_kernel("flash_attn", CUDA, torch.bfloat16, 64)


def test_a_resumed_run_keeps_its_kernel_while_it_can(machine: Machine) -> None:
    machine.install("flash-attn")
    for before in ("sdpa", "varlen"):
        kernel, reason = choose_kernel("auto", CUDA, torch.bfloat16, 64, before=before)
        assert kernel == before and reason.startswith("as before: ")
    for before in ("flash_attn", "flash_attn_4", "flex", None):
        assert choose_kernel("auto", CUDA, torch.bfloat16, 64, before=before) == ("flash_attn", KERNELS["flash_attn"])


def test_a_run_asks_for_its_models_heads_and_for_its_earlier_kernel(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def watched(*given: Any, before: str | None = None) -> tuple[str, str]:
        asked.append((*given[3:], before))
        return choose_kernel(*given, before=before)

    monkeypatch.setattr(session, "choose_kernel", watched)
    write_texts(tmp_path / "data.jsonl")
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: write_control(RunDir(tmp_path / "run").attempt(1).control, "pause"))
        assert start(tmp_path, "--max_steps", 4, "--head_dim", 24) == 0
    assert run("pretrain", "--out", tmp_path / "run", "--resume", "auto") == 0
    assert asked == [(None,), (24, None), (None,), (24, "sdpa")]


def test_every_choice_is_a_kernel() -> None:
    assert {kernel for kernels in CHOICES.values() for kernel in kernels} == set(KERNELS)


# -- how the kernels are called -------------------------------------------------------------------------------------

def varlen_2_10(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
                is_causal: bool = False, return_aux: object = None) -> tuple[bool, bool]:
    return is_causal, True


def varlen_2_11(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
                *, return_aux: object = None, scale: float | None = None,
                window_size: tuple[int, int] = (-1, -1)) -> tuple[bool, bool]:
    return window_size == (-1, 0), True


def varlen_2_12(query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int,
                max_k: int, *, return_aux: object = None, scale: float | None = None,
                window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, seqused_k: Tensor | None = None,
                block_table: Tensor | None = None, num_splits: int | None = None) -> tuple[bool, bool]:
    return window_size == (-1, 0), enable_gqa or query.shape[1] == key.shape[1]


@pytest.mark.parametrize("version", [varlen_2_10, varlen_2_11, varlen_2_12])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_pytorch_is_told_causal_and_grouped_in_its_words(version: Callable, grouped: bool) -> None:
    q, k = torch.zeros(3, 4, 8), torch.zeros(3, 2 if grouped else 4, 8)
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    assert version(q, k, k, bounds, bounds, 3, 3, **attention._varlen_options(version, grouped)) == (True, True)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_this_pytorch_takes_our_call(heads: tuple[int, int]) -> None:
    """With tensors that have a shape and no numbers, which need no GPU."""
    *qkv, grad = inputs(heads, 16, torch.device("meta"), torch.bfloat16)
    out = attend(*qkv, Segments(LENGTHS, "varlen"))
    assert out.shape == qkv[0].shape and out.dtype == torch.bfloat16
    for x, dx in zip(qkv, torch.autograd.grad(out, qkv, grad)):
        assert dx.shape == x.shape and dx.dtype == x.dtype


def by_bounds(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
              max_seqlen_k: int, causal: bool, deterministic: bool) -> Tensor:
    """As flash-attn's function, from the reference."""
    assert causal and deterministic and cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
    lengths = cu_seqlens_q.diff().tolist()
    assert max_seqlen_q == max_seqlen_k == max(lengths)
    return reference(q, k, v, tuple(lengths)).to(q.dtype)


@pytest.mark.parametrize("package", ["flash-attn", "flash-attn-4"])
def test_flash_attns_kernels_are_told_where_documents_begin(machine: Machine, package: str) -> None:
    fourth = package == "flash-attn-4"

    def with_sums(q: Tensor, k: Tensor, v: Tensor, qv: None = None, **rest: Any) -> tuple[Tensor, None]:
        return by_bounds(q, k, v, **rest), None

    machine.install(package, with_sums if fourth else by_bounds)
    check_parity("flash_attn_4" if fourth else "flash_attn", HEADS["GQA"], 16, CPU, torch.float32, 1e-5)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_documents_by_length_equal_the_reference(heads: tuple[int, int]) -> None:
    check_parity("sdpa", heads, 16, CPU, torch.float32, 1e-5)


def test_flex_sees_its_own_document_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention

    made: list[object] = []
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention.flex_attention)
    monkeypatch.setattr(flex_attention, "create_block_mask", lambda *given, make=flex_attention.create_block_mask,
                        **named: made.append(1) or make(*given, **named))
    lengths = (1, 2, 7, 30)
    q, k, v, _ = (x.detach() for x in inputs(HEADS["GQA"], 16, CPU, torch.float32, lengths))
    segments = Segments(lengths, "flex")
    with pytest.warns(UserWarning, match="flex_attention called without torch.compile"):
        outs = [attend(q, k, v, segments) for _ in range(2)]
    expected = reference(q[0], k[0], v[0], lengths).float()
    for out in outs:
        torch.testing.assert_close(out[0], expected)
    assert len(made) == 1  # for all layers


# -- the same bits each time ----------------------------------------------------------------------------------------

@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that trains on a GPU."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    precision = torch.get_float32_matmul_precision()
    make_repeatable(CUDA)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)


def test_new_tensors_are_not_filled_for_nothing(repeatable: None) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is False


def test_determinism_is_demanded_of_the_kernel_and_of_nothing_else(repeatable: None) -> None:
    seen: list[str] = []

    def look(where: str) -> None:
        assert torch.are_deterministic_algorithms_enabled()
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            seen.append(where)

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, where: str) -> Tensor:
            ctx.where = where
            look(f"{where} forward")
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            look(f"{ctx.where} backward")
            return grad * 2, None

    x = torch.ones(3, requires_grad=True)
    before = Watched.apply(x, "before")
    kernel = attention._in_fixed_order(lambda: Watched.apply(before, "kernel"))
    Watched.apply(kernel, "after").sum().backward()
    assert seen == ["kernel forward", "kernel backward"]
    assert x.grad is not None and x.grad.tolist() == [8, 8, 8]
    with pytest.raises(ZeroDivisionError):
        attention._in_fixed_order(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_without_the_wish_nothing_is_demanded() -> None:
    out = attention._in_fixed_order(lambda: torch.ones(1, requires_grad=True) * 2)
    out.sum().backward()
    assert not torch.are_deterministic_algorithms_enabled()


# -- on a GPU -------------------------------------------------------------------------------------------------------

WITHOUT_COMPILER = [kernel for kernel in KERNELS if kernel != "flex"]


def runnable(kernel: str, dtype: torch.dtype, head_dim: int) -> None:
    if (problem := missing_for(kernel, CUDA, dtype, head_dim)) is not None:
        pytest.skip(f"{kernel}: {problem}")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages
@pytest.mark.parametrize("head_dim", [64, 96])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-3), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)],
                         ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kernel", WITHOUT_COMPILER)
def test_gpu_parity(kernel: str, dtype: torch.dtype, tolerance: float, heads: tuple[int, int], head_dim: int) -> None:
    runnable(kernel, dtype, head_dim)
    check_parity(kernel, heads, head_dim, CUDA, dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's advice
def test_gpu_flex_parity() -> None:
    if (problem := missing_for_compile(CUDA)) is not None:
        pytest.skip(f"flex: {problem} was not found")
    check_parity("flex", HEADS["GQA"], 64, CUDA, torch.bfloat16, 3e-2)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kernel", WITHOUT_COMPILER)
def test_gpu_gradients_have_the_same_bits_each_time(kernel: str, repeatable: None) -> None:
    """PyTorch's warning that a kernel sums in any order is an error here."""
    runnable(kernel, torch.bfloat16, 64)
    lengths = (40, 333, 512, 700, 1024, 1024)
    *qkv, grad = inputs(HEADS["GQA"], 64, CUDA, torch.bfloat16, lengths)
    segments = Segments(lengths, kernel)
    first, *others = [torch.autograd.grad(attend(*qkv, segments), qkv, grad) for _ in range(5)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Synchronization debug mode")
@pytest.mark.parametrize("kernel", WITHOUT_COMPILER)
def test_gpu_attention_waits_for_nothing(kernel: str, repeatable: None) -> None:
    runnable(kernel, torch.bfloat16, 64)
    *qkv, grad = inputs(HEADS["GQA"], 64, CUDA, torch.bfloat16)
    torch.autograd.grad(attend(*qkv, Segments(LENGTHS, kernel)), qkv, grad)  # fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(attend(*qkv, Segments(LENGTHS, kernel)), qkv, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
