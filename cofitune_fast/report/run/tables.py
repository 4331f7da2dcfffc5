"""Table of the methods; terminal, plain text and page share its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...artefacts import checked
from ...artefacts.run import BASE
from ...artefacts.scores import SCORES
from ..differences import share
from ..flips import counts, p_value
from ..style.cell import Cell
from ..style.numbers import byte_size, count, duration, finite, percent, rate, score, standard_error
from ..style.terminal import rich_parts
from .sentences import UNFINISHED, failures
from .verdict import best

if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "spec": "Spec", "vers": "Vers", "knowledge": "Knowledge", "reasoning": "Reasoning", "instruction": "Instruction",
    "uni": "Uni", "trained": "Trained", "seconds": "Time", "memory": "Peak memory",
}  # fmt: skip
# Headings broken so that the table fits into a terminal of 80 columns.
_HYPHENATED = {
    "Knowledge": "Know-\nledge", "Reasoning": "Rea-\nson.", "Instruction": "In-\nstr.",
    "Peak memory": "Peak\nmemory",
}  # fmt: skip
FOOTNOTE = (
    "± is one standard error over the test items. Bold: leads every other trained method by more than the combined "
    "standard error √(se₁² + se₂²); no bold in a column means that no such lead exists. "
    "The base is a reference and takes no part."
)


@dataclass(frozen=True)
class Row:
    """A method with every number as text.

    Attributes:
        failed: the reason why it has no scores, or "" if it did not fail.
    """

    name: str
    region: str
    setting: str
    cells: dict[str, Cell]
    failed: str = ""


def method_rows(report: dict[str, Any]) -> list[Row]:
    """Make one row per method of a checked report, with every number as text."""
    methods = report["methods"]
    leaders = {key: best(methods, key) for key in SCORES}
    rows = []
    for method in methods:
        cells = {}
        for key in SCORES:
            error = standard_error(method[f"{key}_se"]) if finite(method[key]) else ""
            cells[key] = Cell(score(method[key]), error, leaders[key] == method["name"])
        trained = share(method["trained_parameters"], report["base"]["parameters"])
        cells["trained"] = Cell(count(method["trained_parameters"]), percent(trained) if finite(trained) else "")
        cells["seconds"] = Cell(duration(method["seconds"]))
        cells["memory"] = Cell(byte_size(method["peak_memory_bytes"]))
        setting = []
        if method["name"] != BASE and finite(method["learning_rate"]):
            setting.append(f"lr {rate(method['learning_rate'])}")
        if method["name"] != BASE and finite(method["epochs"]):
            setting.append(f"{method['epochs']:g} epoch{'' if method['epochs'] == 1 else 's'}")
        failed = method["why"] or "for a reason that is not known" if method["state"] == "failed" else ""
        rows.append(Row(method["name"], str(method.get("region") or ""), ", ".join(setting), cells, failed))
    return rows


def methods_table(report: dict[str, Any]) -> Table:
    """Make a rich Table of the methods for the terminal.

    Raises:
        CofituneError: rich is not installed, or the report is malformed.
    """
    box, escape, Table = rich_parts()
    report = checked("report", report)
    table = Table(
        title=escape(report["title"]), caption=escape("\n".join([*_state(report), FOOTNOTE])), title_justify="left",
        caption_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False,
    )  # fmt: skip
    table.add_column("Method", overflow="fold", min_width=15)
    for title in TITLES.values():
        table.add_column(_HYPHENATED.get(title, title), justify="right", no_wrap=True)
    for row in method_rows(report):
        texts = []
        for key in TITLES:
            cell = row.cells[key]
            text = f"[bold]{cell.text}[/bold]" if cell.best else cell.text
            small = cell.small.replace("\u00a0", "").replace("± ", "±").replace("±0.", "±.")
            texts.append(f"{text}\n[dim]{small}[/dim]" if small else text)
        region = f"\n[dim]{escape(row.region).replace('@', chr(10) + '@')}[/dim]" if row.region else ""
        failed = "\n[red]failed[/red]" if row.failed else ""
        table.add_row(escape(row.name) + region + failed, *texts, end_section=True)
    return table


def plain_table(report: dict[str, Any]) -> str:
    """Format the methods as aligned text, without rich; an asterisk follows a leading score."""
    report = checked("report", report)
    lines = [["Method", "Region", *TITLES.values()]]
    for row in method_rows(report):
        cells = []
        for key in TITLES:
            cell = row.cells[key]
            small = f" ({cell.small})" if key == "trained" and cell.small else f" {cell.small}" if cell.small else ""
            cells.append(f"{cell.text}{small}{'*' if cell.best else ''}".replace("\u00a0", " "))
        lines.append([f"{row.name} (failed)" if row.failed else row.name, row.region or "-", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = []
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        texts.append("  ".join(left + right).rstrip())
    texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*texts, *_state(report), FOOTNOTE.replace("Bold:", "*:").replace("no bold", "no *")]) + "\n"


def _state(report: dict[str, Any]) -> list[str]:
    """List remarks on a run that is unfinished or in which a method failed."""
    return [*([] if report["complete"] else [UNFINISHED]), *failures(report)]


@dataclass(frozen=True)
class FlipRow:
    """Items of a method that flipped from the base: a cell per group, with the p of McNemar's exact test."""

    name: str
    cells: dict[str, Cell]


def flip_rows(report: dict[str, Any]) -> list[FlipRow]:
    """Make one row for each method whose items were compared with the base's."""
    return [FlipRow(method["name"], {group: Cell(f"{counts(flips)} of {flips['items']}", f"p {p_value(flips['p'])}")
                                     for group, flips in method["flips"].items()})
            for method in report["methods"] if method["flips"]]


@dataclass(frozen=True)
class DetailRow:
    task: str
    metric: str
    n: str
    cells: list[Cell]


def detail_rows(report: dict[str, Any]) -> list[DetailRow]:
    """Make one row per task and metric over all methods: the main value with its error, then the other metrics."""
    main = ("value", "se", "n", "metric")
    rows: list[DetailRow] = []
    tasks = dict.fromkeys(task for method in report["methods"] for task in method["details"])
    for task in tasks:
        found = [method["details"].get(task, {}) for method in report["methods"]]
        first = next((detail for detail in found if detail), {})
        size = f"{first['n']:,}" if finite(first.get("n")) else ""
        cells = [Cell(score(detail.get("value")), standard_error(detail.get("se"))) for detail in found]
        rows.append(DetailRow(task, str(first.get("metric") or ""), size, cells))
        for extra in dict.fromkeys(key for detail in found for key in detail if key not in main):
            values = [detail.get(extra) for detail in found]
            if any(map(finite, values)):
                rows.append(DetailRow("", extra, "", [Cell(score(value)) for value in values]))
    return rows
