"""Files for the states of a frozen prefix, shared by processes and safe against killed ones.

A folder holds `states.bin`, the states of one row after another, and `index.bin`, one record per row: the row's key,
the offset and number of bytes of its states, and their checksum. A record is written after its states and has a
checksum of its own, so a row that a killed process left incomplete is detected and computed again. Rows are read
through a memory map.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..files import size_text
from ..json_text import write_json

STATES, INDEX, ABOUT = "states.bin", "index.bin", "about.json"
KEY_BYTES = 16
_SPARE = 5 * 10**9  # bytes, or a twentieth of a small disk, that are left free
_RECORD = struct.Struct(f"<{KEY_BYTES}sQQII")  # key, offset, bytes, checksum of the states, checksum of the record


class PrefixStore:
    """Rows of states [tokens, hidden] by key, in `folder`, which is made if it does not exist.

    dtype, hidden: dtype and width of all rows.
    limit: bytes that this store and those beside it may take together. Stores that were not used for the longest time
        are deleted to stay below it.
    about: content of about.json, for people.

    failure: the reason why no more rows are written, in words (the disk is full, or the limit is reached); else None.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype, hidden: int, limit: int, about: dict | None = None):
        self.folder, self.dtype, self.hidden, self.limit = Path(folder), dtype, hidden, limit
        self.failure: str | None = None
        self._rows: dict[bytes, tuple[int, int, int]] = {}
        self._read_bytes = 0
        self._map: mmap.mmap | None = None
        self._guard = threading.RLock()
        self._lock = FileLock(self.folder.parent / f".{self.folder.name}.lock", thread_local=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / ABOUT).exists():
                write_json(self.folder / ABOUT, about or {})
            (self.folder / INDEX).touch()  # its modification time is that of the store's last use
        except OSError as error:
            self.failure = f"{self.folder} cannot be written ({error.strerror})"
        self._refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def has_all(self, keys: Iterable[bytes]) -> bool:
        return all(key in self._rows for key in keys)

    def read(self, key: bytes) -> Tensor | None:
        """Read a copy of a row's states; None if they are missing or damaged. Damaged states are forgotten."""
        with self._guard:
            place = self._rows.get(key)
            if place is None:
                return None
            start, size, checksum = place
            if self._map is None or len(self._map) < start + size:
                self._open_map()
            raw = self._map[start : start + size] if self._map is not None else b""
        if len(raw) != size or zlib.crc32(raw) != checksum:
            self._rows.pop(key, None)
            return None
        return torch.frombuffer(bytearray(raw), dtype=self.dtype).view(-1, self.hidden)

    def write(self, rows: Sequence[tuple[bytes, Tensor]]) -> None:
        """Append the rows that are not stored yet: (key, states [tokens, hidden] in the store's dtype, on any device).

        A lack of space raises nothing: `failure` then has the reason, and nothing more is written.
        """
        if self.failure is not None:
            return
        try:
            with self._guard, self._lock:
                self._refresh()
                rows = [(key, states) for key, states in rows if key not in self._rows]
                blocks = [states.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for _, states in rows]
                if not self._make_room(sum(map(len, blocks))):
                    self.failure = f"its limit of {self.limit / 2**30:.3g} GiB is reached"
                    return
                disk = shutil.disk_usage(self.folder)
                if disk.total and disk.free - sum(map(len, blocks)) < min(_SPARE, disk.total // 20):
                    self.failure = (f"the disk of {self.folder} has {size_text(disk.free)} left, which are for the "
                                    "run's own files")
                    return
                with (self.folder / STATES).open("ab") as states_file, (self.folder / INDEX).open("ab") as index_file:
                    records = []
                    start = states_file.tell()
                    for (key, _), block in zip(rows, blocks, strict=True):
                        states_file.write(block)
                        records.append(_record(key, start, len(block), zlib.crc32(block)))
                        start += len(block)
                    states_file.flush()
                    if gap := -index_file.tell() % _RECORD.size:  # a killed writer left a part of a record
                        index_file.write(b"\0" * gap)
                    index_file.write(b"".join(records))
                self._refresh()
        except OSError as error:
            self.failure = f"{self.folder} cannot be written ({error.strerror})"

    def close(self) -> None:
        with self._guard:
            if self._map is not None:
                self._map.close()
                self._map = None

    def _refresh(self) -> None:
        """Read the records that were added since the last call, also by other processes."""
        try:
            with (self.folder / INDEX).open("rb") as file:
                file.seek(self._read_bytes)
                new = file.read()
        except OSError:
            return
        size = (self.folder / STATES).stat().st_size if (self.folder / STATES).exists() else 0
        whole = len(new) - len(new) % _RECORD.size
        for start in range(0, whole, _RECORD.size):
            key, offset, length, checksum, own = _RECORD.unpack_from(new, start)
            fits = offset + length <= size and length > 0 and length % (self.hidden * self.dtype.itemsize) == 0
            if own == _record_checksum(key, offset, length, checksum) and fits:
                self._rows[key] = (offset, length, checksum)
        self._read_bytes += whole

    def _open_map(self) -> None:
        self.close()
        try:
            with (self.folder / STATES).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # an empty file has no map
            self._map = None

    def _make_room(self, wanted: int) -> bool:
        """Delete the least recently used stores until `wanted` more bytes fit. False if they do not fit even then."""
        sizes = {folder: _size(folder) for folder in self.folder.parent.iterdir() if _is_store(folder)}
        if sizes.get(self.folder, 0) + wanted > self.limit:
            return False
        others = sorted(sizes.keys() - {self.folder}, key=lambda folder: _used(folder))
        while sum(sizes.values()) + wanted > self.limit and others:
            oldest = others.pop(0)
            try:
                with FileLock(self.folder.parent / f".{oldest.name}.lock", timeout=0):
                    shutil.rmtree(oldest, ignore_errors=True)
                del sizes[oldest]
            except Timeout:  # somebody is writing to it
                continue
        return sum(sizes.values()) + wanted <= self.limit


def _record(key: bytes, offset: int, length: int, checksum: int) -> bytes:
    return _RECORD.pack(key, offset, length, checksum, _record_checksum(key, offset, length, checksum))


def _record_checksum(key: bytes, offset: int, length: int, checksum: int) -> int:
    return zlib.crc32(struct.pack(f"<{KEY_BYTES}sQQI", key, offset, length, checksum))


def _is_store(folder: Path) -> bool:
    """True if a folder holds a store and nothing else, so that it may be deleted."""
    if folder.is_symlink() or not (folder / ABOUT).is_file() or not (folder / INDEX).is_file():
        return False
    try:
        names = [file.name for file in folder.iterdir()]
    except FileNotFoundError:  # another process deletes it
        return False
    return all(name in (STATES, INDEX, ABOUT) or name.startswith(f".{ABOUT}.") for name in names)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder. Another process may be deleting them; missing files count as 0."""
    size = 0
    with suppress(FileNotFoundError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                size += file.stat().st_size
    return size


def _used(folder: Path) -> float:
    with suppress(FileNotFoundError):
        return (folder / INDEX).stat().st_mtime
    return 0.0
