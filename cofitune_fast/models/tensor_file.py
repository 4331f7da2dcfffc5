"""safetensors files byte by byte: their headers, and copies in which some tensors are others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CofituneError

_MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor's place in a file: the safetensors name of its dtype, its shape, its first byte and the one after."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of an ordinary floating-point tensor; None for any other."""
        return _DTYPES.get(self.kind)


@dataclass(frozen=True)
class Header:
    """Header of a safetensors file. entries: by name, in the order of their bytes. start: where the bytes begin."""

    raw: bytes
    metadata: dict[str, str] | None
    entries: dict[str, Entry]

    @property
    def start(self) -> int:
        return 8 + len(self.raw)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.start + max((entry.end for entry in self.entries.values()), default=0)


def read_header(file: Path) -> Header:
    """Read the header of a safetensors file and hold the file's size against it.

    Raises:
        CofituneError: the file is a Git LFS pointer, cut off, or no safetensors file.
    """
    refuse_pointer(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(_MOST_HEADER_BYTES, size - 8):
                raise ValueError("its header is cut off")
            raw = opened.read(length)
        content: dict[str, Any] = json.loads(raw)
        metadata = content.pop("__metadata__", None)
        entries = {name: Entry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
                   for name, value in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CofituneError(f"The weights {file} cannot be read ({error}); fetch or copy the file again.") from None
    header = Header(raw, metadata, dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))))
    if size != header.size:
        raise CofituneError(f"The weights {file} have {size:,} bytes, and by their header they have {header.size:,}: "
                            "the download or the copy broke off; fetch or copy the file again.")
    return header


def refuse_pointer(file: Path) -> None:
    """Refuse the small text that Git leaves in the place of a large file that was not fetched."""
    with file.open("rb") as opened:
        if opened.read(24) == b"version https://git-lfs.":
            raise CofituneError(f"{file} is a Git LFS pointer and not the file itself: run `git lfs pull` in "
                                f"{file.parent}, or fetch the model anew.")


def rewrite(
    source: Path, target: Path, replaced: Mapping[str, Callable[[Tensor], Tensor]], dtypes: Mapping[str, torch.dtype],
) -> None:
    """Copy a safetensors file with other values for some tensors, one tensor in memory at a time.

    Order, names, shapes and metadata stay. Bytes of all other tensors stay as well, and so does the header unless a
    dtype changes.

    replaced: name -> function of the old tensor that returns the new one. dtypes: name -> dtype of floating-point
    tensors that are to be written in another one.
    """
    header = read_header(source)
    converted = {name: dtype for name, dtype in dtypes.items()
                 if (entry := header.entries.get(name)) and entry.dtype not in (None, dtype)}
    raw = _with_dtypes(header, converted) if converted else header.raw
    with source.open("rb") as old, target.open("wb") as new:
        new.write(len(raw).to_bytes(8, "little") + raw)
        for name, entry in header.entries.items():
            old.seek(header.start + entry.begin)
            if name not in replaced and name not in converted:
                _copy(old, new, entry.end - entry.begin)
                continue
            tensor = _read(old, entry)
            dtype = converted.get(name, tensor.dtype)
            if name in replaced:
                tensor = replaced[name](tensor)
            new.write(tensor.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy())


def with_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file with other metadata; the bytes of its tensors stay as they are."""
    header = read_header(source)
    content = {"__metadata__": dict(metadata), **{name: entry for name, entry in json.loads(header.raw).items()
                                                  if name != "__metadata__"}}
    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(len(raw).to_bytes(8, "little") + raw)
        old.seek(header.start)
        _copy(old, new, header.size - header.start)


def _with_dtypes(header: Header, converted: dict[str, torch.dtype]) -> bytes:
    content: dict[str, Any] = {} if header.metadata is None else {"__metadata__": header.metadata}
    place = 0
    for name, entry in header.entries.items():
        kind, size = entry.kind, entry.end - entry.begin
        if name in converted:
            kind, size = _NAMES[converted[name]], size // entry.dtype.itemsize * converted[name].itemsize
        content[name] = {"dtype": kind, "shape": list(entry.shape), "data_offsets": [place, place + size]}
        place += size
    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % 8)  # tensors begin at a multiple of 8 bytes


def _read(file: BinaryIO, entry: Entry) -> Tensor:
    if entry.dtype is None:
        raise CofituneError(f"A tensor of the kind {entry.kind} cannot be trained; name a full-precision base.")
    raw = bytearray(file.read(entry.end - entry.begin))
    return torch.frombuffer(raw, dtype=entry.dtype).reshape(entry.shape) if raw else torch.empty(entry.shape,
                                                                                                 dtype=entry.dtype)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size > 0:
        block = source.read(min(size, 16 << 20))
        if not block:
            raise CofituneError(f"{source.name} became shorter while it was read; copy the base to a disk that stays.")
        target.write(block)
        size -= len(block)
