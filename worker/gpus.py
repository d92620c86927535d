"""What this host has: cores and GPUs, asked of NVML without ever loading torch (CUDA does not survive a fork).

A GPU is ``cuda:N``, N as NVML counts (by PCI bus); its UUID says which one it is to whoever counts differently.
``CUDA_VISIBLE_DEVICES`` of the worker narrows what it offers: numbers, UUIDs (or how they begin), MIG instances.
A GPU that is cut into parts (MIG) is one device: a process can use one instance only, the first one that is visible.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from app.core.devices import can_ever_fit, choose
from app.core.logging import get_logger
from minimind.errors import MiniMindError
from worker import nvml

log = get_logger(__name__)

#: how old an answer of ``inventory`` may be
LOOK_EVERY_S = 30.0


class DeviceGone(MiniMindError):
    """A GPU that a run was given is not there, or cannot be used any more."""

    code = "GPU"

    def __init__(self, device: str, why: str):
        super().__init__(f"The GPU {device} of this machine cannot be used. {why}", field="devices",
                         hint="The run can go on with another one; nvidia-smi and the kernel's log say more.")
        self.device = device


@dataclass(frozen=True)
class Inventory:
    """The GPUs of this host.

    ``devices``: ``[{"id": "cuda:0", "index", "uuid", "name", "memory_bytes", "mig", "compute_capability"}]``, those
    that can be used. ``failing``: those that are or were there and cannot be used, with what is known of them and a
    ``reason``, a sentence. ``answered``: False where there is nobody to ask (no driver).
    """

    devices: tuple[dict[str, Any], ...] = ()
    failing: tuple[dict[str, Any], ...] = ()
    answered: bool = False


# -- cores --------------------------------------------------------------------------------------------------------


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


# -- which GPUs ---------------------------------------------------------------------------------------------------

_last: tuple[float, Inventory] | None = None
#: GPUs that were usable once, by what names them
_seen: dict[str, dict[str, Any]] = {}


def inventory(max_age_s: float = LOOK_EVERY_S) -> Inventory:
    """The GPUs as they are now, or as they were at most ``max_age_s`` ago. Cheap: for each heartbeat."""
    global _last
    if _last is None or time.monotonic() - _last[0] >= max_age_s:
        _last = time.monotonic(), _compared(_look())
    return _last[1]


def gpus() -> list[dict[str, Any]]:
    """The usable GPUs as they are now (``Inventory.devices``)."""
    return list(inventory(max_age_s=0).devices)


def host_devices() -> list[dict[str, Any]]:
    """What a heartbeat writes into ``host.devices``: all of them, those that cannot be used with a ``problem``."""
    now = inventory()
    failing = [{**{k: v for k, v in gpu.items() if k != "reason"}, "problem": gpu["reason"]} for gpu in now.failing]
    return sorted([*now.devices, *failing], key=lambda gpu: gpu["index"])


def forget() -> None:
    """As if nothing had been asked yet."""
    global _last
    _last = None
    _seen.clear()
    nvml.forget()


def uuids() -> dict[str, str]:
    """device -> UUID of every GPU that has told one, failing ones too."""
    now = inventory()
    return {gpu["id"]: gpu["uuid"] for gpu in (*now.failing, *now.devices) if gpu.get("uuid")}


def require(devices: Iterable[str]) -> None:
    """Raise ``DeviceGone`` for a GPU that cannot be used now; where nobody can be asked, nothing is known."""
    now = inventory(max_age_s=1.0)
    if not now.answered and not now.failing:
        return
    there, reasons = {gpu["id"] for gpu in now.devices}, {gpu["id"]: gpu["reason"] for gpu in now.failing}
    for device in devices:
        if device.startswith("cuda:") and device not in there:
            raise DeviceGone(device, reasons.get(device, "It is not there any more."))


def visible_to_ranks(devices: Iterable[str]) -> str:
    """``CUDA_VISIBLE_DEVICES`` of processes that get ``devices``: by UUID where all are known, else by number.

    A number means another GPU when one in front of it has gone, and under another ``CUDA_DEVICE_ORDER``.
    """
    devices = list(devices)
    known = uuids()
    if all(device in known for device in devices):
        return ",".join(known[device] for device in devices)
    return ",".join(device.removeprefix("cuda:") for device in devices)


def _look() -> Inventory:
    if _all_hidden():
        return Inventory(answered=True)
    found = nvml.facts(_visible_names() or ())
    if found is None:
        return Inventory()
    visible = [gpu for gpu in found if _is_visible(gpu)]
    for gpu in visible:
        gpu.pop("instances", None)
    return Inventory(tuple(gpu for gpu in visible if "reason" not in gpu),
                     tuple(gpu for gpu in visible if "reason" in gpu), True)


def _compared(now: Inventory) -> Inventory:
    """With those that were there before, as failing, and with what is known of those that do not answer."""
    for gpu in now.devices:
        _seen[gpu["uuid"] or gpu["id"]] = gpu
    if _all_hidden():
        return now
    by_id = {gpu["id"]: gpu for gpu in _seen.values()}
    failing = []
    for gpu in now.failing:
        known = by_id.get(gpu["id"], {})
        failing.append({**known, **{k: v for k, v in gpu.items() if v is not None or k not in known}})
    told = {gpu["uuid"] or gpu["id"] for gpu in (*now.devices, *failing)}
    ids = {gpu["id"] for gpu in (*now.devices, *failing)}
    why = "It is not there any more." if now.answered else "The NVIDIA driver does not answer any more."
    failing += [{**gpu, "reason": why} for key, gpu in _seen.items() if key not in told and gpu["id"] not in ids]
    said = _last[1].failing if _last is not None else ()
    for gpu in failing:
        if gpu not in said:
            log.warning("gpu_fails", device=gpu["id"], uuid=gpu["uuid"], reason=gpu["reason"])
    return replace(now, failing=tuple(failing))


def _all_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") == ""  # hidden on purpose


def _visible_names() -> list[str] | None:
    """Entries of ``CUDA_VISIBLE_DEVICES``; None where it is not set. As CUDA reads it: one that means nothing ends
    the list."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return None
    names = []
    for part in (part.strip() for part in told.split(",")):
        if not part.isdecimal() and not part.upper().startswith(("GPU-", "MIG-")):
            break
        names.append(part)
    return names


