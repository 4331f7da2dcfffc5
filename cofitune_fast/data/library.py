"""Rows of Parquet and Arrow files, of saved `datasets` folders and of data sets on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import CofituneError, first_line
from .row import Row

TABLES = (".parquet", ".arrow")
SIDE_FILES = (".ds_store", "thumbs.db", "desktop.ini")
"""Names in lower case of files that systems write into folders."""
NOTES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json", "metadata.json")
"""Names of files in which libraries write about the data beside them."""
_CONFIG_AND_SPLIT = re.compile(r"(?:([^:\[]+):)?(.*)", re.DOTALL)  # a slice such as train[:100] has a colon too
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_ENDINGS = re.compile(r"\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow|xlsx?|gz|bz2|xz|zst|zip|ya?ml)$", re.IGNORECASE)


def split_of(path: str | Path) -> tuple[str, str | None]:
    """Part "FOLDER:SPLIT" or "OWNER/NAME:SPLIT" into the place and the split. What exists under its name has no split.

    The split of a hub id may be "CONFIG:SPLIT".
    """
    text = str(path)
    if Path(text).exists():
        return text, None
    parts = text.split(":")
    for count in (len(parts) - 1, 1):  # the longest name of a folder first: on Windows a drive has a colon
        place = ":".join(parts[:count])
        if place and (Path(place).is_dir() or is_hub_id(place)):
            return place, ":".join(parts[count:])
    return text, None


def is_hub_id(text: str) -> bool:
    """Whether a text can only be the id OWNER/NAME of a data set on the hub: nothing on the disk has that name."""
    return bool(_HUB_ID.fullmatch(text)) and not _FILE_ENDINGS.search(text) and not Path(text).exists()


def is_hidden(path: Path) -> bool:
    """Whether a file lies in a hidden folder or is one that a system keeps beside others, such as ._x and .DS_Store."""
    return any(part.startswith((".", "~$")) for part in path.parts if part != "..") or path.name.lower() in SIDE_FILES


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of the datasets library wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def table_file_rows(path: Path, limit: int | None) -> list[Row]:
    """Read the first rows of a Parquet or Arrow file."""
    arrow = _package("pyarrow", str(path))
    try:
        if path.suffix.lower() == ".parquet":
            parquet = _package("pyarrow.parquet", str(path))
            with parquet.ParquetFile(path) as file:
                return _rows(path, (row for batch in file.iter_batches() for row in batch.to_pylist()), limit)
        ipc = _package("pyarrow.ipc", str(path))
        with arrow.OSFile(str(path)) as source:
            try:
                table = ipc.open_file(source).read_all()
            except arrow.ArrowInvalid:  # the stream format, in which the datasets library writes
                source.seek(0)
                table = ipc.open_stream(source).read_all()
        return _rows(path, table.slice(0, limit).to_pylist(), None)
    except (arrow.ArrowException, OSError) as error:
        raise CofituneError(f"{path} cannot be read ({first_line(error)}).") from None


def saved_rows(folder: Path, split: str | None, limit: int | None) -> list[Row]:
    """Read the first rows of a folder that `save_to_disk` of the datasets library wrote."""
    library = _package("datasets", str(folder))
    try:
        loaded = library.load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of many kinds for a damaged folder
        raise CofituneError(f"{folder} cannot be read by the datasets library ({first_line(error)}).") from None
    return _split_rows(loaded, str(folder), split, limit)


def hub_rows(name: str, split: str | None, limit: int | None) -> list[Row]:
    """Read the first rows of a data set on the hub, or of its copy in the library's cache.

    split: "SPLIT", as `datasets.load_dataset` takes it, or "CONFIG:SPLIT"; None: the only split.
    """
    library = _package("datasets", f"There is no file or folder {name}, and a data set of the hub")
    config, part = _CONFIG_AND_SPLIT.fullmatch(split or "").groups()
    try:
        loaded = library.load_dataset(name, config, split=part or None)
    except Exception as error:  # no network, no such data set, several configurations, a bad split: of many kinds
        raise CofituneError(
            f"There is no file or folder {name}, and as a data set of the hub it cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}); name it OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT."
        ) from None
    return _rows(f"{name}:{split}", loaded, limit) if part else _split_rows(loaded, name, None, limit)


def _split_rows(loaded: Any, name: str, split: str | None, limit: int | None) -> list[Row]:
    """Take a split of a data set by its name; without one, the only split."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise CofituneError(f"{name} has no splits; leave {split} out.")
        return _rows(name, loaded, limit)
    if split is None and len(loaded) == 1:
        split = next(iter(loaded))
    if split not in loaded:
        lacking = f"has no split {split}" if split else "has several splits"
        raise CofituneError(f"{name} {lacking}; add one of {', '.join(loaded)}, as in {name}:{next(iter(loaded))}.")
    return _rows(f"{name}:{split}", loaded[split], limit)


def _rows(place: Any, rows: Iterable[dict[str, Any]], limit: int | None) -> list[Row]:
    return [Row({name: _without_null(value) for name, value in fields.items()}, f"{place}:row {number}")
            for number, fields in enumerate(islice(rows, limit), 1)]


def _without_null(value: Any) -> Any:
    """Leave out the nulls with which a table fills the keys that an object lacks and the objects of other rows have."""
    if isinstance(value, dict):
        return {key: _without_null(entry) for key, entry in value.items() if entry is not None}
    return [_without_null(entry) for entry in value] if isinstance(value, list) else value


def _package(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise CofituneError(f"{what} is read by the package {name.partition('.')[0]}, which is not installed: "
                            "pip install 'cofitune-fast[data]'.") from None
