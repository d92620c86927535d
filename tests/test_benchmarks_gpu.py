"""benchmarks/gpu.py runs from start to end, on a CPU too, so that it is not broken on the day when there is a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu
from tests.minimind.training import write_texts

ROOT = Path(__file__).resolve().parent.parent


def bench(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-P", "-m", "worker.cli", "bench", "gpu", *map(str, arguments)], cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, text=True,
                          capture_output=True)


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = bench()
    assert done.returncode == 2
    assert "PyTorch sees no CUDA device on this machine. Use --device cpu or auto" in done.stderr


@pytest.mark.slow  # ten seconds of both cores
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data.jsonl", count=200)
    done = bench("--device", "cpu", "--preset", "tiny-cpu", "--steps", 1, "--compile", "off", "--rows", 1, 2, "--data",
                 data)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^  sdpa +no +(\d+) +([\d,]+) +([\d.]+)% +- +([\d.]+) GiB +([\d.]+)$", done.stdout, re.M)
    assert [row[0] for row in found] == ["1", "2"]
    for _, speed, mfu, memory, loss in found:
        assert int(speed.replace(",", "")) > 0 and float(mfu) > 0 and float(memory) > 0
        assert 4 < float(loss) < 8  # a few steps from ln(vocabulary)
    whole = float(re.search(r"a step of ([\d.]+) ms", done.stdout)[1])  # type: ignore[index]
    parts, kernels = done.stdout.split("by what it is for\n")[1].split("largest operations:")
    groups = {name: float(ms) for ms, name in re.findall(r"^ +([\d.]+) ms +[\d.]+%  (.+)$", parts, re.M)}
    assert set(groups) == {*gpu.GROUPS, gpu.LOSS, "between operations"}
    assert sum(groups.values()) == pytest.approx(whole, abs=0.02) and min(groups.values()) > 0
    assert "aten::mm" in kernels and "varlen is left out: it needs a CUDA device." in done.stdout


@pytest.mark.parametrize("name, group", [
    ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
    ("fmha_cutlassF_f32_aligned_64x64_rf_sm80", "attention"),
    ("triton_tem_fused_flex_attention_0", "attention"),
    ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT", "matrix products"),
    ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<...GemmUniversal<...", "matrix products"),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "matrix products"),
    ("triton_red_fused__to_copy_mean_mul_pow_rsqrt_0", gpu.REST),
    ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<...FusedAdamMathFunctor<...", gpu.OPTIMIZER),
    ("Memcpy HtoD (Pinned -> Device)", "copies and casts"),
    ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(...)", "copies and casts"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::exp_kernel_cuda(...)", gpu.REST),
])
def test_kernels_are_told_apart_by_their_names(name: str, group: str) -> None:
    assert gpu.group_of(name) == group


def event(name: str, start: float = 0, end: float = 0, *, parent: Any = None, kernels: tuple = (), on_gpu: bool = False,
          annotation: bool = False) -> SimpleNamespace:
    """As the profiler tells of it; microseconds."""
    return SimpleNamespace(
        name=name, cpu_parent=parent, is_user_annotation=annotation,
        kernels=[SimpleNamespace(name=k, duration=d) for k, d in kernels],
        device_type=DeviceType.CUDA if on_gpu else DeviceType.CPU,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start))


def test_a_gpus_time_is_shared_out_once() -> None:
    loss = event(gpu.LOSS, annotation=True, kernels=((gpu.LOSS, 50e6),))
    within = event("aten::mm", parent=event("_LinearCrossEntropy", parent=loss), kernels=(("gemm", 20e6),))
    step = event("Optimizer.step#AdamW.step", annotation=True)
    events = [
        loss, within, event("aten::mm", kernels=(("gemm", 30e6),)),
        event("aten::_fused_adamw_", parent=step, kernels=(("apply", 5e6),)), step,
        event("gemm", 0, 30e6, on_gpu=True), event("gemm", 30e6, 50e6, on_gpu=True),
        event(gpu.LOSS, 30e6, 80e6, on_gpu=True, annotation=True), event("Memcpy HtoD", 45e6, 55e6, on_gpu=True),
        event("apply", 80e6, 85e6, on_gpu=True)]
    spent: dict[str, float] = {}
    for group, _, seconds in gpu.on_the_gpu(events):
        spent[group] = spent.get(group, 0) + seconds
    assert {k: v for k, v in spent.items() if v} == {
        "matrix products": 30, gpu.LOSS: 20, gpu.OPTIMIZER: 5, "copies and casts": 10}
    assert gpu.busy_s([e for e in events if e.device_type == DeviceType.CUDA]) == 60