def _is_visible(gpu: dict[str, Any]) -> bool:
    names = _visible_names()
    return names is None or any(_means(name, gpu) for name in names)


def _means(name: str, gpu: dict[str, Any]) -> bool:
    if name.isdecimal():
        return int(name) == gpu["index"]
    own = gpu.get("gpu_uuid") or gpu["uuid"]
    if own is None:  # which one is meant cannot be known, unless it has told its name before
        return "reason" not in gpu or any(gpu["id"] == seen["id"] for seen in _seen.values())
    if name.upper().startswith("GPU-"):
        return own.lower().startswith(name.lower())
    # an instance: by its own UUID, or in the old way, MIG-GPU-(UUID of the GPU)/(instance)/(part)
    return name.lower().startswith(f"mig-{own}/".lower()) or any(
        uuid.lower().startswith(name.lower()) for uuid in gpu.get("instances", ()))


# -- load ---------------------------------------------------------------------------------------------------------


def gpu_load() -> list[dict[str, Any]]:
    """``[{"device": "cuda:0", "percent", "memory_used_bytes", "memory_total_bytes", "temperature_c"}]`` by NVML.

    Empty where NVML does not answer, without those that fail; a single number that a GPU does not tell is None.
    """
    if _all_hidden():
        return []
    now = inventory()
    visible = {gpu["id"] for gpu in (*now.devices, *now.failing)}
    return [load for load in nvml.loads() if load["device"] in visible]


def versions() -> dict[str, str]:
    """Versions that matter when a run behaves differently on two hosts; nothing is imported for them."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for package in ("torch", "celery", "tokenizers", "sqlalchemy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


__all__ = ["DeviceGone", "Inventory", "can_ever_fit", "choose", "cpu_slots", "forget", "gpu_load", "gpus",
           "host_devices", "inventory", "require", "uuids", "versions", "visible_to_ranks"]
