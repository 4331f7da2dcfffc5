"""Differences of two scores, compared with their standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .style.numbers import NBSP, finite

Entry = dict[str, Any]  # one checked method, node or report
AHEAD, TIE, BEHIND, UNKNOWN = "ahead", "tie", "behind", "unknown"


@dataclass(frozen=True)
class Difference:
    """Difference a − b of one score, with se = √(se_a² + se_b²); NaN where a part is missing."""

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
        """True beyond two standard errors, the usual 95 % threshold."""
        return self.outcome in (AHEAD, BEHIND) and abs(self.value) > 2 * self.se

    def __str__(self) -> str:
        return f"{abs(self.value):.3f}" + (f"{NBSP}±{NBSP}{self.se:.3f}" if finite(self.se) else " (no standard error)")


def difference(a: Entry, b: Entry, key: str) -> Difference:
    """Return a − b for the score `key`; the errors are taken as independent (see the report's footnote)."""
    errors = [entry.get(f"{key}_se", math.nan) for entry in (a, b)]
    value = a[key] - b[key] if finite(a[key]) and finite(b[key]) else math.nan
    return Difference(value, math.hypot(*errors) if all(map(finite, errors)) else math.nan)


def paired_or_not(report: Entry, a: Entry, b: Entry, key: str) -> Difference:
    """Return a − b with the error of the paired difference where the report has it, else as `difference`."""
    for pair in report["pairs"]:
        if (pair["first"], pair["second"]) == (a["name"], b["name"]):
            return Difference(pair[key]["value"], pair[key]["se"])
    return difference(a, b, key)


def share(part: float, whole: float) -> float:
    return part / whole if finite(part) and finite(whole) and whole > 0 else math.nan
