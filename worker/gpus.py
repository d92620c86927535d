"""What this host has: cores and GPUs, asked of NVML without ever loading torch (CUDA does not survive a fork)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
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
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return []  # hidden on purpose
    found = _by_nvml()
    if found is None:
        found = _by_nvidia_smi()
    if visible and all(part.strip().isdigit() for part in visible.split(",")):
        allowed = {f"cuda:{part.strip()}" for part in visible.split(",")}
        found = [gpu for gpu in found if gpu["id"] in allowed]
    return found


def _by_nvml() -> list[dict[str, Any]] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None  # no driver: no NVIDIA GPU, or a broken one that nvidia-smi may explain
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            found.append({"id": f"cuda:{index}", "name": name.decode() if isinstance(name, bytes) else name,
                          "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)})
        return found
    except pynvml.NVMLError as error:
        log.warning("nvml_failed", error=str(error))
        return None
    finally:
        pynvml.nvmlShutdown()


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


__all__ = ["can_ever_fit", "choose", "cpu_slots", "gpus", "versions"]
