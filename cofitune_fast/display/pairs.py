"""Table of two models on the same items, as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.flips import p_value

_HEAD = ("Group", "Task", "Metric", "n", "A", "Stderr", "B", "Stderr", "A - B", "Stderr", "95 % interval", "lost",
         "gained", "p")
_LEFT = 3  # columns of words
_FIGURES = {"spec": "speciality", "knowledge": "knowledge", "reasoning": "reasoning", "instruction": "instruction",
            "vers": "vers", "uni": "all"}
_LONGEST = 200  # characters of a prompt, of which the end is shown


def pairs_lines(entry: Mapping[str, Any], show: int) -> list[str]:
    """Format a comparison of two models, A and B, one line a task, then Spec, Vers and Uni.

    entry: as `scoring.pairs_entry` makes it, with "models", the names of both, and "notes", sentences on both.
    show: number of flipped items to list.
    """
    rows = [_row(group if first else "", task, one["metric"] + (" per byte" if one["per_byte"] else ""), one,
                 one["first_se"], one["second_se"], one["flips"])
            for group, tasks in entry["tasks"].items()
            for first, (task, one) in zip([True, *[False] * len(tasks)], tasks.items(), strict=False)]
    differences = entry.get("differences", {})
    for figure, one in ((figure, differences[figure]) for figure in _FIGURES if figure in differences):
        flips = entry["flips"].get(_FIGURES[figure])
        rows.append(_row("mean" if figure == "spec" else "", figure, "", {**one, "n": flips and flips["items"]}, None,
                         None, flips, of_task=False))
    flips = entry["flips"].get("all")
    lines = [*(f"{letter}  {name}" for letter, name in zip("AB", entry["models"], strict=True)), *entry["notes"],
             *_aligned([_HEAD, *rows]),
             "lost: right in B, wrong in A. gained: wrong in B, right in A. p: McNemar's exact test of these two.",
             "Stderr and interval of A - B are paired, as both models answer the same items; that of a share of right "
             "items is not empty where none flips."]
    if flips:
        lines.append(f"Of {flips['items']} items A loses {flips['right_to_wrong']} and gains {flips['wrong_to_right']}"
                     f", p {p_value(flips['p'])}.")
    for item in entry["flipped"][:max(0, show)]:
        lines += ["", *_item(item)]
    return lines


def _row(
    group: str, task: str, metric: str, one: Mapping[str, Any], first_se: float | None, second_se: float | None,
    flips: Mapping[str, Any] | None, of_task: bool = True,
) -> tuple[str, ...]:
    """One row. A mean of tasks has no p: it weighs the tasks alike, and the test would weigh the items alike."""
    counts = (str(flips["right_to_wrong"]), str(flips["wrong_to_right"]), p_value(flips["p"]) if of_task else "") \
        if flips else ("",) * 3
    interval = f"[{one['low']:+.4f}, {one['high']:+.4f}]"
    return (group, task, metric, str(one["n"] or ""), f"{one['first']:.4f}", _error(first_se), f"{one['second']:.4f}",
            _error(second_se), f"{one['value']:+.4f}", _error(one["se"]), interval, *counts)


def _error(se: float | None) -> str:
    return "" if se is None else f"{se:.4f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if place < _LEFT else cell.rjust(width)
                      for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def _item(item: Mapping[str, Any]) -> list[str]:
    way = "lost" if item["way"] == "right_to_wrong" else "gained"
    where = item["where"] or f"item {item['index'] + 1}"
    lines = [f"{way}  {item['task']}  {where}"]
    words = [("prompt", item["prompt"]), ("answer", item["answer"]),
             *zip(("A", "B"), item["texts"] or (), strict=False)]
    return lines + [f"  {name:8}{_end(text)}" for name, text in words if text]


def _end(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else "… " + line[-_LONGEST:]
