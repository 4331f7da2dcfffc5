"""Read the rows of a data file, a folder of data files or a data set of the hub, each with its place."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from .decode import COMPRESSED, bad_bytes, read_text
from .faults import Faults, OnBadRow, RowFault
from .library import SIDE_FILES, TABLES, hub_rows, is_hidden, is_hub_id, is_saved, saved_rows, split_of, table_file_rows
from .row import Row, type_name
from .tables import table_rows

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


def read_rows(path: str | Path, limit: int | None = None, on_bad_row: OnBadRow = "stop") -> list[Row]:
    """Read the first `limit` rows (None: all) of data.

    - A JSON, JSON Lines, CSV or TSV file in UTF-8, or in UTF-16 with a byte order mark; also compressed (.gz, .bz2,
      .xz). JSON is a list of objects or `{"data": [...]}`. A `.json` file may also hold JSON Lines, and a `.jsonl` file
      JSON. CSV and TSV need a header line, and every value is a string. Blank lines are skipped.
    - A Parquet or Arrow file, a folder written by `datasets.save_to_disk`, and the id of a data set on the hub, all by
      the `datasets` library.
    - A folder with the data files of one split.

    A split is named after a colon, "FOLDER:SPLIT", "OWNER/NAME:SPLIT" or "OWNER/NAME:CONFIG:SPLIT".

    Args:
        on_bad_row: "skip" leaves rows that cannot be read out of the first `limit` rows, and logs how many.

    Raises:
        CofituneError: the data are missing, empty, of another kind or cannot be read as a whole; or rows are broken:
            one sentence counts them all.
    """
    faults = Faults(on_bad_row)
    rows = collect_rows(path, limit, faults)
    faults.settle(len(rows) + len(faults), len(rows))
    return rows


def collect_rows(path: str | Path, limit: int | None, faults: Faults) -> list[Row]:
    """Read rows as `read_rows` does; rows that cannot be read are added to `faults`, and nothing is settled."""
    if limit is not None and limit < 1:
        raise CofituneError(f"The row limit for {path} is {limit}; it must be at least 1.")
    place, split = split_of(path)
    if is_hub_id(place):
        rows = hub_rows(place, split, limit)
    elif Path(place).is_dir():
        rows = _folder_rows(Path(place), split, limit, faults)
    else:
        rows = _file_rows(Path(path), limit, faults)
    if not rows and not faults:
        raise CofituneError(f"The data file {path} is empty; it needs at least one row (in CSV, after the header).")
    return rows


def is_data_file(path: Path) -> bool:
    """Whether a file is one that `read_rows` reads by its ending; files that a system keeps beside others are not."""
    return kind_of(path) in (*SUFFIXES, *TABLES) and not is_hidden(Path(path.name))


def kind_of(path: Path) -> str:
    """Return the ending of a file's name in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _file_rows(path: Path, limit: int | None, faults: Faults) -> list[Row]:
    kind = kind_of(path)
    if path.name.startswith("._") or path.name.lower() in SIDE_FILES:
        raise CofituneError(f"{path} is a file that the operating system keeps beside the data; name the data file.")
    if kind not in (*SUFFIXES, *TABLES) and path.is_file():
        if ".zst" in path.suffixes:
            raise CofituneError(f"{path} is packed in a way that is not read here; unpack it first (zstd -d).")
        known = f"{', '.join((*SUFFIXES, *TABLES))}, all but the last two also with {', '.join(COMPRESSED)}"
        raise CofituneError(f"{path} is not a data file known here; the known endings are {known}.")
    if kind in TABLES and path.is_file():
        return table_file_rows(path, limit)
    text = read_text(path)
    if not text.strip():
        return []
    if kind in (".csv", ".tsv"):
        return table_rows(path, text, limit, faults)
    return _json_rows(path, kind, text, limit, faults)


def _folder_rows(folder: Path, split: str | None, limit: int | None, faults: Faults) -> list[Row]:
    """Read a folder that `save_to_disk` wrote, or the data files of one split of any other folder."""
    if is_saved(folder):
        return saved_rows(folder, split, limit)
    inside = [file for place in (folder, folder / "data") if place.is_dir() for file in sorted(place.iterdir())]
    files = [file for file in inside if is_data_file(file)]
    if not files:
        raise CofituneError(f"{folder} is a folder without data files ({', '.join((*SUFFIXES, *TABLES))}).")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_name(file), []).append(file)
    if split is None and len(splits) > 1:
        raise CofituneError(f"{folder} is a folder; name one data file in it, or add one of its splits, as in "
                            f"{folder}:{next(iter(splits))} (it has {', '.join(splits)}).")
    if split is not None and split not in splits:
        raise CofituneError(f"{folder} has no split {split}; it has {', '.join(splits)}.")
    rows: list[Row] = []
    for file in splits[split] if split is not None else files:
        left = None if limit is None else limit - len(rows) - len(faults)
        if left != 0:
            rows += _file_rows(file, left, faults)
    return rows


