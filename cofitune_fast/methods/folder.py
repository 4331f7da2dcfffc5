"""The folder of finished runs, of a comparison or of the main job: what they depend on, and a file for each.

    identity.json      base, data and settings; runs of others are refused
    runs/ID.json       a run with its per-item values, written when it is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import CofituneError
from ..files import read_json, writable_folder, write_json
from ..search import differences
from ..trials import TrialData, TrialSetup, Workbench
from ..trials.workbench import content_digest
from .entries import without
from .run import SPLITS
from .runs import Run

VERSION = 1


class RunFolder:
    """As a context it holds the folder's lock, which the system frees when the process dies.

    identity: {"settings", "tasks": {name: what its rows are}, "general"}. Settings must be those of before, and so must
    a task that was there before, and general rows if there were any; new tasks may come.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]):
        self.path = writable_folder(path)
        self._identity = json.loads(json.dumps(identity))  # as it will be read back: tuples become lists
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
        """The finished run without its items; a method under a new name takes over what it had under the old one."""
        finished = finished_run(self.path, run)
        if finished is None:
            return None
        path = self.file(run.id)
        if finished != path:
            write_json(path, {**self._read(finished), **run.to_dict()})
        return without(self._read(path))

    def read(self, name: str) -> dict[str, Any]:
        """A finished run with its items."""
        return self._read(self.file(name))

    def keep(self, name: str, entry: Mapping[str, Any]) -> None:
        """Write a finished run, items and all; it is there whole or not at all."""
        write_json(self.file(name), entry)

    def file(self, name: str) -> Path:
        return _file(self.path, name)

    def _read(self, path: Path) -> dict[str, Any]:
        return read_json(path, "finished run")

    def _open(self) -> None:
        path = self.path / "identity.json"
        now = {"version": VERSION, **self._identity}
        if path.is_file():
            was = read_json(path, "identity of a folder of runs")
            if was.get("version") != VERSION:
                raise CofituneError(f"The runs in {self.path} are of version {was.get('version')}, this program writes "
                                    f"{VERSION}; choose another output folder.")
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
    """The identity of a folder: what its runs depend on besides their recipes, rates and seeds.

    Data stand there by their digests, so that they may be moved. importance: arguments of `Workbench.importance`;
    general: a file of general rows.
    """
    shared, files = bench.with_data(next(iter(tasks.values()))), {"versatility_valid", "versatility_test"}
    rows = {}
    for name, data in tasks.items():
        task = bench.with_data(data)
        rows[name] = {
            **{key: getattr(data, key) for key in ("max_length", "limit", "metric")},
            "sha256": {key: value for key, value in task.data_digests.items() if key not in files},
        }
    return {
        "settings": {
            "base": bench.base.fingerprint, "dtype": bench.base.dtype,
            "versatility": {"limit": shared.data.versatility_limit,
                            "sha256": {key: shared.data_digests.get(key) for key in sorted(files)}},
            "training": {key: value for key, value in setup.training.items()
                         if key not in ("learning_rate", "seed", "data_seed")},
            "importance": dict(importance), "drift_rows": drift_rows, "storage": setup.storage,
            "packing": setup.memory.packing, "gradient_release": setup.memory.gradient_release,
            **({"splits": list(splits)} if tuple(splits) != SPLITS else {}),
        },
        "tasks": rows,
        "general": {"sha256": content_digest(Path(general))} if general else None,
    }


def finished_run(folder: Path, run: Run) -> Path | None:
    """The file in a comparison's folder of what was trained as `run` would be, under whatever name; None: not yet."""
    path = _file(folder, run.id)
    return path if path.is_file() else min(path.parent.glob(f"*-{run.digest}.json"), default=None)


def _file(folder: Path, name: str) -> Path:
    return folder / "runs" / f"{name}.json"
