"""A member's bytes as text: decoded block by block, so that a file of any size needs a few megabytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from minimind.data.foreign.encodings import detect_encoding
from minimind.data.foreign.members import Member, Stream
from minimind.errors import DataError

MAX_LINE_CHARS = 64 << 20
#: how far to look for a first character that is not ASCII
_SAMPLE_BYTES = 64 << 20


class Text:
    """The text of one member. ``encoding`` is what a mapping names, or found out; ``head`` its beginning, which is all
    of it where ``is_whole``."""

    def __init__(self, member: Member, encoding: str | None, is_partial: bool):
        self.member, self.is_partial = member, is_partial
        with member.open() as stream:
            sample, lines = stream.read(), 0
            if sample.startswith((b"PK\x03\x04", b"\x1f\x8b")):
                raise DataError(f"{member.name} is packed twice: there is an archive in it.",
                                hint="Unpack it once, and give what was inside.")
            more = stream.read()
            self.is_whole = not more
            while more and sample.isascii() and stream.unpacked < _SAMPLE_BYTES:
                lines += sample.count(b"\n")
                sample, more = more, stream.read()
        self.encoding = encoding or detect_encoding(sample, member.name, lines)
        self._stream: Stream | None = None
        self._opened: list[Stream] = []
        try:
            self.head = next(self.chunks(), "").lstrip("\ufeff")
        finally:
            self.close()

    def close(self) -> None:
        """Close what readers that were left in the middle have opened: an error's traceback may keep them alive."""
        while self._opened:
            self._opened.pop().__exit__()

    @property
    def position(self) -> int:
        return self._stream.position if self._stream else 0

    def chunks(self) -> Iterator[str]:
        """The text from its beginning, in pieces. Raises ``DataError`` at the first byte that is no text."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        lines = 0
        stream = self._stream = self.member.open()
        self._opened.append(stream)
        with stream:
            while True:
                block = stream.read()
                try:
                    text = decoder.decode(block, final=not block and not self.is_partial)
                except UnicodeDecodeError as error:
                    line = lines + error.object[:error.start].count(b"\n") + 1
                    raise DataError(f"{self.member.name} line {line} is not {self.encoding.upper()} (it has the byte "
                                    f"0x{error.object[error.start]:02x}).", line=line,
                                    hint="Save the whole file in one encoding, best in UTF-8.") from None
                if "\0" in text:
                    line = lines + text.count("\n", 0, text.index("\0")) + 1
                    raise DataError(f"{self.member.name} line {line} has a zero byte: this is not a text file.",
                                    line=line, hint="Give a jsonl, json, csv or txt file.")
                if text:
                    lines += text.count("\n")
                    yield text
                if not block:
                    return

    def lines(self) -> Iterator[str]:
        """Lines, each with a ``\\n`` at its end whatever the file has there."""
        number, rest = 0, ""
        for chunk in self.chunks():
            pieces = (rest + chunk).split("\n")
            rest = pieces.pop()
            for piece in pieces:
                number += 1
                yield piece.removesuffix("\r") + "\n"
            if len(rest) > MAX_LINE_CHARS:
                raise DataError(f"{self.member.name} line {number + 1} is longer than {MAX_LINE_CHARS >> 20} MiB.",
                                line=number + 1, hint="Write one row a line.")
        if rest and not self.is_partial:
            yield rest.removesuffix("\r") + "\n"
