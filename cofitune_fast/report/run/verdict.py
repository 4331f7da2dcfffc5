"""Who leads in a score, and which rows the report speaks about."""

from __future__ import annotations

from ..differences import AHEAD, Entry, difference
from ..style.numbers import finite
from .schema import BASE


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


def searched_on_report_split(report: Entry) -> bool:
    """True when the search chose on the very split that the methods are reported on, which flatters the chosen one."""
    split = report["search"]["split"] if report["search"] else ""
    return bool(split) and split == report["split"].get("report")
