"""``python -P -m minimind.formats.pth_reader FILE OUT``: the tensors of a ``.pth`` file, as safetensors.

A ``.pth`` file is a program for Python's unpickler. ``weights_only`` lets that program build nothing but tensors and
plain values; this process, which may take only so much memory, time and disk, is what is left of the trust. It prints
one JSON object: ``{}``, or ``{"problem": one of the keys of pth.PROBLEMS, "detail": text}``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys

from minimind.lifeline import die_as_told

#: limits beyond what the file itself explains
SPARE_MEMORY_BYTES, SPARE_DISK_BYTES, SPARE_CPU_S = 512 << 20, 16 << 20, 60
#: a file is read, copied and written: memory and disk for that many times its size
MEMORY_FACTOR, DISK_FACTOR = 4, 2
SLOWEST_BYTES_PER_S = 20 << 20
MOST_TENSORS, LONGEST_NAME = 1_000_000, 200
#: keys of a file with more in it than weights (upstream's ``_resume.pth``)
INNER = ("model", "state_dict")


class Unusable(Exception):
    def __init__(self, problem: str, detail: str = ""):
        super().__init__(problem)
        self.answer = {"problem": problem, "detail": detail[:500]}


def cpu_seconds(size: int) -> int:
    """Enough for a slow disk."""
    return SPARE_CPU_S + size // SLOWEST_BYTES_PER_S


def limit(size: int) -> None:
    """For a file of ``size`` bytes. Call when everything is imported: libraries reserve gigabytes of addresses."""
    _lower(resource.RLIMIT_CPU, cpu_seconds(size))
    _lower(resource.RLIMIT_FSIZE, size * DISK_FACTOR + SPARE_DISK_BYTES)
    _lower(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # elsewhere the kernel does not hold a process to it
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, now + size * MEMORY_FACTOR + SPARE_MEMORY_BYTES)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def answer(path: str, out: str) -> dict:
    """Convert the file and say how it went. (Under no limits: they are set once and stay.)"""
    try:
        _convert(path, out)
    except Unusable as error:
        return error.answer
    except MemoryError:
        return {"problem": "memory", "detail": ""}
    return {}


def _convert(path: str, out: str) -> None:
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise Unusable("objects", refused[1]) from None
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))  # round it torch advises to trust the file
        raise Unusable("damaged", reason[1] if reason else _first_line(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        raise Unusable("memory" if "allocate memory" in str(error) else "damaged", _first_line(error)) from None
    try:
        save_file(_tensors(loaded, os.path.getsize(path)), out)
    except (OSError, SafetensorError) as error:
        raise Unusable("disk", _first_line(error)) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _tensors(loaded: object, size: int) -> dict:
    """Name and tensor, each with memory of its own. Raises ``Unusable`` for anything that is not a flat state dict."""
    import torch

    for key in INNER:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise Unusable("no_weights", type(loaded).__name__)
    total = 0
    for name, tensor in loaded.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not name.isprintable():
            raise Unusable("name", repr(name)[:LONGEST_NAME])
        if not isinstance(tensor, torch.Tensor):
            raise Unusable("not_a_tensor", name)
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise Unusable("kind_of_tensor", name)
        total += tensor.numel() * tensor.element_size()
        if total > size * DISK_FACTOR + SPARE_DISK_BYTES:  # a few bytes can be repeated into terabytes
            raise Unusable("memory")
    if len(loaded) > MOST_TENSORS:
        raise Unusable("memory")
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in loaded.items()}


def main(arguments: list[str]) -> int:
    die_as_told(always=True)
    path, out = arguments
    import torch
    torch.set_num_threads(1)
    limit(os.path.getsize(path))
    print(json.dumps(answer(path, out)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
