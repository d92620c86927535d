"""Files from a browser or a script: written to disk as they come, bounded, under names of our own."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from app.core.errors import DiskFull, Invalid, TooLarge
from app.core.models import new_id

MAX_FIELD_BYTES = 64 << 10
MAX_PARTS = 20
#: all headers of one part together
MAX_HEADER_BYTES = 16 << 10
#: what must stay free on the disk while an upload is written
SPARE_BYTES = 256 << 20
#: bytes handed to the parsing thread at once
_BATCH_BYTES = 1 << 20


@dataclass
class UploadedFile:
    """A received file; ``filename`` is what the client called it, a text to show and nothing else."""

    path: Path
    filename: str
    bytes: int = 0
    sha256: str = ""


@dataclass
class Upload:
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, UploadedFile] = field(default_factory=dict)

    def discard(self) -> None:
        """Remove every file that was not moved elsewhere."""
        for file in self.files.values():
            file.path.unlink(missing_ok=True)

    @property
    def body_hash(self) -> str:
        """Equal for uploads that say the same: a retry has another multipart boundary."""
        said = [sorted(self.fields.items()), sorted((n, f.filename, f.sha256) for n, f in self.files.items())]
        return hashlib.sha256(repr(said).encode("utf-8", "replace")).hexdigest()


def is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def receive(request: Request, directory: Path, *, fields: set[str], files: set[str], max_file_bytes: int,
                  many: bool = False) -> Upload:
    """Read a multipart body into ``directory``. Raises ``AppError`` and leaves nothing behind when it is refused.

    Parts with other names than ``fields`` and ``files`` are refused; a file part may come once, with ``many`` often
    (the second as NAME#2).
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if not boundary:
        raise Invalid("The multipart body has no boundary.", field="body", hint="Let your HTTP library set it.")
    declared = request.headers.get("content-length", "")
    _refuse_if_disk_is_full(directory, int(declared[:20]) if declared.isdecimal() else 0)
    receiver = _Receiver(directory, fields, files, max_file_bytes, many)
    try:
        parser = MultipartParser(boundary, receiver.callbacks())
        pending = bytearray()
        async for chunk in request.stream():
            pending += chunk
            if len(pending) >= _BATCH_BYTES:
                await run_in_threadpool(parser.write, bytes(pending))
                pending.clear()
        await run_in_threadpool(parser.write, bytes(pending))
        parser.finalize()
        if not receiver.ended:
            raise Invalid("The multipart body ends in the middle.", field="body", hint="Send it again.")
    except FormParserError as error:
        receiver.abort()
        raise Invalid("The multipart body is not well formed.", field="body",
                      hint="Send multipart/form-data as browsers and HTTP libraries do.") from error
    except BaseException:
        receiver.abort()
        raise
    return receiver.upload


def _refuse_if_disk_is_full(directory: Path, expected_bytes: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < expected_bytes + SPARE_BYTES:
        raise DiskFull(f"The upload has {expected_bytes / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on the server.",
                       hint="Free some space in the data directory and try again.")


class _Receiver:
    """Callbacks of the multipart parser; one part at a time."""

    def __init__(self, directory: Path, fields: set[str], files: set[str], max_file_bytes: int,
                 many: bool = False):
        self.upload = Upload()
        self._many = many
        self.ended = False
        self._directory, self._fields, self._files, self._limit = directory, fields, files, max_file_bytes
        self._parts = 0
        self._header_name = self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = 0
        self._name = ""
        self._value = bytearray()
        self._file: UploadedFile | None = None
        self._stream: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def callbacks(self) -> dict:
        return {"on_part_begin": self._begin, "on_header_field": self._on_name, "on_header_value": self._on_value,
                "on_header_end": self._on_header, "on_headers_finished": self._start, "on_part_data": self._data,
                "on_part_end": self._end, "on_end": self._finish}

    def abort(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._file is not None:
            self._file.path.unlink(missing_ok=True)
        self.upload.discard()

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Invalid(f"The multipart body has more than {MAX_PARTS} parts.", field="body",
                          hint="Pack the files as one .zip.")
        self._headers, self._header_bytes, self._value, self._file = {}, 0, bytearray(), None

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._bound_headers(end - start)

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._bound_headers(end - start)

    def _bound_headers(self, more: int) -> None:
        self._header_bytes += more
        if self._header_bytes > MAX_HEADER_BYTES:
            raise Invalid("The headers of a part of the multipart body are too long.", field="body")

    def _on_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _start(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            if self._name not in self._fields:
                raise self._unknown("field", self._fields)
            return
        if self._name not in self._files:
            raise self._unknown("file", self._files)
        if self._name in self.upload.files and self._many:
            self._name = f"{self._name}#{len(self.upload.files) + 1}"
        if self._name in self.upload.files:
            raise Invalid(f"The part {self._name} came twice.", field=self._name, hint="Send one file a request.")
        path = self._directory / new_id()
        self._file = UploadedFile(path, shown_name(options[b"filename"].decode("utf-8", "replace")))
        self._stream = open(path, "xb")
        self._digest = hashlib.sha256()

    def _unknown(self, what: str, known: set[str]) -> Invalid:
        return Invalid(f"There is no {what} of this name here.", field=self._name[:100] or "body",
                       hint=f"Parts that are read: {', '.join(sorted(known)) or 'none'}.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._value += data[start:end]
            if len(self._value) > MAX_FIELD_BYTES:
                raise TooLarge(f"The field {self._name} is longer than {MAX_FIELD_BYTES >> 10} KiB.", field=self._name)
            return
        block = data[start:end]
        self._file.bytes += len(block)
        if self._file.bytes > self._limit:
            raise TooLarge(f"The file is larger than {self._limit / 1e9:.3g} GB.", field=self._name)
        self._stream.write(block)
        self._digest.update(block)

    def _end(self) -> None:
        if self._file is None:
            try:
                self.upload.fields[self._name] = self._value.decode("utf-8")
            except UnicodeDecodeError:
                raise Invalid(f"The field {self._name} is not UTF-8.", field=self._name) from None
            return
        self._stream.close()
        self._stream = None
        self._file.sha256 = self._digest.hexdigest()
        self.upload.files[self._name] = self._file
        self._file = None

    def _finish(self) -> None:
        self.ended = True


def shown_name(filename: str) -> str:
    """The last part of a client's path without anything that is not printable; never used as a path."""
    last = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in last if c.isprintable()).strip()[:200] or "upload"
