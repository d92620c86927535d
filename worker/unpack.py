"""Files out of a zip or tar that somebody sent: into one directory, by their last names, within what the disk holds."""

from __future__ import annotations

import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from minimind.archives import DAMAGED, UNREADABLE_ZIP, is_damage
from minimind.errors import CheckpointError

MAX_FILES = 1000
#: what unpacks to more than so many bytes and times the archive's size is refused: weights do not pack so well
RATIO_FROM_BYTES, MAX_RATIO = 64 << 20, 250
#: what must stay free
SPARE_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}")
_SUFFIXES = (".json", ".safetensors", ".bin", ".jinja", ".txt", ".pth", ".pt", ".gguf")


class _Member(NamedTuple):
    name: str
    bytes: int
    file: BinaryIO


def unpack(archive: Path, target: Path) -> None:
    """Write what models are made of into ``target``; folders are left out, links and other files too. Raises
    ``CheckpointError`` where the archive is damaged, too large, or has two files of one name."""
    members = _of_zip if archive.suffix == ".zip" else _of_tar
    most = max(RATIO_FROM_BYTES, MAX_RATIO * archive.stat().st_size)
    free, total, count = shutil.disk_usage(target).free - SPARE_BYTES, 0, 0
    try:
        for member in members(archive):
            total, count = total + member.bytes, count + 1
            if count > MAX_FILES:
                raise CheckpointError(f"The archive holds more than {MAX_FILES:,} files.",
                                      hint="Pack the files of one model.")
            if total > most:
                raise CheckpointError(f"The archive unpacks to more than {MAX_RATIO} times its size, which no model "
                                      "does.", hint="Pack the files again, or send them alone.")
            if total > free:
                raise CheckpointError("The archive holds more than fits here.",
                                      hint="Free some space in the data directory, or send the files alone.")
            _write(member, target)
    except CheckpointError:
        raise
    except (OSError, tarfile.TarError, *UNREADABLE_ZIP, *DAMAGED, MemoryError, OverflowError) as error:
        # the last two: a tar whose header says that a name has terabytes
        if not is_damage(error):
            raise
        raise CheckpointError(f"The archive cannot be unpacked: {str(error).rstrip('.') or type(error).__name__}.",
                              hint="Pack the files again as .zip, without a password.") from error


def _write(member: _Member, target: Path) -> None:
    path, written = target / member.name, 0
    try:
        with open(path, "xb") as file:
            while block := member.file.read(min(_BLOCK_BYTES, member.bytes + 1 - written)):
                written += len(block)
                if written > member.bytes:
                    raise CheckpointError(f"{member.name} in the archive is longer than the archive says.",
                                          hint="Pack the files again.")
                file.write(block)
    except FileExistsError:
        raise CheckpointError(f"The archive has two files named {member.name}.",
                              hint="Import one model at a time.") from None


def _usable(place: str) -> str | None:
    """The last part of a path in an archive, where it can be a file of a model."""
    name = place.replace("\\", "/").rpartition("/")[2]
    if "__MACOSX" in place or not name.lower().endswith(_SUFFIXES):
        return None
    suffix = Path(name).suffix.lower()
    return Path(name).stem + suffix if _NAME.fullmatch(name) else f"weights{suffix}"


def _of_zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = None if info.is_dir() else _usable(info.filename)
            if name is not None:
                with archive.open(info) as file:
                    yield _Member(name, info.file_size, file)


def _of_tar(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            name = _usable(info.name) if info.isfile() and not info.issparse() else None
            file = archive.extractfile(info) if name is not None else None
            if file is not None:
                yield _Member(name, info.size, file)
