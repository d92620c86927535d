"""What this host has: cores and GPUs, asked of NVML without ever loading torch (CUDA does not survive a fork)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from typing import Any

from app.core.devices import can_ever_fit, choose
from app.core.logging import get_logger

log = get_logger(__name__)


def cpu_slots() -> int:
    """Cores this process may use: an affinity mask or a container's quota can be narrower than the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(cores, _cgroup_quota() or cores))


def _cgroup_quota() -> int | None:
    """Whole cores of the container's CPU quota (cgroup v2), rounded up; None without one."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def gpus() -> list[dict[str, Any]]:
    """``[{"id": "cuda:0", "name", "memory_bytes"}]`` of the NVIDIA GPUs, by NVML, else by ``nvidia-smi``."""
    if _all_hidden():
        return []
    found = _by_nvml(_facts)
    if found is None:
        found = _by_nvidia_smi()
    return [gpu for gpu in found if _is_visible(gpu["id"])]


def gpu_load() -> list[dict[str, Any]]:
    """``[{"device": "cuda:0", "percent", "memory_used_bytes", "memory_total_bytes", "temperature_c"}]`` by NVML.

    Empty where NVML does not answer; a single number that a GPU does not tell is None.
    """
    if _all_hidden():
        return []
    return [gpu for gpu in _by_nvml(_load) or [] if _is_visible(gpu["device"])]


def _all_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") == ""  # hidden on purpose


def _is_visible(device: str) -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ""
    numbers = [part.strip() for part in visible.split(",")]
    return device in {f"cuda:{number}" for number in numbers} if all(n.isdigit() for n in numbers) else True


def _by_nvml(read: Callable[[Any, Any, int], dict[str, Any]]) -> list[dict[str, Any]] | None:
    """``read(pynvml, handle, index)`` of each GPU; None where NVML does not answer."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None  # no driver: no NVIDIA GPU, or a broken one that nvidia-smi may explain
    try:
        return [read(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index), index)
                for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.warning("nvml_failed", error=str(error))
        return None
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _facts(nvml: Any, handle: Any, index: int) -> dict[str, Any]:
    name = nvml.nvmlDeviceGetName(handle)
    return {"id": f"cuda:{index}", "name": name.decode() if isinstance(name, bytes) else name,
            "memory_bytes": int(nvml.nvmlDeviceGetMemoryInfo(handle).total)}


def _load(nvml: Any, handle: Any, index: int) -> dict[str, Any]:
    def told(ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(handle, *arguments)
        except nvml.NVMLError:  # a GPU that is cut into parts (MIG), for one, knows no utilisation
            return None

    use, memory = told(nvml.nvmlDeviceGetUtilizationRates), told(nvml.nvmlDeviceGetMemoryInfo)
    return {"device": f"cuda:{index}", "percent": None if use is None else int(use.gpu),
            "memory_used_bytes": None if memory is None else int(memory.used),
            "memory_total_bytes": None if memory is None else int(memory.total),
            "temperature_c": told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)}


def _by_nvidia_smi() -> list[dict[str, Any]]:
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"],
                                capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in answer.stdout.splitlines() if answer.returncode == 0 else []:
        index, name, mebibytes = (part.strip() for part in line.split(","))
        found.append({"id": f"cuda:{index}", "name": name, "memory_bytes": int(mebibytes) << 20})
    return found


def versions() -> dict[str, str]:
    """Versions that matter when a run behaves differently on two hosts; nothing is imported for them."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for package in ("torch", "celery", "tokenizers", "sqlalchemy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


__all__ = ["can_ever_fit", "choose", "cpu_slots", "gpu_load", "gpus", "versions"]
