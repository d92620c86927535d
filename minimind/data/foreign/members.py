"""A path as the data files in it: the file itself, what a ``.gz`` holds, the files of a ``.zip``. Nothing is unpacked
to disk, and nothing that an archive says of itself is believed: names are only shown, sizes are counted."""

from __future__ import annotations

import gzip
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from minimind.archives import DAMAGED, UNREADABLE_ZIP, is_damage
from minimind.errors import DataError

#: of the data itself; each may also stand inside a .gz or a .zip
DATA_SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet")
MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 64 << 30  # as large as an upload may be
#: text packs 3 to 30 times smaller and what a program repeats 100 times; deflate itself ends at 1,032
MAX_RATIO, RATIO_FROM_BYTES = 250, 64 << 20
_BLOCK = 1 << 20


@dataclass
class Member:
    """One data file. ``name`` is what to call it in a sentence; ``size`` what reading it takes from the disk, in
    bytes; ``open()`` gives a stream from its beginning."""

    name: str
    suffix: str
    size: int
    open: Callable[[], Stream]


class Stream:
    """The bytes of a member, with a bound on what they may become. Raises ``DataError`` where they are damaged."""

    def __init__(self, member_name: str, streams: Sequence[BinaryIO], packed: Callable[[], int] | None,
                 is_partial: bool):
        """``streams``: the one to read, and those it stands on, which are closed after it."""
        self._name, self._streams, self._packed, self._is_partial = member_name, streams, packed, is_partial
        self.unpacked = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.close()

    @property
    def position(self) -> int:
        """Bytes read from the disk so far."""
        return self._packed() if self._packed else self.unpacked

    def read(self, size: int = _BLOCK) -> bytes:
        """At most ``size`` bytes, none at the end."""
        try:
            block = self._streams[0].read(size)
        except EOFError:
            if self._is_partial:
                return b""
            raise DataError(f"{self._name} ends in the middle.", hint="Was it copied whole? Pack it again.") from None
        except (OSError, *DAMAGED) as error:
            if not is_damage(error):
                raise
            raise DataError(f"{self._name} cannot be unpacked: {error}.", hint="Pack it again, with deflate.") from None
        self.unpacked += len(block)
        if self._packed and (self.unpacked > MAX_UNPACKED_BYTES or self.unpacked > RATIO_FROM_BYTES
                             and self.unpacked > MAX_RATIO * max(1, self._packed())):
            raise DataError(f"{self._name} unpacks to more than {self.unpacked >> 20} MiB, which is far more than data "
                            "of its size does.", hint="Unpack it yourself and give the file inside.")
        return block


def members_of(path: Path, shown: str, stack: ExitStack, *, is_partial: bool = False) -> list[Member]:
    """The data files of ``path``, in the order of their names. ``is_partial``: only the beginning of it is there.

    ``shown`` is what to call it; its ending says what it is, unless its first bytes say otherwise. ``stack`` closes
    what must stay open for the members. Raises ``DataError``.
    """
    with open(path, "rb") as stream:
        magic = stream.read(4)
    suffix = PurePosixPath(shown).suffix.lower()
    if magic == b"PK\x03\x04" or (suffix == ".zip" and magic):
        return _of_zip(path, shown, stack, is_partial)
    if magic[:2] == b"\x1f\x8b":
        inner = PurePosixPath(shown).stem if suffix in (".gz", ".tgz") else shown
        inner_suffix = ".tar" if suffix == ".tgz" else PurePosixPath(inner).suffix.lower()
        if inner_suffix == ".tar":
            raise DataError(f"{shown} is a tar archive.", hint="Pack the files as .zip, or give one as .gz.")
        return [Member(shown, inner_suffix, path.stat().st_size, lambda: _open_gzip(path, shown, is_partial))]
    if suffix == ".gz":
        raise DataError(f"{shown} is not packed with gzip.", hint="Pack it again, or give the file itself.")
    if magic == b"PAR1":
        suffix = ".parquet"
    return [Member(shown, suffix, path.stat().st_size, lambda: Stream(shown, [open(path, "rb")], None, is_partial))]


