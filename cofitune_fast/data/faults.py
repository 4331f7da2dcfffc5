"""Faults of data rows: each names its row, and all of them are counted before a run stops or leaves the rows out."""

from __future__ import annotations

from collections import Counter
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
    """

    def __init__(self, on_bad_row: OnBadRow = "stop"):
        if on_bad_row not in get_args(OnBadRow):
            raise CofituneError(f"data.on_bad_row is {on_bad_row!r}; it must be stop or skip.")
        self.on_bad_row: OnBadRow = on_bad_row
        self.found: list[RowFault] = []

    def __len__(self) -> int:
        return len(self.found)

    def add(self, fault: RowFault) -> None:
        self.found.append(fault)

    def by_kind(self) -> dict[str, list[str]]:
        """Return the places of the bad rows by kind of fault, the most frequent kind first."""
        counts = Counter(fault.kind for fault in self.found)
        return {kind: [fault.where for fault in self.found if fault.kind == kind] for kind, _ in counts.most_common()}

    @property
    def sentence(self) -> str | None:
        """Counts by kind with the first places; None if there is no fault."""
        if not self.found:
            return None
        return "; ".join(f"{len(places)} with {kind} ({', '.join(places[:_SHOWN])}{' ...' * (len(places) > _SHOWN)})"
                         for kind, places in self.by_kind().items())

    def settle(self, rows: int, good: int) -> None:
        """Raise if there are faults and they are not to be skipped, or if no row is good.

        Args:
            rows, good: numbers of rows that were read, and of those that can be used.

        Raises:
            CofituneError: one sentence; the fault's own where there is a single one.
        """
        if not self.found or (self.on_bad_row == "skip" and good):
            return
        if len(self.found) == 1 and good:
            raise CofituneError(f"{self.found[0]} (data.on_bad_row: skip leaves such rows out.)")
        if len(self.found) == 1:
            raise self.found[0]
        cure = "mend them, or set data.on_bad_row to skip" if good else "mend them"
        raise CofituneError(f"{len(self.found)} of {rows} rows cannot be used: {self.sentence}. The first: "
                            f"{str(self.found[0]).rstrip('.')}; {cure}.")
