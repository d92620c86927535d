"""Which device and which arithmetic, with a sentence where the machine does not have what was asked for."""

from __future__ import annotations

import os

import torch

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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Arithmetic of forward and backward. Raises ``ConfigError`` for float16 on a CPU."""
    if name == "auto":
        good = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if good else torch.float16 if device.type == "cuda" else torch.float32
    if name == "float16" and device.type == "cpu":
        raise ConfigError([{"field": "dtype", "message": "dtype float16 cannot be trained on a CPU.",
                            "hint": "Use --dtype float32 or auto."}])
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def make_repeatable(device: torch.device) -> None:
    """Kernels that give the same bits each time, so that a resumed run is the uninterrupted one."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("high")


def _problem(message: str, hint: str) -> ConfigError:
    return ConfigError([{"field": "device", "message": message, "hint": hint}])