def _open_gzip(path: Path, shown: str, is_partial: bool) -> Stream:
    raw = open(path, "rb")
    if is_partial:
        return Stream(shown, [_Beginning(raw), raw], raw.tell, True)
    return Stream(shown, [gzip.GzipFile(fileobj=raw), raw], raw.tell, is_partial)


def _of_zip(path: Path, shown: str, stack: ExitStack, is_partial: bool) -> list[Member]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        entries = archive.infolist()
    except UNREADABLE_ZIP as error:
        if is_partial:
            raise DataError(f"{shown} cannot be looked into from its beginning.",
                            hint="The list of its files stands at its end: send the whole file.") from None
        raise DataError(f"{shown} is not a zip archive that can be read: {error}.", hint="Pack it again.") from None
    if len(entries) > MAX_ENTRIES:
        raise DataError(f"{shown} holds {len(entries):,} files; {MAX_ENTRIES:,} is the most.",
                        hint="Join the rows in fewer files.")
    for entry in entries:
        _refuse(entry, shown)
    total = sum(entry.file_size for entry in entries)
    packed = path.stat().st_size  # not what the entries say: they can share their bytes
    if total > MAX_UNPACKED_BYTES or (total > RATIO_FROM_BYTES and total > MAX_RATIO * max(1, packed)):
        raise DataError(f"{shown} unpacks to {total >> 20:,} MiB, which is far more than data of its size does.",
                        hint="Unpack it yourself and give the file inside.")
    found = []
    for entry in sorted(entries, key=lambda entry: entry.filename):
        parts = PurePosixPath(entry.filename).parts
        if entry.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        packed_inside = parts[-1].lower().endswith(".gz")
        suffix = PurePosixPath(parts[-1].lower().removesuffix(".gz")).suffix
        if suffix in DATA_SUFFIXES:
            name = f"{parts[-1]} in {shown}"
            found.append(Member(name, suffix, entry.compress_size,
                                lambda e=entry, n=name, g=packed_inside: _open_entry(archive, e, n, g)))
    if not found:
        archives = any(entry.filename.lower().endswith((".zip", ".tar", ".tgz", ".gz", ".7z")) for entry in entries)
        raise DataError(f"{shown} holds no data file" + (", only other archives." if archives else "."),
                        hint=f"It should hold files ending in {', '.join(DATA_SUFFIXES)}.")
    return found


def _refuse(entry: zipfile.ZipInfo, shown: str) -> None:
    """Names that lead out of an archive, links and locked files: nobody packs data so by accident."""
    name = entry.orig_filename
    leads_out = name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name)
    if leads_out or "\0" in name:
        raise DataError(f"{shown} holds a file whose name leads out of the archive.",
                        hint="Pack the data again, without absolute names and '..'.")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{shown} holds a link.", hint="Pack the files themselves.")
    if entry.flag_bits & 1:
        raise DataError(f"{shown} is locked with a password.", hint="Pack it again without one.")


def _open_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, is_gzip: bool) -> Stream:
    try:
        stream = archive.open(entry)
    except (OSError, *UNREADABLE_ZIP) as error:
        if not is_damage(error):
            raise
        raise DataError(f"{name} cannot be unpacked: {error}.", hint="Pack it again, with deflate.") from None
    counter = _Counter(stream)

    def packed() -> int:  # the real position in a zip is not to be had: what was unpacked, in proportion
        return round(counter.count / max(1, entry.file_size) * entry.compress_size)

    streams = [gzip.GzipFile(fileobj=counter), counter, stream] if is_gzip else [counter, stream]
    return Stream(name, streams, packed, False)


class _Beginning(io.RawIOBase):
    """What the beginning of a .gz holds: gzip's own reader gives nothing of a block that it cannot give whole."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._inflate = raw, zlib.decompressobj(31)

    def read(self, size: int = -1) -> bytes:
        while not self._inflate.eof:
            block = self._inflate.unconsumed_tail or self._raw.read(_BLOCK)
            if not block:
                return self._inflate.flush()
            if data := self._inflate.decompress(block, size):
                return data
        return b""


class _Counter(io.RawIOBase):
    def __init__(self, stream: BinaryIO):
        self._stream, self.count = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        block = self._stream.read(len(target))
        target[:len(block)] = block
        self.count += len(block)
        return len(block)
