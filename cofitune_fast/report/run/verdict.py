"""Leader in a score, and the rows that the report's sentences are about."""

from __future__ import annotations

from ...artefacts.run import BASE
from ..differences import AHEAD, Entry, difference
from ..style.numbers import finite


def best(methods: list[Entry], key: str) -> str | None:
    """Return the trained method that leads every other in `key` by more than the combined standard error, or None."""
    rows = [method for method in methods if method["name"] != BASE and finite(method[key])]
    for row in rows if len(rows) > 1 else []:
        if all(difference(row, other, key).outcome == AHEAD for other in rows if other is not row):
            return row["name"]
    return None


def done(methods: list[Entry]) -> list[Entry]:
    """Return the methods that did not fail."""
    return [method for method in methods if method["state"] != "failed"]


def base_row(methods: list[Entry]) -> Entry | None:
    return next((method for method in methods if method["name"] == BASE), None)


def cofitune_row(methods: list[Entry]) -> Entry | None:
    """Return the last CoFiTune row, the most refined one.

    Choosing the best row by its test score would be optimistic.
    """
    return next((method for method in reversed(methods) if method["name"].lower().startswith("cofitune")), None)


def full_row(methods: list[Entry]) -> Entry | None:
    """Return full SFT; of several settings the one with the highest Uni, which is the baseline to beat."""
    rows = [method for method in methods if method["name"].lower().startswith("full sft")]
    return max(rows, key=lambda row: row["uni"] if finite(row["uni"]) else -1.0, default=None)


def searched_on_report_split(report: Entry) -> bool:
    """True if the search chose on the split that the methods are reported on, which favours the chosen region."""
    split = report["search"]["split"] if report["search"] else ""
    return bool(split) and split == report["split"].get("report")