def _split_name(file: Path) -> str:
    """Name of a file without its endings and without the numbers of a shard, as in train-00000-of-00002.parquet."""
    stem = file.name.split(".")[0]
    words = stem.replace("_", "-").split("-")
    while len(words) > 1 and (words[-1].isdigit() or words[-1] == "of"):
        words.pop()
    return "-".join(words)


def _json_rows(path: Path, kind: str, text: str, limit: int | None, faults: Faults) -> list[Row]:
    reader = _Json()
    whole = kind == ".json" or text.lstrip().startswith("[") or _is_one_object(text)
    listed = _json_list(path, text, reader) if whole else None
    rows = []
    if listed is not None:
        for number, fields in enumerate(islice(listed, limit), 1):
            try:
                rows.append(reader.row(fields, f"{path}:row {number}"))
            except RowFault as fault:
                faults.add(fault)
        return rows
    # str.splitlines would also split at U+2028 and similar characters, which JSON strings may contain unescaped
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line and not line.isspace())
    for number, line in islice(lines, limit):
        try:
            rows.append(_json_line(line, f"{path}:{number}", reader))
        except RowFault as fault:
            faults.add(fault)
    return rows


def _json_line(line: str, where: str, reader: _Json) -> Row:
    problem = bad_bytes(line)
    if problem:
        raise RowFault("text that is not UTF-8", where, f"{where} {problem}")
    try:
        fields = reader.decode(line.removeprefix("\ufeff"))  # the mark of a file that was appended to another one
    except (ValueError, RecursionError) as error:
        raise RowFault("broken JSON", where, f"{where} is broken JSON ({_reason(error)}); mend that line.") from None
    return reader.row(fields, where)


def _json_list(path: Path, text: str, reader: _Json) -> list | None:
    """Parse a text that is one JSON document; None if it is JSON Lines in a `.json` file."""
    try:
        document = reader.decode(text)
    except (ValueError, RecursionError) as error:
        if _is_object(text.strip().partition("\n")[0]):
            return None
        raise CofituneError(
            f"{path}:{getattr(error, 'lineno', 1)} is broken JSON ({_reason(error)}); mend it."
        ) from None
    for number, line in enumerate(text.split("\n"), 1):
        problem = bad_bytes(line)
        if problem:
            raise CofituneError(f"{path}:{number} {problem}")
    if isinstance(document, dict):
        inside = document.get("data", next(iter(document.values()), None) if len(document) == 1 else None)
        is_list = isinstance(inside, list) and not document.keys() & {"messages", "conversations", "conversation"}
        document = inside if is_list else [document]
    if not isinstance(document, list):
        raise CofituneError(f'{path} holds a single JSON value; it needs a list of objects or {{"data": [...]}}.')
    return document


def _is_one_object(text: str) -> bool:
    """Whether a text is one object over several lines."""
    first, _, rest = text.strip().partition("\n")
    return bool(rest) and first.strip() == "{" and _is_object(text)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Json:
    """Decoder of one file's JSON that keeps in mind whether any object has a key twice; the last value counts."""

    def __init__(self) -> None:
        self._any_twice = False
        self.decode = json.JSONDecoder(object_pairs_hook=self._object).decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        self._any_twice = True
        keys = [key for key, _ in pairs]
        return _Twice(fields, next(key for key in keys if keys.count(key) > 1))

    def row(self, fields: Any, where: str) -> Row:
        twice = _first_twice(fields) if self._any_twice else None
        if twice is not None:
            raise RowFault("a key that occurs twice", where,
                           f"{where} has the key {twice!r} twice; remove one of them.")
        if not isinstance(fields, dict):
            raise RowFault("no JSON object", where,
                           f"{where} holds {type_name(fields)}; each row must be a JSON object.")
        return Row(fields, where)


class _Twice(dict):
    """Object with a key that occurs twice in the text."""

    def __init__(self, fields: dict[str, Any], key: str):
        super().__init__(fields)
        self.key = key


def _first_twice(value: Any) -> str | None:
    if isinstance(value, _Twice):
        return value.key
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for entry in inside if (key := _first_twice(entry)) is not None), None)


def _reason(error: Exception) -> str:
    return str(getattr(error, "msg", error))
