"""Zip archives that cannot be read, each of its own kind."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

METHODS = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
KINDS = ("unknown method", "unknown version", "locked", "cut off", "wrong checksum", "name that is no UTF-8",
         "begins in front of the file", *(f"damaged {method}" for method in METHODS))


def write(path: Path, kind: str, name: str, content: bytes) -> None:
    """An archive of one file ``name`` with what ``kind``, one of ``KINDS``, says wrong with it."""
    method = METHODS.get(kind.removeprefix("damaged "), zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    raw = bytearray(path.read_bytes())
    entry, end, body = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06"), 30 + len(name)
    if kind == "unknown method":
        raw[8], raw[entry + 10] = 99, 99
    elif kind == "unknown version":
        raw[entry + 6] = 255
    elif kind == "locked":
        raw[6], raw[entry + 8] = 1, 1
    elif kind == "cut off":
        del raw[-30:]
    elif kind == "name that is no UTF-8":
        raw[entry + 9], raw[entry + 46] = 8, 0xff
    elif kind == "begins in front of the file":
        struct.pack_into("<I", raw, end + 16, entry + 1)
    else:
        raw[body + 12:body + 40] = b"\xff" * 28
    path.write_bytes(raw)
