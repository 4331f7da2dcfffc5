"""Flips of items and costs of each method at its best rate, with every number as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...artefacts import checked
from ..flips import GROUPS, counts, p_value
from ..style.cell import Cell
from ..style.numbers import MISSING, count, duration, finite, percent
from ..style.terminal import rich_parts
from .rows import curves_of, point_name, shown

if TYPE_CHECKING:
    from rich.table import Table

COSTS = ("Training", "With preparation", "Tokens trained", "Tokens written")


@dataclass(frozen=True)
class ChangeRow:
    """A method at its best rate.

    Attributes:
        flips: per group lines: mean counts against the base, their p by seed, and the same against the reference.
        costs: cells in the order of COSTS.
        drifts: KL to the base on responses to instructions and to the task.
    """

    name: str
    rate: str
    flips: dict[str, list[str]]
    costs: list[Cell]
    drifts: list[str]


def change_rows(content: dict[str, Any], task: str) -> list[ChangeRow]:
    """Make one row for each method with a run."""
    rows = []
    for name, curve in curves_of(content, task).items():
        if (chosen := curve["chosen"]["uni"]) is None:
            continue
        point = curve["points"][chosen["point"]]
        flips = {group: [f"{counts(entry)} of {entry['items']}", _by_seed(entry), *_against(chosen["flips"], group)]
                 for group, entry in point["flips"].items() if group in GROUPS}
        drifts = [shown(key, point["test"][key]["value"]) if key in point["test"] else MISSING
                  for key in ("drift", "task_drift")]
        rows.append(ChangeRow(name, point_name(point), flips, _costs(content, task, name, point), drifts))
    return rows


def _by_seed(entry: dict[str, Any]) -> str:
    return "p " + ", ".join(p_value(seed["p"]) for seed in entry["seeds"])


def _against(flips: dict[str, Any], group: str) -> list[str]:
    return [f"ref. {counts(flips[group])}, {_by_seed(flips[group])}"] if group in flips else []


def _costs(content: dict[str, Any], task: str, method: str, point: dict[str, Any]) -> list[Cell]:
    cost = point["cost"] or {}
    training, prepared = cost.get("training_seconds"), cost.get("whole_preparation_seconds")
    least = "" if finite(prepared) else "≥ "
    if least:  # runs that were made before the whole preparation was kept
        prepared = max(((run["cost"] or {}).get("preparation_seconds") or 0.0 for run in content["runs"]
                        if (run["task"], run["method"]) == (task, method)), default=0.0)
    total = training + prepared if finite(training) else None
    share = percent(prepared / total) if total else ""
    anchor = cost.get("anchor_tokens")
    tokens = (cost.get("tokens") or 0) + (anchor or 0)
    return [
        Cell(duration(training)), Cell(least + duration(total) if finite(total) else MISSING,
                                       f"{share} preparation" if share else ""),
        Cell((least if anchor is None else "") + count(tokens), f"{count(anchor)} of the anchor" if anchor else ""),
        Cell(count(cost.get("written_tokens"))),
    ]


def resolution_sentences(content: dict[str, Any], task: str) -> list[str]:
    """Return the sentences on what the task's suite can show."""
    return [entry["sentence"] for entry in content["resolution"] if entry["task"] == task]


def changes_table(content: dict[str, Any]) -> Table:
    """Make a rich Table for the terminal: KL to the base, flips of the versatility items, and costs.

    Raises:
        CofituneError: rich is not installed, or the comparison is malformed.
    """
    box, escape, Table = rich_parts()
    content = checked("comparison", content)
    table = Table(caption=FOOTNOTE, caption_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("Method", overflow="fold", min_width=14)
    for title in ("KL\ninstr.", "KL\ntask", "Flips\nof Vers", "Time", "With\nprep.", "Tokens"):
        table.add_column(title, justify="right", no_wrap=title != "Flips\nof Vers")
    for task in content["tasks"]:
        table.add_row(f"[bold]{escape(task)}[/bold]", end_section=True)
        for row in change_rows(content, task):
            count_of, by_seed, *_ = row.flips.get("vers", [MISSING, ""])
            training, prepared, trained, written = (cell.text for cell in row.costs)
            table.add_row(
                escape(row.name), *row.drifts,
                count_of.partition(" of ")[0] + (f"\n[dim]{by_seed.replace(' 0.', ' .')}[/dim]" if by_seed else ""),
                training, prepared, f"{trained}\n[dim]+{written}[/dim]" if written not in (MISSING, "0") else trained,
            )
    return table


FOOTNOTE = (
    "KL to the base in nats per token. Flips: versatility items that went from right to wrong (−) and back (+) against "
    "the base, means over seeds; p of McNemar's exact test. With prep.: training and all that was made for it, texts, "
    "distributions and importance, whichever run made them; ≥ where that was not kept. Tokens: of rows and anchor in "
    "training, + those that the base wrote."
)
