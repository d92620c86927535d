"""Which device and which arithmetic, with a sentence where the machine does not have what was asked for."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from minimind.errors import ConfigError


def choose_device(name: str, local_rank: int) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> a device. Raises ``ConfigError`` where there is none such."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if name != "auto" and (kind != "cuda" or (index and not index.isdigit())):
        raise _problem(f"There is no device named {name!r}.", "Devices are auto, cpu, cuda and cuda:N.")
    if not torch.cuda.is_available():
        raise _problem(f"device {name} was asked for, but PyTorch sees no CUDA device on this machine.",
                       "Use --device cpu or auto, or install a driver and a CUDA build of PyTorch.")
    number = int(index) if index else local_rank
    if number >= torch.cuda.device_count():
        raise _problem(f"device cuda:{number} was asked for, but there are {torch.cuda.device_count()} CUDA devices.",
                       "They are counted from 0; start no more ranks than there are devices.")
    return torch.device("cuda", number)


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """``(arithmetic of forward and backward, reason)``. Raises ``ConfigError`` for float16 on a CPU, and for bfloat16
    on one that has no instructions for it."""
    if name == "auto" and device.type != "cuda":
        return torch.float32, "every CPU is good at it"
    if name == "auto":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies matrices in it; float32's range needs no loss scaling"
        return torch.float16, "this GPU has no bfloat16; the loss is scaled"
    if name == "float16" and device.type == "cpu":
        raise _dtype_problem("dtype float16 cannot be trained on a CPU.")
    if name == "bfloat16" and device.type == "cpu" and not has_native_bfloat16():
        raise _dtype_problem("dtype bfloat16 is refused on this CPU: it has no instructions for it (AVX512-BF16, AMX "
                             "or Arm BF16). Emulated, products of matrices are about 9 times slower than in float32 "
                             "and training is about 17 times slower.")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name], "asked for"


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        known = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("bf16") or known.get("sve_bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def missing_for_compile(device: torch.device) -> str | None:
    """What torch.compile would look for in vain on this machine, in words; ``None`` where it can work."""
    ours = os.environ.get("CXX" if device.type == "cpu" else "CC")
    usual = (("clang++",) if sys.platform == "darwin" else ("g++",)) if device.type == "cpu" else ("cc", "gcc", "clang")
    names = (ours,) if ours else usual
    if not any(shutil.which(name) for name in names):
        return f"a compiler ({' or '.join(names)})"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's header files (Python.h)"
    return None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` of the host on ``device``. A GPU copies from pinned memory when it comes to it; nobody waits."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def make_repeatable(device: torch.device) -> None:
    """Kernels that give the same bits each time, so that a resumed run is the uninterrupted one."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # For finding bugs: every new tensor would be filled with NaN before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.set_float32_matmul_precision("high")


def _dtype_problem(message: str) -> ConfigError:
    return ConfigError([{"field": "dtype", "message": message, "hint": "Use --dtype float32 or auto."}])


def _problem(message: str, hint: str) -> ConfigError:
    return ConfigError([{"field": "device", "message": message, "hint": hint}])
