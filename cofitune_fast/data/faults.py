"""Faults of data rows: each names its row, and all of them are counted before a run stops or leaves the rows out."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal, get_args

from ..errors import CofituneError

OnBadRow = Literal["stop", "skip"]
_SHOWN = 3


class RowFault(CofituneError):
    """Error for one row that cannot be used.

    Attributes:
        kind: the kind of fault in a few words, such as "an empty response"; rows of one kind are counted together.
        where: place of the row, "file:line".
    """

    def __init__(self, kind: str, where: str, sentence: str):
        super().__init__(sentence)
        self.kind, self.where = kind, where


class Faults:
    """Collected faults of the rows of a file.

    Args:
        on_bad_row: "stop" makes `settle` raise if there is any fault; "skip" leaves the rows out.

    Attributes:
        found: the faults in the order of their rows.
        changed: places of rows that were read in another way than they stand, by what was changed.
    """

    def __init__(self, on_bad_row: OnBadRow = "stop"):
        if on_bad_row not in get_args(OnBadRow):
            raise CofituneError(f"data.on_bad_row is {on_bad_row!r}; it must be stop or skip.")
        self.on_bad_row: OnBadRow = on_bad_row
        self.found: list[RowFault] = []
        self.changed: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self.found)

    def add(self, fault: RowFault) -> None:
        self.found.append(fault)

    def change(self, what: str, where: str) -> None:
        """Record that the row at `where` was read with a change, such as "a first turn of the assistant left out"."""
        places = self.changed.setdefault(what, [])
        if not places or places[-1] != where:  # several turns of one row count once
            places.append(where)

    def by_kind(self) -> dict[str, list[str]]:
        """Return the places of the bad rows by kind of fault, the most frequent kind first."""
        places: dict[str, list[str]] = {}
        for fault in self.found:
            places.setdefault(fault.kind, []).append(fault.where)
        return dict(sorted(places.items(), key=lambda item: -len(item[1])))

    @property
    def sentence(self) -> str | None:
        """Counts by kind with the first places; None if there is no fault."""
        return _counts({f"{len(places)} with {kind}": places for kind, places in self.by_kind().items()}) or None

    @property
    def notes(self) -> list[str]:
        """Sentences about the rows that are left out and about those that were read with a change."""
        notes = []
        if self.found:
            notes.append(f"Left out {_rows(len(self.found))} that cannot be used: {self.sentence}.")
        if self.changed:
            notes.append("Read with a change: " + _counts({f"{_rows(len(places))} with {what}": places
                                                           for what, places in self.changed.items()}) + ".")
        return notes

    def settle(self, rows: int, good: int) -> None:
        """Raise if there are faults and they are not to be skipped, or if no row is good; else log `notes`.

        A note is logged once in a process, however often the file is read.

        Args:
            rows, good: numbers of rows that were read, and of those that can be used.

        Raises:
            CofituneError: one sentence; the fault's own where there is a single one.
        """
        self.found.sort(key=_place)  # those that could not be read were found before those that could not be parsed
        if not self.found or (self.on_bad_row == "skip" and good):
            for note in self.notes:
                _log_once(note)
            return
        if len(self.found) == 1 and good:
            raise CofituneError(f"{self.found[0]} data.on_bad_row: skip leaves such rows out.")
        if len(self.found) == 1:
            raise self.found[0]
        cure = " data.on_bad_row: skip leaves them out." if good else ""
        raise CofituneError(f"{len(self.found)} of {rows} rows cannot be used: {self.sentence}. The first: "
                            f"{self.found[0]}{cure}")


def _place(fault: RowFault) -> tuple[str, int]:
    file, _, number = fault.where.rpartition(":")
    number = number.removeprefix("row ")
    return file, int(number) if number.isdecimal() else 0


def _counts(places: dict[str, list[str]]) -> str:
    return "; ".join(f"{words} ({', '.join(found[:_SHOWN])}{' ...' * (len(found) > _SHOWN)})"
                     for words, found in places.items())


def _rows(count: int) -> str:
    return f"{count} row" + "s" * (count != 1)


@cache
def _log_once(sentence: str) -> None:
    logging.getLogger("cofitune_fast").warning(sentence)
