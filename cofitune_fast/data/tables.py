"""Read the rows of a CSV or TSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from ..errors import CofituneError
from .decode import bad_bytes
from .faults import Faults, RowFault
from .row import Row

_LONGEST_CELL = 2**31 - 1  # the largest limit that the csv module takes on every platform


def table_rows(path: Path, text: str, limit: int | None, faults: Faults) -> list[Row]:
    """Read the first `limit` records after the header; every value is a string.

    A TSV file is delimited by tabs; if it does not hold together with quoted cells, but does without, its quotation
    marks are text. In a CSV file the header decides: a comma, or else a semicolon, a tab or a bar. A
    first column without a name, as pandas writes its index, is left out; so are other columns without a name if they
    are empty.

    Raises:
        CofituneError: the header is broken, or has a name twice.
    """
    found = Faults(faults.on_bad_row)
    rows = _read(path, text, limit, found, csv.QUOTE_MINIMAL)
    if found and _is_tsv(path):
        plain = Faults(faults.on_bad_row)
        unquoted = _read(path, text, limit, plain, csv.QUOTE_NONE)
        if not plain:
            for row in unquoted:
                if any(cell.startswith('"') for cell in row.fields.values()):
                    faults.change("quotation marks at the beginning of a cell as text", row.where)
            return unquoted
    for fault in found.found:
        faults.add(fault)
    return rows


def _read(path: Path, text: str, limit: int | None, faults: Faults, quoting: int) -> list[Row]:
    rows: list[Row] = []
    with _long_cells():
        records = ((where, record) for where, record in _records(path, text, faults, quoting)
                   if any(map(str.strip, record)))
        header = next((_header(where, record) for where, record in records), [])
        for where, record in islice(records, limit):
            try:
                rows.append(Row(_fields(header, record, where), where, cells=True))
            except RowFault as fault:
                faults.add(fault)
    return rows


def _header(where: str, record: list[str]) -> list[str]:
    names = [name.strip() for name in record]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise CofituneError(f"{where} has the column {twice[0]!r} twice; rename or remove one of them.")
    return names


def _fields(header: list[str], record: list[str], where: str) -> dict[str, str]:
    extra = record[len(header):]
    if any(header[len(record):]) or any(cell.strip() for cell in extra):
        raise RowFault("another number of columns than the header", where,
                       f"{where} has {len(record)} columns where the header has {len(header)}; quote a cell that holds "
                       "the delimiter or a line break.")
    fields = {}
    for number, (name, cell) in enumerate(zip(header, record, strict=False)):
        if name:
            fields[name] = cell
        elif number and cell.strip():
            raise RowFault("a cell without a column name", where,
                           f"{where} has a cell in column {number + 1}, which has no name in the header.")
        problem = bad_bytes(cell)
        if problem:
            raise RowFault("text that is not UTF-8", where, f"{where} {problem}")
    return fields


def _records(path: Path, text: str, faults: Faults, quoting: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, record). After a broken record the reading goes on in the line after its first."""
    lines = _Lines(text)
    first = lines.all[0].strip()
    if first.lower().startswith("sep=") and len(first) == 5:  # a line that Excel writes
        delimiter, lines.position = first[4], 1
    else:
        delimiter = _delimiter(path, first)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    while True:
        start = lines.position
        where = f"{path}:{start + 1}"
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            faults.add(RowFault("broken CSV", where, f"{where} is broken CSV ({error}); mend that record."))
            lines.position = start + 1  # a quote that is never closed has taken in the lines after it
        else:
            yield where, record


class _Lines:
    """Iterator over lines that can be set back, also after its end."""

    def __init__(self, text: str):
        self.all, self.position = list(io.StringIO(text, newline="")), 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.position == len(self.all):
            raise StopIteration
        self.position += 1
        return self.all[self.position - 1]


def _delimiter(path: Path, header: str) -> str:
    if _is_tsv(path):
        return "\t"
    return next((delimiter for delimiter in ",;\t|" if delimiter in header), ",")


def _is_tsv(path: Path) -> bool:
    return ".tsv" in map(str.lower, path.suffixes)


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)
