"""Suites: the tasks of a run in four groups, the speciality and the three groups of versatility."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from ..data.faults import OnBadRow
from ..data.library import is_hub_id, is_saved, split_of
from ..data.rows import is_data_file
from ..errors import CofituneError
from ..yaml_text import read_yaml
from .tasks import NeedsGeneration, Task, needs_packages, read_task

VERSATILITY = ("knowledge", "reasoning", "instruction")
GROUPS = ("speciality", *VERSATILITY)
_SUITE_KEYS = (*GROUPS, "versatility", "limit", "generate")
_TASK_KEYS = {"path": (str, Path), "name": str, "limit": (int, NoneType), "chat": bool, "metric": str,
              "max_new_tokens": (int, NoneType)}


@dataclass(frozen=True)
class Suite:
    """Tasks by group. Each group has at least one task, and names are unique. notes: about files and rows
    that were left out."""

    speciality: Sequence[Task]
    knowledge: Sequence[Task]
    reasoning: Sequence[Task]
    instruction: Sequence[Task]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names: set[str] = set()
        for group in GROUPS:
            if not getattr(self, group):
                raise CofituneError(f"The suite has no task in the group {group}; name at least one data file for it.")
            for task in getattr(self, group):
                if task.name in names:
                    raise CofituneError(f"Two tasks of the suite are named {task.name}; give one another name.")
                names.add(task.name)

    def groups(self) -> dict[str, Sequence[Task]]:
        return {group: getattr(self, group) for group in GROUPS}

    def tasks(self) -> list[Task]:
        return [task for tasks in self.groups().values() for task in tasks]


def read_suite(
    source: str | Path | Mapping[str, Any],
    *,
    speciality: Any = None,
    limit: int | None = None,
    root: str | Path | None = None,
    generate: bool | None = None,
    on_bad_row: OnBadRow = "stop",
) -> Suite:
    """Read a suite from a folder, a YAML or JSON file, or such a file's mapping.

    - A folder has one subfolder per group: knowledge/*.jsonl, reasoning/*.jsonl, instruction/*.jsonl and, unless
      `speciality` is given, speciality/*.jsonl.
    - A mapping has the keys speciality, knowledge, reasoning and instruction. Each value is a path, a mapping (path,
      and optionally name, limit, chat, metric, max_new_tokens: see Task) or a list of these. A path may be a folder of
      data files. The key versatility, a folder as above or a mapping, can replace the last three keys. Paths are
      relative to `root`: by default the YAML file's folder, or the working directory.

    speciality: replaces that key; relative to the working directory.
    limit: take the first rows of each file without a limit of its own; also a key of the mapping.
    generate: read files that need generation (IFEval) instead of skipping them with a note; also a key of the mapping.
    on_bad_row: "skip" leaves bad rows out of the tasks, see `read_task`; the suite's notes say so.
    Raises CofituneError if data are missing or an entry is malformed.
    """
    source = source if isinstance(source, Mapping) else Path(source).expanduser()
    if isinstance(source, Mapping):
        entries, origin, root = dict(source), "The suite", Path(root or ".")
    elif Path(source).is_dir():
        entries, origin, root = _folder_groups(Path(source)), f"The suite folder {source}", Path(root or ".")
    else:
        entries, origin, root = _read(Path(source)), f"The suite {source}", Path(root or Path(source).parent)
    _refuse_unknown(entries, _SUITE_KEYS, origin)
    entries = _with_versatility(entries, root, origin)
    roots = dict.fromkeys(GROUPS, root)
    if speciality is not None:
        entries["speciality"], roots["speciality"] = speciality, Path(".")
    limit = limit if limit is not None else entries.get("limit")
    if limit is not None and type(limit) is not int:
        raise CofituneError(f"{origin} has the limit {limit!r}; it must be a whole number.")
    generate = generate if generate is not None else entries.get("generate", False)
    if not isinstance(generate, bool):
        raise CofituneError(f"{origin} has {generate!r} as 'generate'; it must be true or false.")
    notes: list[str] = []
    groups = {}
    for group in GROUPS:
        if not entries.get(group):
            raise CofituneError(f"{origin} has no data for the group {group}; its groups are {', '.join(GROUPS)}.")
        groups[group] = _read_group(group, entries[group], limit, roots[group], generate, notes,
                                    on_bad_row)
    return Suite(**groups, notes=tuple(notes))


def tasks_to_write(
    speciality: str | Path, versatility: str | Path | None = None, *, limit: int | None = None,
    versatility_limit: int | None = None, on_bad_row: OnBadRow = "stop",
) -> list[Task]:
    """Read the tasks for `generation_score`: the speciality, and the generated tasks of a versatility suite.

    speciality: a data file; `limit` takes its first rows. versatility: a folder or file as in `read_suite`.
    """
    needs_packages("The score of generated text", "sacrebleu", "rouge_score")
    if not versatility:
        return [read_task(speciality, limit=limit, on_bad_row=on_bad_row)]
    suite = read_suite(versatility, speciality={"path": speciality, "limit": limit}, limit=versatility_limit,
                       generate=True, on_bad_row=on_bad_row)
    return [*suite.speciality,
            *(task for group in VERSATILITY for task in getattr(suite, group) if task.is_generated)]


def _folder_groups(folder: Path) -> dict[str, Any]:
    return {group: folder.absolute() / group for group in GROUPS if (folder / group).is_dir()}


def _read(path: Path) -> dict[str, Any]:
    entries = read_yaml(path, "suite")
    if not isinstance(entries, dict):
        raise CofituneError(f"The suite {path} must be a mapping with the keys {', '.join(GROUPS)}.")
    return entries


def _with_versatility(entries: dict[str, Any], root: Path, origin: str) -> dict[str, Any]:
    """Move the groups under the key versatility to the top level."""
    nested = entries.pop("versatility", None)
    if nested is None:
        return entries
    if isinstance(nested, str | Path):
        nested = Path(nested).expanduser()
        if not (root / nested).is_dir():
            raise CofituneError(f"{origin} names the versatility folder {root / nested}, which does not exist.")
        nested = {group: path for group, path in _folder_groups(root / nested).items() if group in VERSATILITY}
    if not isinstance(nested, Mapping):
        raise CofituneError(f"{origin} has under versatility neither a folder nor the groups {', '.join(VERSATILITY)}.")
    _refuse_unknown(nested, VERSATILITY, f"{origin}, under versatility,")
    return {**nested, **entries}


def _read_group(
    group: str, entry: Any, limit: int | None, root: Path, generate: bool, notes: list[str], on_bad_row: OnBadRow,
) -> list[Task]:
    tasks: list[Task] = []
    for one in entry if isinstance(entry, list | tuple) else [entry]:
        options = {"path": one} if isinstance(one, str | Path) else one
        if not isinstance(options, Mapping) or "path" not in options:
            raise CofituneError(f"The group {group} has the entry {one!r}; it must be a path or a mapping with a path.")
        _refuse_unknown(options, list(_TASK_KEYS), f"The group {group}")
        for key, value in options.items():
            if not isinstance(value, _TASK_KEYS[key]) or (key != "chat" and isinstance(value, bool)):
                raise CofituneError(f"The group {group} has {value!r} as {key!r}, which is of the wrong type.")
        options = {"limit": limit, **options}
        path = os.path.expanduser(options.pop("path"))
        path = Path(path) if is_hub_id(split_of(path)[0]) and not (root / path).exists() else root / path
        for file in _data_files(path) if path.is_dir() and not is_saved(path) else [path]:
            try:
                tasks.append(read_task(file, **options, generate=generate, on_bad_row=on_bad_row))
                notes += tasks[-1].notes
            except NeedsGeneration as reason:
                notes.append(f"Passed over: {reason}")
    if not tasks:
        raise CofituneError(f"The group {group} has no task that can be scored at {entry}; add a data file.")
    return tasks


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and is_data_file(path))


def _refuse_unknown(entries: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in entries:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the known ones are {', '.join(known)}."
            raise CofituneError(f"{where} has the unknown key {key!r}; {hint}")
