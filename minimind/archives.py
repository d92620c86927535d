"""What Python's own readers raise of an archive that is damaged, or packed in a way that they do not know."""

from __future__ import annotations

import errno
import lzma
import zipfile
import zlib

#: By ``ZipFile()`` and its ``open``: ``RuntimeError`` for a locked entry and, as ``NotImplementedError``, for an
#: unknown method or version; ``ValueError`` for a name that is not UTF-8 and for a place that no file has.
UNREADABLE_ZIP = (zipfile.BadZipFile, RuntimeError, ValueError)
#: By reading what is packed: a wrong checksum or an end in the middle, and what zlib and lzma call damage. bz2 and gzip
#: raise an ``OSError`` for that, see ``is_damage``.
DAMAGED = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError)


def is_damage(error: Exception) -> bool:
    """Whether an error of reading is about what the archive says and not about the disk. Of the ``OSError``s a
    decompressor's has no number, and an entry that begins in front of the file is an invalid argument."""
    return not isinstance(error, OSError) or error.errno in (None, errno.EINVAL)
