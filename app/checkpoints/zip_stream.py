"""A directory as one zip, made while it is sent: nothing is packed, no copy on disk, memory of one block."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

_BLOCK_BYTES = 1 << 20
#: the same archive each time: the earliest time that a zip can express
_TIME = (1980, 1, 1, 0, 0, 0)


class _Sent:
    """What the archive writes, until it is taken out and sent. It cannot seek, so sizes follow the content."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._position = 0

    def write(self, block: bytes) -> int:
        self._blocks.append(bytes(block))
        self._position += len(block)
        return len(block)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        taken, self._blocks = b"".join(self._blocks), []
        return taken


class ZipStream:
    """The files of ``directory``, in the folder ``folder`` of the archive; all are opened before the first byte goes
    out, so that deleting them meanwhile breaks nothing. Raises ``OSError``."""

    def __init__(self, directory: Path, folder: str):
        self._stack = ExitStack()
        try:
            self._files = [(f"{folder}/{path.relative_to(directory).as_posix()}",
                            self._stack.enter_context(open(path, "rb")))
                           for path in sorted(directory.rglob("*")) if path.is_file()]
        except OSError:
            self._stack.close()
            raise

    def blocks(self) -> Iterator[bytes]:
        sent = _Sent()
        with self._stack, zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as archive:
            for name, file in self._files:
                info = zipfile.ZipInfo(name, _TIME)
                info.external_attr = 0o644 << 16
                with archive.open(info, "w", force_zip64=True) as member:
                    while block := file.read(_BLOCK_BYTES):
                        member.write(block)
                        yield sent.take()
        yield sent.take()
