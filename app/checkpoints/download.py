"""A checkpoint as one tar stream, made while it is sent: no copy on disk, memory of one block."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.core.errors import NotFound
from minimind.errors import CheckpointError
from minimind.manifest import MANIFEST_FILE, Manifest

_BLOCK_BYTES = 1 << 20
_RECORD = 512
#: a tar ends with two empty records
_END = bytes(2 * _RECORD)


@dataclass
class _Member:
    header: bytes
    size: int
    file: BinaryIO


class TarStream:
    """Every file is opened before the first byte goes out: retention may remove the directory meanwhile."""

    def __init__(self, directory: Path, folder: str):
        self._stack = ExitStack()
        try:
            manifest = Manifest.read(directory)
            self._members = [self._open(directory / name, f"{folder}/{name}")
                             for name in [*sorted(manifest.files), MANIFEST_FILE]]
        except (CheckpointError, OSError) as error:
            self._stack.close()
            raise NotFound("The files of this checkpoint are no longer there.", hint="Choose another one.") from error

    def _open(self, path: Path, name: str) -> _Member:
        file = self._stack.enter_context(open(path, "rb"))
        info = tarfile.TarInfo(name)
        info.size = path.stat().st_size
        info.mtime = int(path.stat().st_mtime)
        info.mode = 0o644
        return _Member(info.tobuf(tarfile.PAX_FORMAT), info.size, file)

    @property
    def bytes(self) -> int:
        return sum(len(m.header) + m.size + _padding(m.size) for m in self._members) + len(_END)

    def blocks(self) -> Iterator[bytes]:
        with self._stack:
            for member in self._members:
                yield member.header
                left = member.size
                while left:
                    block = member.file.read(min(_BLOCK_BYTES, left))
                    if not block:
                        raise OSError(f"{member.file.name} became shorter while it was sent")
                    left -= len(block)
                    yield block
                yield bytes(_padding(member.size))
            yield _END


def _padding(size: int) -> int:
    return -size % _RECORD
