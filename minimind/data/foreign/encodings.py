"""Which encoding a file has, from its bytes: a byte order mark, then UTF-8, then GB18030 or Big5 if it reads so."""

from __future__ import annotations

import codecs
import re

from minimind.errors import DataError

#: what a mapping may name, for the files that detection gets wrong
ENCODINGS = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "gbk", "big5", "shift_jis", "euc-jp",
             "euc-kr", "cp1252", "latin-1", "cp1251", "koi8-r")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
#: by encoding: of its characters that are not ASCII, how many must be common ideographs or punctuation, how many there
#: must be, and the two-byte codes of its common ideographs. Latin-1 read as either has nearly none.
_CHINESE = {"gb18030": (0.4, 1, (0xB0A1, 0xF7FE)), "big5": (0.8, 3, (0xA440, 0xC67E))}
_JUDGED_BYTES = 200_000
#: so many characters that are not ASCII in front of a byte that does not fit are judged without what follows it
_ENOUGH = 50
_PUNCTUATION = frozenset("—―–‘’“”…‥、。〈〉《》「」『』【】〔〕·～！（），：；？．－￣％＋＝")


def detect_encoding(sample: bytes, name: str, lines_before: int = 0) -> str:
    """The encoding of a file by its first bytes, or by the first ones that are not ASCII, ``lines_before`` lines below
    its beginning. ``sample`` may end inside a character.

    Raises ``DataError`` where it is none that can be told apart with certainty.
    """
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"
    except UnicodeDecodeError as error:
        line, byte = lines_before + sample.count(b"\n", 0, error.start) + 1, sample[error.start]
    first = re.search(rb"[\x80-\xff]", sample).start()
    likely = {encoding: _chinese_share(sample[first:first + _JUDGED_BYTES], encoding) for encoding in _CHINESE}
    best = max(likely, key=lambda encoding: likely[encoding])
    if likely[best] > 0:
        return best
    raise DataError(f"{name} line {line} is not UTF-8 (it has the byte 0x{byte:02x}), and it does not read as "
                    "GB18030 or Big5.", line=line,
                    hint='Save the file as UTF-8, or name its encoding in a mapping, such as {"encoding": "cp1252"}.')


def _chinese_share(sample: bytes, encoding: str) -> float:
    """How much of what is not ASCII is what Chinese texts consist of; 0 where that is too little."""
    least, count, (low, high) = _CHINESE[encoding]
    try:
        text, fewest = codecs.getincrementaldecoder(encoding)().decode(sample), count
    except UnicodeDecodeError as error:  # one broken row: whoever reads on will name its line
        text, fewest = sample[:error.start].decode(encoding), _ENOUGH
    special = [c for c in text if not c.isascii()]

    def is_common(character: str) -> bool:
        code = int.from_bytes(character.encode(encoding))
        return character in _PUNCTUATION or ("\u4e00" <= character <= "\u9fff" and low <= code <= high
                                             and (encoding != "gb18030" or code & 0xFF >= 0xA1))

    share = sum(map(is_common, special)) / len(special) if special else 0.0
    return share if share >= least and len(special) >= fewest else 0.0


def is_plain_utf8(sample: bytes) -> bool:
    """Whether ``sample`` is the beginning of a file that needs no decoding of its own."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def said(encoding: str) -> str | None:
    """A warning for an encoding that was assumed; None for UTF-8, which needs no words."""
    if encoding.startswith("utf-8"):
        return None
    name = "GB18030 (GBK)" if encoding == "gb18030" else encoding.upper()
    return f"read as {name}, because it is not UTF-8."
