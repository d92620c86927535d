"""How busy this host is: what the heartbeat writes into ``host.load``.

Never a reason for a heartbeat to fail or to wait: what cannot be read is ``None``, and of GPUs that do not answer
nothing is said.
"""

from __future__ import annotations

from typing import Any

import psutil

from app.core.logging import get_logger
from worker import gpus

log = get_logger(__name__)


def begin() -> None:
    """Start to count: the first ``host_load`` then tells of the time since, not of nothing."""
    _cpu_percent()


def host_load() -> dict[str, Any]:
    """``{"cpu_percent", "memory_used_bytes", "memory_total_bytes", "gpus": [...]}`` of the whole machine.

    ``cpu_percent`` (0 to 100, all cores) is the mean since the last call in this process.
    """
    used, total = _memory()
    return {"cpu_percent": _cpu_percent(), "memory_used_bytes": used, "memory_total_bytes": total,
            "gpus": gpus.gpu_load()}


def _cpu_percent() -> float | None:
    try:
        return psutil.cpu_percent(interval=None)
    except (psutil.Error, OSError, ValueError) as error:
        log.debug("cpu_load_unknown", error=str(error))
        return None


def _memory() -> tuple[int | None, int | None]:
    """Bytes in use (what programs could not have at once) and bytes in all."""
    try:
        memory = psutil.virtual_memory()
    except (psutil.Error, OSError, ValueError) as error:
        log.debug("memory_load_unknown", error=str(error))
        return None, None
    return int(memory.total - memory.available), int(memory.total)
