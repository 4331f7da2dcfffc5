"""Journal of a search: JSON Lines, append-only; every record is on disk before the next step begins."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import CofituneError
from ..files import make_folder, sync, writing
from ..json_text import flaw, parse_json
from ..training import differences

VERSION = 4


class Journal:
    """Finished steps of a search: `records`, each with its "kind".

    The first line of the file holds the settings; reopening it with other settings is refused. A process killed while
    writing leaves an incomplete last line, which is cut off on opening. A lock file keeps a second search out of the
    folder. The operating system frees the lock when the process dies.

    Raises:
        CofituneError: another search holds the lock, the settings differ, or the journal is broken.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.path = Path(folder) / "journal.jsonl"
        make_folder(self.path.parent)
        self._lock = FileLock(self.path.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CofituneError(
                f"Another search is running in {self.path.parent}; wait for it or choose another output folder."
            ) from None
        try:
            self.records = self._open(settings)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def append(self, kind: str, record: dict[str, Any]) -> None:
        """Write one record; it is on the disk when this returns."""
        record = {"kind": kind, **record}
        self._write(record)
        self.records.append(record)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]

    def _open(self, settings: dict[str, Any]) -> list[dict[str, Any]]:
        settings = json.loads(json.dumps(settings))  # compare them as JSON reads them back: tuples become lists
        records = self._read()
        if not records:
            self._write({"kind": "search", "version": VERSION, "settings": settings})
            return []
        header, *rest = records
        if header.get("kind") != "search" or header.get("version") != VERSION:
            raise CofituneError(
                f"The journal {self.path} is of version {header.get('version')}, this program writes {VERSION}; "
                "choose another output folder."
            )
        if problem := flaw(header, {"settings": dict}):
            raise CofituneError(f"Line 1 of the journal {self.path} is broken: {problem}; choose another "
                                "output folder.")
        changed = differences(header["settings"], settings)
        if changed:
            raise CofituneError(
                f"The search in {self.path.parent} was begun with other settings ({'; '.join(changed)}); restore them "
                "or choose another output folder."
            )
        return rest

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("rb+") as file:
                file.truncate(len(whole))
        records = []
        for number, line in enumerate(whole.splitlines(), 1):
            what = f"Line {number} of the journal {self.path} is broken: it"
            records.append(parse_json(line, what, {"kind": str}, "remove that line or choose another folder"))
        return records

    def _write(self, record: dict[str, Any]) -> None:
        new = not self.path.exists()
        with writing(self.path):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.path.parent)
