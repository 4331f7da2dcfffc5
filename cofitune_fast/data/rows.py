"""Read the rows of a data file, a folder of data files or a data set of the hub, each with its place."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import CofituneError
from .decode import COMPRESSED, bad_bytes, read_text
from .faults import Faults, OnBadRow, RowFault
from .library import (
    NOTES,
    SIDE_FILES,
    TABLES,
    hub_rows,
    is_hidden,
    is_hub_id,
    is_saved,
    saved_rows,
    split_of,
    table_file_rows,
)
from .row import Row, type_name
from .tables import table_rows

_BETWEEN = re.compile(r"[\s,\ufeff]*")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


def read_rows(path: str | Path, limit: int | None = None, on_bad_row: OnBadRow = "stop") -> list[Row]:
    """Read the first `limit` rows (None: all) of data.

    - A JSON, JSON Lines, CSV or TSV file in UTF-8, or in UTF-16 with a byte order mark; also compressed (.gz, .bz2,
      .xz). JSON is a list of objects or `{"data": [...]}`. A `.json` file may also hold JSON Lines, and a `.jsonl` file
      JSON, or objects one after the other, however they are broken into lines. A list of messages counts as a row with
      them as "messages". CSV and TSV need a header line, and every value is a string. Blank lines are skipped.
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
    """Whether a file is one that `read_rows` reads by its ending.

    Files that a system or a library keeps beside the data are not.
    """
    return kind_of(path) in (*SUFFIXES, *TABLES) and not is_hidden(Path(path.name)) and path.name not in NOTES


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
    if "\n" not in text:
        text = text.replace("\r", "\n")  # lines as old Macs end them
    first, _, rest = text.strip().partition("\n")
    by_line = _is_row(first.removeprefix("\ufeff"))
    listed = None
    if kind == ".json" or text.lstrip().startswith("[") or (not by_line and _is_object(text)):
        listed = _json_list(path, text, reader, by_line)
    elif not by_line:
        listed = _sequence(path, text, reader)
    elif not rest:
        _refuse_other_layouts(path, json.loads(first.removeprefix("\ufeff")))
    rows = []
    if listed is not None:
        for number, fields in enumerate(islice(listed, limit), 1):
            where = f"{path}:row {number}"
            try:
                rows.append(reader.row(fields, where))
            except RowFault as fault:
                faults.add(fault)
            if isinstance(listed, _Sequence):
                faults.change("another layout than one object a line", where)
        return rows
    # str.splitlines would also split at U+2028 and similar characters, which JSON strings may contain unescaped
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line and not line.isspace())
    for number, line in islice(lines, limit):
        try:
            rows.append(_json_line(line, f"{path}:{number}", reader))
        except RowFault as fault:
            faults.add(fault)
    return rows


class _Sequence(list):
    """Rows of a file in which objects follow each other without being one a line."""


def _sequence(path: Path, text: str, reader: _Json) -> _Sequence | None:
    """Parse objects that follow each other, also with commas between them; None if the text is something else.

    Raises:
        CofituneError: the text begins with an object over several lines and goes on with something else, or a byte is
            not UTF-8.
    """
    objects, place, broken = _Sequence(), 0, None
    while broken is None and (place := _BETWEEN.match(text, place).end()) < len(text):
        try:
            entry, after = reader.decode_from(text, place)
            if not isinstance(entry, dict):
                raise json.JSONDecodeError("something else than an object", text, place)
            objects.append(entry)
            place = after
        except (ValueError, RecursionError) as error:
            broken = error
    if broken is None:
        _check_bytes(path, text)
        return objects
    over_lines = objects and not _is_row(text.strip().partition("\n")[0].rstrip(", \r"))
    if not over_lines and (not objects or any(map(_is_row, text.split("\n")))):
        return None
    line = getattr(broken, "lineno", text.count("\n", 0, place) + 1)
    raise CofituneError(f"{path}:{line} is broken JSON ({_reason(broken)}), in a file that has not one row on each "
                        "line; mend it, and write each row on a line of its own, without a comma after it.")


def _json_line(line: str, where: str, reader: _Json) -> Row:
    problem = bad_bytes(line)
    if problem:
        raise RowFault("text that is not UTF-8", where, f"{where} {problem}")
    try:
        fields = reader.decode(line.removeprefix("\ufeff"))  # the mark of a file that was appended to another one
    except (ValueError, RecursionError) as error:
        raise RowFault("broken JSON", where, f"{where} is broken JSON ({_reason(error)}); mend that line.") from None
    return reader.row(fields, where)


def _json_list(path: Path, text: str, reader: _Json, by_line: bool) -> list | None:
    """Parse a text that is one JSON document, or rows that follow each other; None if each has its line (`by_line`)."""
    try:
        document = reader.decode(text)
    except (ValueError, RecursionError) as error:
        if by_line:
            return None
        objects = _sequence(path, text, reader) if text.lstrip().startswith("{") else None
        if objects is not None:
            return objects
        raise CofituneError(
            f"{path}:{getattr(error, 'lineno', 1)} is broken JSON ({_reason(error)}); mend it."
        ) from None
    _check_bytes(path, text)
    _refuse_other_layouts(path, document)
    if isinstance(document, dict):
        inside = document.get("data", next(iter(document.values()), None) if len(document) == 1 else None)
        is_list = isinstance(inside, list) and not document.keys() & {"messages", "conversations", "conversation"}
        document = inside if is_list else [document]
    if not isinstance(document, list):
        raise CofituneError(f'{path} holds a single JSON value; it needs a list of objects or {{"data": [...]}}.')
    return [document] if _is_talk(document) else document


def _check_bytes(path: Path, text: str) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        problem = bad_bytes(line)
        if problem:
            raise CofituneError(f"{path}:{number} {problem}")


def _refuse_other_layouts(path: Path, document: Any) -> None:
    """Refuse a table that is written by its columns, and several splits in one file.

    Raises:
        CofituneError: a sentence that names the layout and what to write instead.
    """
    values = list(document.values()) if isinstance(document, dict) else []
    if not values:
        return
    lists = len(values) > 1 and all(isinstance(value, list) for value in values)
    if lists and all(value and all(isinstance(entry, dict) for entry in value) and not _is_talk(value)
                     for value in values):
        names = ", ".join(document)
        raise CofituneError(f"{path} holds several lists of rows ({names}); write each into a file of its own.")
    columns = lists and len({len(value) for value in values}) == 1 and values[0] and not any(map(_is_talk, values))
    indexed = all(isinstance(value, dict) for value in values) and (
        all(map(str.isdecimal, document)) or all(value and all(map(str.isdecimal, value)) for value in values))
    if columns or indexed or document.keys() == {"columns", "index", "data"}:
        raise CofituneError(f"{path} holds a table by its columns or its index, as pandas' to_json writes it; it needs "
                            'a list of rows: to_json(path, orient="records", lines=True) writes them as .jsonl.')


def _is_talk(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(entry, dict) and ("role" in entry or "from" in entry) and ("content" in entry or "value" in entry)
        for entry in value)


def _is_row(line: str) -> bool:
    """Whether a line alone is a row: an object or a list of messages."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or _is_talk(value)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class _Json:
    """Decoder of one file's JSON that keeps in mind whether any object has a key twice; the last value counts."""

    def __init__(self) -> None:
        self._any_twice = False
        decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self.decode, self.decode_from = decoder.decode, decoder.raw_decode

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
        if _is_talk(fields):
            return Row({"messages": fields}, where)
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
