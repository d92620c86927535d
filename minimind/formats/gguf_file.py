"""The bytes of a GGUF file, which come from anywhere: nothing is allocated that the file's own size does not explain.

Format: magic, version, counts; keys with typed values; for each tensor its name, dimensions, type and offset; then the
tensors, aligned. The ``gguf`` package reads it too, but believes the counts that it finds.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minimind.errors import CheckpointError

MAGIC, VERSIONS = b"GGUF", (2, 3)
#: more keys, tensors, dimensions or letters in a name than any model has
MOST_KEYS, MOST_TENSORS, MOST_DIMENSIONS, LONGEST_NAME = 10_000, 1_000_000, 4, 500
#: entries of all lists together; a list of texts costs Python far more memory than the file has bytes
MOST_ENTRIES = 5_000_000
#: one text (a whole tokenizer.json among them), and all that stands before the tensors
LONGEST_TEXT, LONGEST_HEADER = 64 << 20, 256 << 20
_ALIGNMENT = 32
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
#: type of a tensor: name, bytes of a block, numbers in it
KINDS = {0: ("f32", 4, 1), 1: ("f16", 2, 1), 8: ("q8_0", 34, 32), 30: ("bf16", 2, 1)}


@dataclass(frozen=True)
class Entry:
    """A tensor in the file, as torch names its shape (the file has it reversed)."""

    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int


class GgufFile:
    """``keys`` and ``tensors`` of the file ``path``; ``tensor(name)`` reads one. Raises ``CheckpointError``."""

    def __init__(self, path: Path):
        self.path = path
        self.keys: dict[str, Any] = {}
        self.tensors: dict[str, Entry] = {}
        try:
            with open(path, "rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise CheckpointError(f"{path} cannot be read: {error}.", hint="Copy or download it again.") from None
        self._at, self._entries = 0, 0
        self._read_header()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()

    # -- header --------------------------------------------------------------------------------------------

    def _read_header(self) -> None:
        if self._take(4) != MAGIC:
            raise CheckpointError(f"{self.path} is not a GGUF file.", hint="Choose another file.")
        version = self._number(4)
        if version not in VERSIONS:
            raise CheckpointError(f"{self.path} is a GGUF file of version {version}.",
                                  hint="Versions 2 and 3 for processors with the low byte first can be read.")
        tensors, keys = self._number(10), self._number(10)
        if tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise self._damaged(f"it says that it has {keys} keys and {tensors} tensors")
        for _ in range(keys):
            name = self._text(LONGEST_NAME)
            if name in self.keys:
                raise self._damaged(f"it has the key {name[:100]!r} twice")
            self.keys[name] = self._value(self._number(4))
        alignment = self.keys.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"its alignment is {alignment!r}")
        found = []
        for _ in range(tensors):
            found.append(self._entry())
        data = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in found:
            self._keep(name, shape, kind, data + offset)
        if sum(entry.bytes for entry in self.tensors.values()) > max(0, len(self._bytes) - data):
            raise self._damaged("its tensors lie upon each other")  # a few bytes would become any amount of memory

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(LONGEST_NAME), self._number(4)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._damaged(f"{name[:100]!r} has {dimensions} dimensions")
        shape = tuple(self._number(10) for _ in range(dimensions))
        return name, shape[::-1], self._number(4), self._number(10)

    def _keep(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> None:
        if kind not in KINDS:
            raise CheckpointError(f"{name[:100]!r} in {self.path} is quantised in a way that cannot be read (type "
                                  f"{kind}).", hint="Files in f32, f16, bf16 and q8_0 can be read.")
        if name in self.tensors:
            raise self._damaged(f"it has the tensor {name[:100]!r} twice")
        _, block_bytes, block = KINDS[kind]
        count = 1
        for size in shape:
            count *= size  # Python's numbers do not overflow
        size = count // block * block_bytes
        if not count or shape[-1] % block or start + size > len(self._bytes):
            raise self._damaged(f"{name[:100]!r} of the shape {list(shape)} does not lie within it")
        self.tensors[name] = Entry(shape, kind, start, size)

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._number(kind)
        kind, count = self._number(4), self._number(10)
        self._entries += count
        if self._entries > MOST_ENTRIES:
            raise self._damaged("its lists are longer than those of any model")
        if kind == _TEXT:
            return [self._text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise self._damaged(f"it has a list of the type {kind}")
        code = f"<{count}{_NUMBERS[kind]}"
        return list(struct.unpack(code, self._take(struct.calcsize(code))))

    def _number(self, kind: int) -> Any:
        if kind not in _NUMBERS:
            raise self._damaged(f"it has a value of the type {kind}")
        code = "<" + _NUMBERS[kind]
        value = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        # the shortest number that those 32 bits stand for: 1e-06, and not 9.99999997475e-07
        return float(str(np.float32(value))) if kind == 6 else value

    def _text(self, most: int = LONGEST_TEXT) -> str:
        size = self._number(10)
        if size > most:
            raise self._damaged(f"it has a {'name' if most == LONGEST_NAME else 'text'} of {size:,} bytes")
        try:
            return self._take(size).decode()
        except UnicodeDecodeError:
            raise self._damaged("it has a text that is not UTF-8") from None

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._bytes):
            raise self._damaged("it ends in the middle")
        if end > LONGEST_HEADER:
            raise self._damaged(f"more than {LONGEST_HEADER:,} bytes stand before its tensors")
        taken = self._bytes[self._at:end]
        self._at = end
        return taken

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or not a GGUF file: {why}.",
                               hint="It may be cut short: copy or download it again.")

    # -- tensors -------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """Float32, in memory of its own."""
        entry = self.tensors[name]
        raw = np.frombuffer(self._bytes, np.uint8, entry.bytes, entry.start)
        kind = KINDS[entry.kind][0]
        if kind == "f32":
            values = raw.view("<f4").copy()
        elif kind == "f16":
            values = raw.view("<f2").astype(np.float32)
        elif kind == "bf16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            blocks = raw.reshape(-1, 34)
            scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
            values = blocks[:, 2:].view(np.int8).astype(np.float32) * scales
        return torch.from_numpy(values.reshape(entry.shape))
