"""Asking NVML, the library behind ``nvidia-smi``, and ``nvidia-smi`` itself where the Python package is missing.

Every answer is of one moment: NVML is opened and closed for it, so a driver can be exchanged under a running studio.
A GPU that does not answer costs the others nothing: its entry has a ``reason``, a sentence.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from app.core.logging import get_logger

log = get_logger(__name__)

#: ``nvidia-smi`` is a process that takes a second
ASK_SMI_EVERY_S = 300.0


class _Failing(Exception):
    """Why a GPU cannot be used, as a sentence."""


def facts(visible: Sequence[str]) -> list[dict[str, Any]] | None:
    """``[{"id": "cuda:0", "index", "uuid", "name", "memory_bytes", "mig", "compute_capability"}]``, of a failing one
    ``{"id", "index", "uuid", "name", "reason"}``; None where there is nobody to ask.

    ``visible`` names the MIG instances to prefer. One in MIG mode also has ``gpu_uuid`` and ``instances``.
    """
    if not _has_package():
        return _by_nvidia_smi()
    return _each(lambda nvml, handle, index: _facts(nvml, handle, visible))


def loads() -> list[dict[str, Any]]:
    """``[{"device": "cuda:0", "percent", "memory_used_bytes", "memory_total_bytes", "temperature_c"}]`` of those that
    answer."""
    return [gpu["load"] for gpu in _each(_load) or [] if "load" in gpu]


def forget() -> None:
    """As if ``nvidia-smi`` had not been asked yet."""
    global _smi
    _smi = None


def _has_package() -> bool:
    try:
        import pynvml  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The module, ready to be asked; None where there is no driver or it does not answer."""
    if not _has_package():
        yield None
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None  # no driver: no NVIDIA GPU, or a broken one
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _each(read: Callable[[Any, Any, int], dict[str, Any]]) -> list[dict[str, Any]] | None:
    """``read(pynvml, handle, index)`` of each GPU, ``{"reason", ...}`` of one that fails; None without NVML."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            log.warning("nvml_failed", error=str(error))
            return None
        return [_read(nvml, read, index) for index in range(count)]


def _read(nvml: Any, read: Callable[[Any, Any, int], dict[str, Any]], index: int) -> dict[str, Any]:
    known: dict[str, Any] = {"id": f"cuda:{index}", "index": index, "uuid": None, "name": None}
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        known |= {"uuid": _text(_told(nvml, "nvmlDeviceGetUUID", handle)),
                  "name": _text(_told(nvml, "nvmlDeviceGetName", handle))}
        return known | read(nvml, handle, index)
    except _Failing as error:
        return known | {"reason": str(error)}
    except nvml.NVMLError as error:
        return known | {"reason": _sentence(error)}


def _sentence(error: Exception) -> str:
    if type(error).__name__ == "NVMLError_GpuIsLost":
        return "It has fallen off the bus (NVML: GPU is lost); the machine has to be started again."
    if type(error).__name__ == "NVMLError_ResetRequired":
        return "It has to be reset before it can be used again (nvidia-smi --gpu-reset)."
    return f"NVML does not tell what it is: {error}."


def _told(nvml: Any, name: str, *arguments: Any) -> Any:
    """What NVML answers; None where this GPU, driver or package does not know the question."""
    ask = getattr(nvml, name, None)
    if ask is None:
        return None
    try:
        return ask(*arguments)
    except nvml.NVMLError as error:
        if type(error).__name__ in ("NVMLError_GpuIsLost", "NVMLError_ResetRequired"):
            raise
        return None


def _text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _facts(nvml: Any, handle: Any, visible: Sequence[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"mig": False}
    mode = _told(nvml, "nvmlDeviceGetMigMode", handle)
    if mode is not None and mode[0]:
        facts |= _instance(nvml, handle, visible)
        handle = facts.pop("handle")
    capability = _told(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    _refuse_broken_memory(nvml, handle)
    return facts | {"memory_bytes": _memory_bytes(nvml, handle),
                    "compute_capability": ".".join(map(str, capability)) if capability else None}


def _instance(nvml: Any, handle: Any, visible: Sequence[str]) -> dict[str, Any]:
    """The MIG instance that processes get of this GPU: the first one that ``visible`` names, else the first."""
    found = []
    for number in range(_told(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        instance = _told(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        if instance is not None:
            found.append((instance, _text(_told(nvml, "nvmlDeviceGetUUID", instance))))
    if not found:
        raise _Failing("It is in MIG mode and has no instance (nvidia-smi mig -cgi ... -C makes one).")
    gpu_uuid = _text(_told(nvml, "nvmlDeviceGetUUID", handle))
    names = [name for name in visible if name.upper().startswith("MIG-")]
    instance, uuid = next(((i, u) for name in names for i, u in found if u and u.lower().startswith(name.lower())),
                          found[0])
    return {"mig": True, "handle": instance, "uuid": uuid, "gpu_uuid": gpu_uuid,
            "instances": [u for _, u in found if u]}


def _memory_bytes(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError as error:
        if type(error).__name__ != "NVMLError_NotSupported":
            raise
        return int(psutil.virtual_memory().total)  # it shares the machine's memory


def _refuse_broken_memory(nvml: Any, handle: Any) -> None:
    """Uncorrectable errors since the driver was loaded, or memory that cannot be repaired any more."""
    errors = _told(nvml, "nvmlDeviceGetTotalEccErrors", handle,
                   getattr(nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1), getattr(nvml, "NVML_VOLATILE_ECC", 0))
    if errors:
        raise _Failing(f"Its memory has had {errors} errors that could not be corrected; it has to be reset "
                       "(nvidia-smi --gpu-reset) or the machine started again.")
    rows = _told(nvml, "nvmlDeviceGetRemappedRows", handle)
    if rows is not None and rows[3]:
        raise _Failing("Its memory is worn out: rows could not be remapped; the GPU has to be replaced.")


def _load(nvml: Any, handle: Any, index: int) -> dict[str, Any]:
    # a GPU that is cut into parts (MIG), for one, knows no utilisation
    use, memory = _told(nvml, "nvmlDeviceGetUtilizationRates", handle), _told(nvml, "nvmlDeviceGetMemoryInfo", handle)
    load = {"device": f"cuda:{index}", "percent": None if use is None else int(use.gpu),
            "memory_used_bytes": None if memory is None else int(memory.used),
            "memory_total_bytes": None if memory is None else int(memory.total),
            "temperature_c": _told(nvml, "nvmlDeviceGetTemperature", handle, getattr(nvml, "NVML_TEMPERATURE_GPU", 0))}
    return {"load": load}


_smi: tuple[float, list[dict[str, Any]] | None] | None = None


def _by_nvidia_smi() -> list[dict[str, Any]] | None:
    """As ``_by_nvml(_facts)``, for hosts without the Python package; None where there is no such program."""
    global _smi
    if _smi is None or time.monotonic() - _smi[0] >= ASK_SMI_EVERY_S:
        _smi = time.monotonic(), _ask_nvidia_smi()
    return None if _smi[1] is None else [dict(gpu) for gpu in _smi[1]]


def _ask_nvidia_smi() -> list[dict[str, Any]] | None:
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=index,uuid,memory.total,name",
                                 "--format=csv,noheader,nounits"],
                                capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    found = []
    for line in answer.stdout.splitlines():
        parts = [part.strip() for part in line.split(",", 3)]
        if len(parts) != 4 or not parts[0].isdecimal():
            continue  # a warning in between
        index, uuid, mebibytes, name = parts
        memory = int(mebibytes) << 20 if mebibytes.isdecimal() else int(psutil.virtual_memory().total)
        found.append({"id": f"cuda:{index}", "index": int(index), "uuid": uuid or None, "name": name,
                      "memory_bytes": memory, "mig": False, "compute_capability": None})
    return found
