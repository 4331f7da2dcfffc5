"""Read a data file as text: decompressed, and decoded by its byte order mark or as UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from pathlib import Path

from ..errors import CofituneError

COMPRESSED = (".gz", ".bz2", ".xz")
_OPENERS = ((b"\x1f\x8b", gzip.decompress), (b"BZh", bz2.decompress), (b"\xfd7zXZ\0", lzma.decompress))
_ARCHIVES = ((b"\x28\xb5\x2f\xfd", "zstd -d"), (b"PK\x03\x04", "unzip"))
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; it may be compressed.

    Bytes that are not UTF-8 are kept as lone surrogates (`surrogateescape`), so that their rows can be named.

    Raises:
        CofituneError: the file is missing, cannot be read or unpacked, or is not text.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise CofituneError(f"The data file {path} does not exist.") from None
    except OSError as error:
        raise CofituneError(f"The data file {path} cannot be read ({error.strerror}).") from None
    for mark, tool in _ARCHIVES:
        if raw.startswith(mark):
            raise CofituneError(f"{path} is packed in a way that is not read here; unpack it first ({tool}).")
    for mark, unpack in _OPENERS:
        if raw.startswith(mark):
            try:
                raw = unpack(raw)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise CofituneError(f"{path} cannot be unpacked ({error}); it is damaged or cut short.") from None
    encoding = next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), "utf-8")
    head = raw[:4096]
    if encoding == "utf-8" and head.count(0) * 4 > len(head):
        raise CofituneError(f"{path} is not text in UTF-8: it holds NUL bytes, as UTF-16 without a byte order mark or "
                            "a binary file does; save it as UTF-8.")
    try:
        return raw.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise CofituneError(f"{path} begins with the mark of {encoding.upper()} but is damaged ({error.reason} at byte "
                            f"{error.start}); save it as UTF-8.") from None


def bad_bytes(text: str) -> str | None:
    """Say which bytes of a text from `read_text` are not UTF-8 and how to convert them; None if there are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = bytes([ord(text[error.start]) & 0xFF])
        try:
            guess = f", which would be {byte.decode('cp1252')!r} in Windows-1252"
        except UnicodeDecodeError:
            guess = ""
        return (f"is not valid UTF-8 (byte 0x{byte.hex()}{guess}); save the file in UTF-8, such as by "
                "`iconv -f CP1252 -t UTF-8 OLD > NEW`.")
    return None
