"""Folder of finished runs, of a comparison or of the main job: its identity, and one file per run.

    identity.json      base, data and settings; runs with another identity are refused
    runs/ID.json       a run with its per-item values, written when it is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import CofituneError
from ..files import writable_folder
from ..json_text import read_json, write_json
from ..training import decisive, differences
from ..trials import TrialData, TrialSetup, Workbench
from ..trials.data import content_digest
from .entries import without
from .run import SPLITS
from .runs import Run

VERSION = 1


class RunFolder:
    """Folder of finished runs; as a context manager it holds the folder's lock.

    The operating system frees the lock when the process dies.

    Args:
        identity: {"settings", "tasks": {name: digests of its rows}, "general"}. Settings, known tasks and known general
            rows must be those of the earlier runs; new tasks may be added.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]):
        self.path = writable_folder(path)
        self._identity = json.loads(json.dumps(identity))  # compare it as JSON reads it back: tuples become lists
        self._lock = FileLock(self.path / "runs.lock")

    def __enter__(self) -> RunFolder:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CofituneError(f"Another run is working in {self.path}; wait for it or choose another output "
                                "folder.") from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def find(self, run: Run) -> dict[str, Any] | None:
        """Return the finished run without its items, or None.

        A run that was made under another method name is copied to the new name.
        """
        finished = finished_run(self.path, run)
        if finished is None:
            return None
        path = self.file(run.id)
        if finished != path:
            write_json(path, {**self._read(finished), **run.to_dict()})
        return without(self._read(path))

    def read(self, name: str) -> dict[str, Any]:
        """Read a finished run with its items."""
        return self._read(self.file(name))

    def keep(self, name: str, entry: Mapping[str, Any]) -> None:
        """Write a finished run with its items; the file is complete or absent."""
        write_json(self.file(name), entry)

    def file(self, name: str) -> Path:
        return run_file(self.path, name)

    def _read(self, path: Path) -> dict[str, Any]:
        return read_json(path, "finished run", dict)

    def _open(self) -> None:
        path = self.path / "identity.json"
        now = {"version": VERSION, **self._identity}
        if path.is_file():
            was = read_json(path, "identity of a folder of runs", {
                "version": object, "settings": {"training": dict}, "tasks": {str: dict}, "general": (dict, type(None))})
            if was.get("version") != VERSION:
                raise CofituneError(f"The runs in {self.path} are of version {was.get('version')}, this program writes "
                                    f"{VERSION}; choose another output folder.")
            was["settings"]["training"] = decisive(was["settings"]["training"])  # older ones hold all of it
            was["settings"].setdefault("drift_rows", 0)  # written before the drift was measured
            tasks = {**was["tasks"], **now["tasks"]}
            changed = differences(was["settings"], now["settings"])
            changed += [text for name in was["tasks"] for text in differences(was["tasks"][name], tasks[name], name)]
            if was["general"] and now["general"]:
                changed += differences(was["general"], now["general"], "general")
            if changed:
                raise CofituneError(f"What lies in {self.path} was begun with another base, other data or other "
                                    f"settings ({'; '.join(changed)}); restore them or choose another output folder.")
            now = {**now, "tasks": tasks, "general": now["general"] or was["general"]}
        write_json(path, now)


def folder_identity(
    bench: Workbench, setup: TrialSetup, tasks: Mapping[str, TrialData], importance: Mapping[str, Any], *,
    general: str | None = None, drift_rows: int = 0, splits: Sequence[str] = SPLITS,
) -> dict[str, Any]:
    """Return the identity of a folder: everything its runs depend on besides recipe, rate and seed.

    Data files count by their SHA-256, so that they may be moved.

    Args:
        importance: arguments of `Workbench.importance`.
        general: a file of general rows.
    """
    shared, files = bench.with_data(next(iter(tasks.values()))), {"versatility_valid", "versatility_test"}
    rows = {}
    for name, data in tasks.items():
        task = bench.with_data(data)
        rows[name] = {
            **{key: getattr(data, key) for key in ("max_length", "limit", "metric")},
            "sha256": {key: value for key, value in task.data_digests.items() if key not in files},
            **task.row_settings,
        }
    return {
        "settings": {
            "base": bench.base.fingerprint, "dtype": bench.base.dtype,
            "versatility": {"limit": shared.data.versatility_limit,
                            "sha256": {key: shared.data_digests.get(key) for key in sorted(files)}},
            "training": {key: value for key, value in decisive(setup.training).items()
                         if key not in ("learning_rate", "seed", "data_seed")},
            "importance": dict(importance), "drift_rows": drift_rows, "storage": setup.storage,
            "packing": setup.memory.packing, "gradient_release": setup.memory.gradient_release,
            **({"splits": list(splits)} if tuple(splits) != SPLITS else {}),
            **({"roles": bench.roles} if bench.roles else {}),
        },
        "tasks": rows,
        "general": {"sha256": content_digest(Path(general))} if general else None,
    }


def finished_run(folder: Path, run: Run) -> Path | None:
    """Return the file of a finished run that trained and scored the same, under whatever name; None if there is none.
    """
    path = run_file(folder, run.id)
    return path if path.is_file() else min(path.parent.glob(f"*-{run.digest}.json"), default=None)


def run_file(folder: Path, name: str) -> Path:
    """Return the path of a finished run's file in a folder of runs."""
    return folder / "runs" / f"{name}.json"
