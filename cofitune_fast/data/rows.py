"""Read the rows of a data file as dictionaries, each with its place in the file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CofituneError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


class Row(NamedTuple):
    """One row of a data file. where: "file:line", or "file:row N" in a JSON list, whose lines are no rows."""

    fields: dict[str, Any]
    where: str


def read_rows(path: str | Path, limit: int | None = None) -> list[Row]:
    """Read the first `limit` rows (None: all) of a JSON, JSON Lines, CSV or TSV file in UTF-8.

    JSON is a list of objects or `{"data": [...]}`. A `.json` file may also hold JSON Lines, and a `.jsonl` file JSON.
    CSV and TSV need a header line, and every value is a string. Blank lines are skipped.

    Raises CofituneError if the file is missing, empty, a folder, of another kind, not UTF-8 or broken.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise CofituneError(f"The row limit for {path} is {limit}; it must be at least 1.")
    if path.suffix.lower() not in SUFFIXES and path.is_file():
        raise CofituneError(f"{path} is not a data file known here; the known endings are {', '.join(SUFFIXES)}.")
    text = _read_text(path)
    is_table = path.suffix.lower() in (".csv", ".tsv")
    rows = []
    if text.strip():
        rows = list(islice(_csv_rows(path, text) if is_table else _json_rows(path, text), limit))
    if not rows:
        raise CofituneError(f"The data file {path} is empty; it needs at least one row.")
    return rows


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise CofituneError(f"{path} is a folder; name one data file ({', '.join(SUFFIXES)}) in it.")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise CofituneError(f"The data file {path} does not exist.") from None
    except OSError as error:
        raise CofituneError(f"The data file {path} cannot be read ({error.strerror}).") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CofituneError(f"{path}:{line} is not valid UTF-8; save the file in that encoding.") from None


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    whole = path.suffix.lower() == ".json" or text.lstrip().startswith("[")
    listed = _json_list(path, text) if whole else None
    if listed is None:
        yield from _json_line_rows(path, text)
        return
    for number, fields in enumerate(listed, 1):
        yield _row(fields, f"{path}:row {number}")


def _json_list(path: Path, text: str) -> list | None:
    """Parse a text that is one JSON document; None if it is JSON Lines in a `.json` file."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _is_object(text.strip().partition("\n")[0]):
            return None
        raise CofituneError(
            f"{path}:{getattr(error, 'lineno', 1)} is broken JSON ({_reason(error)}); mend it."
        ) from None
    if isinstance(document, dict):
        document = document["data"] if isinstance(document.get("data"), list) else [document]
    if not isinstance(document, list):
        raise CofituneError(f'{path} holds a single JSON value; it needs a list of objects or {{"data": [...]}}.')
    return document


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_line_rows(path: Path, text: str) -> Iterator[Row]:
    # str.splitlines would also split at U+2028 and similar characters, which JSON strings may contain unescaped
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CofituneError(f"{where} is broken JSON ({_reason(error)}); mend that line.") from None
            yield _row(fields, where)


def _row(fields: Any, where: str) -> Row:
    if not isinstance(fields, dict):
        raise CofituneError(f"{where} holds a {type(fields).__name__}; each row must be a JSON object.")
    return Row(fields, where)


def _reason(error: Exception) -> str:
    return str(getattr(error, "msg", error))


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for record in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not record:
                continue
            if header is None:
                header = record
            elif len(record) != len(header):
                raise CofituneError(f"{where} has {len(record)} columns where the header has {len(header)}.")
            else:
                yield Row(dict(zip(header, record, strict=True)), where)
    except csv.Error as error:
        raise CofituneError(f"{path}:{line} is broken CSV ({error}); mend that record.") from None
