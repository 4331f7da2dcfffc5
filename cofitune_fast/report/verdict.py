"""Who leads in a score, by how much, and whether that is more than the standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .numbers import NBSP, finite
from .schema import BASE

Entry = dict[str, Any]  # one checked method, node or report
AHEAD, TIE, BEHIND, UNKNOWN = "ahead", "tie", "behind", "unknown"


@dataclass(frozen=True)
class Difference:
    """a − b of one score, with se = √(se_a² + se_b²); NaN where a part is missing."""

    value: float
    se: float

    @property
    def outcome(self) -> str:
        if not (finite(self.value) and finite(self.se)):
            return UNKNOWN
        if abs(self.value) <= self.se:
            return TIE
        return AHEAD if self.value > 0 else BEHIND

    @property
    def clear(self) -> bool:
        """Beyond two standard errors, the usual 95 % line."""
        return self.outcome in (AHEAD, BEHIND) and abs(self.value) > 2 * self.se

    def __str__(self) -> str:
        return f"{abs(self.value):.3f}" + (f"{NBSP}±{NBSP}{self.se:.3f}" if finite(self.se) else " (no standard error)")


def difference(a: Entry, b: Entry, key: str) -> Difference:
    """a − b for the score `key`. The errors are taken as independent (see the report's footnote)."""
    errors = [entry.get(f"{key}_se", math.nan) for entry in (a, b)]
    value = a[key] - b[key] if finite(a[key]) and finite(b[key]) else math.nan
    return Difference(value, math.hypot(*errors) if all(map(finite, errors)) else math.nan)


def best(methods: list[Entry], key: str) -> str | None:
    """The trained method that leads every other in `key` by more than the combined standard error, or None."""
    rows = [method for method in methods if method["name"] != BASE and finite(method[key])]
    for row in rows if len(rows) > 1 else []:
        if all(difference(row, other, key).outcome == AHEAD for other in rows if other is not row):
            return row["name"]
    return None


def base_row(methods: list[Entry]) -> Entry | None:
    return next((method for method in methods if method["name"] == BASE), None)


def cofitune_row(methods: list[Entry]) -> Entry | None:
    """The last CoFiTune row, the most refined one: picking the best by its test score would flatter."""
    return next((method for method in reversed(methods) if method["name"].lower().startswith("cofitune")), None)


def full_row(methods: list[Entry]) -> Entry | None:
    """Full SFT; among several settings of it the one with the highest Uni: the baseline to beat."""
    rows = [method for method in methods if method["name"].lower().startswith("full sft")]
    return max(rows, key=lambda row: row["uni"] if finite(row["uni"]) else -1.0, default=None)


def share(part: float, whole: float) -> float:
    return part / whole if finite(part) and finite(whole) and whole > 0 else math.nan


def searched_on_report_split(report: Entry) -> bool:
    """True when the search chose on the very split that the methods are reported on, which flatters the chosen one."""
    split = report["search"]["split"] if report["search"] else ""
    return bool(split) and split == report["split"].get("report")
