"""Rows of a comparison's tables for page and terminal, with every number as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...artefacts import checked
from ..style.cell import Cell
from ..style.numbers import MISSING, byte_size, count, duration, percent, rate, score
from ..style.terminal import rich_parts

if TYPE_CHECKING:
    from rich.table import Table

MEASURES = {"vers": "Vers", "instruction_likelihood": "Instruction likelihood", "drift": "KL to base"}
KLS = ("drift", "task_drift")
FIGURES = {"spec": "Spec", "vers": "Vers", "knowledge": "Knowledge", "reasoning": "Reasoning",
           "instruction": "Instruction", "instruction_likelihood": "Instruction likelihood", "drift": "KL to base",
           "task_drift": "KL to base on the task"}


@dataclass(frozen=True)
class ChosenRow:
    """A method at the rate chosen on valid: each figure, and below it the differences to base and reference."""

    name: str
    rate: str
    figures: dict[str, list[str]]
    marks: dict[str, str]
    cells: list[Cell]


@dataclass(frozen=True)
class EqualRow:
    """A method at the reference's speciality: per measure its loss, its shares of the rivals' losses, and the outcomes.
    """

    name: str
    losses: dict[str, Cell]
    shares: dict[str, dict[str, Cell]]


def curves_of(content: dict[str, Any], task: str) -> dict[str, dict[str, Any]]:
    return {curve["method"]: curve for curve in content["curves"] if curve["task"] == task}


def verdict_of(content: dict[str, Any], task: str, measure: str) -> dict[str, Any] | None:
    """Return the verdict, or None if there is none with rows."""
    found = [entry for entry in content["verdicts"] if (entry["task"], entry["measure"]) == (task, measure)]
    return found[0] if found and found[0]["rows"] else None


def shown(figure: str, value: float | None, signed: bool = False) -> str:
    """Format a figure: the KL as a positive number of nats with four decimals, everything else with three."""
    if value is None:
        return MISSING
    if figure in KLS:
        return f"{-value:+.4f}" if signed else f"{abs(value):.4f}"
    return f"{value:+.3f}" if signed else score(value)


def interval_text(figure: str, interval: dict[str, float], signed: bool = False) -> str:
    ends = [interval["low"], interval["high"]] if figure not in KLS else [interval["high"], interval["low"]]
    return (f"{shown(figure, interval['value'], signed)} "
            f"[{', '.join(shown(figure, end, signed) for end in ends)}]")


def loss_cell(figure: str, row: dict[str, Any]) -> Cell:
    """Format the loss at equal speciality, or the highest Spec of a method that does not reach it."""
    if not row["reaches"]:
        return Cell(MISSING, f"Spec {score(row['highest_spec']['value'])} at most")
    loss, digits = row["loss"], 4 if figure == "drift" else 3
    return Cell(f"{loss['value']:.{digits}f}", f"[{loss['low']:.{digits}f}, {loss['high']:.{digits}f}]")


def figures_of(content: dict[str, Any], task: str) -> list[str]:
    """List the figures that any point of the task has, in order."""
    points = [point for curve in curves_of(content, task).values() for point in curve["points"]]
    return [figure for figure in FIGURES if any(figure in point["test"] for point in points)]


def chosen_rows(content: dict[str, Any], task: str, kind: str = "uni") -> list[ChosenRow]:
    """Make one row for each method with a run; `kind` is a key of a curve's `chosen`."""
    rows = []
    for name, curve in curves_of(content, task).items():
        chosen = curve["chosen"][kind]
        if chosen is None:
            rows.append(ChosenRow(name, MISSING, {}, {}, [Cell(MISSING)] * 3 + [seeds_cell(content, None)]))
            continue
        point = curve["points"][chosen["point"]]
        cost = point["cost"] or {}
        trained = cost.get("trained_parameters")
        whole = content["base"]["parameters"]
        rows.append(ChosenRow(
            name,
            point_name(point),
            {figure: [shown(figure, interval["value"]),
                      "− base " + interval_text(figure, point["minus_base"][figure], signed=True)
                      if figure in point["minus_base"] else "",
                      "" if _is_reference(chosen) else
                      "− ref. " + interval_text(figure, chosen["minus_reference"][figure], signed=True)
                      if figure in chosen["minus_reference"] else ""]
             for figure, interval in point["test"].items() if figure in FIGURES},
            {} if _is_reference(chosen) else dict(chosen["outcome"]),
            [Cell(count(trained), percent(trained / whole) if trained is not None and whole > 0 else ""),
             Cell(duration(cost.get("training_seconds")), percent(chosen["time_of_reference"])),
             Cell(byte_size(cost.get("peak_memory_bytes"))), seeds_cell(content, point)],
        ))  # fmt: skip
    return rows


def _is_reference(chosen: dict[str, Any]) -> bool:
    return all(entry["low"] == entry["high"] == 0 for entry in chosen["minus_reference"].values())


def point_name(point: dict[str, Any]) -> str:
    alpha = point.get("alpha")
    return rate(point["learning_rate"]) + ("" if alpha is None else f", α {alpha:g}")


def seeds_cell(content: dict[str, Any], point: dict[str, Any] | None) -> Cell:
    """Format the number of finished seeds of those requested, and name the others."""
    if point is None:
        return Cell(f"0 of {len(content['seeds'])}")
    gone = ", ".join(f"{entry['seed']} {entry['state']}" for entry in point["missing"])
    return Cell(f"{len(point['seeds'])} of {len(point['seeds']) + len(point['missing'])}", gone)


def equal_rows(content: dict[str, Any], task: str) -> list[EqualRow]:
    """Make one row for each method with a run, over the measures that are judged."""
    verdicts = {key: verdict for key in MEASURES if (verdict := verdict_of(content, task, key))}
    names = list(dict.fromkeys(row["method"] for verdict in verdicts.values() for row in verdict["rows"]))
    rows = []
    for name in names:
        found = {key: next(row for row in verdict["rows"] if row["method"] == name)
                 for key, verdict in verdicts.items()}  # fmt: skip
        shares = {key: {rival: _share_cell(row, rival) for rival in verdicts[key]["rivals"]}
                  for key, row in found.items()}  # fmt: skip
        rows.append(EqualRow(name, {key: loss_cell(key, row) for key, row in found.items()}, shares))
    return rows


def _share_cell(row: dict[str, Any], rival: str) -> Cell:
    outcome = row["outcome"].get(rival)
    if outcome is None:
        return Cell("")
    if outcome == "unreached":
        below = row["below"][rival]
        return Cell(f"{below['outcome']} at Spec {score(below['spec']['value'])}", _share_text(below["share"]))
    return Cell(outcome, _share_text(row["share"][rival]), outcome == "ahead")


def _share_text(share: dict[str, float] | None) -> str:
    return f"{percent(share['value'])} [{percent(share['low'])}, {percent(share['high'])}]" if share else ""


def gaps(content: dict[str, Any]) -> list[str]:
    """Make a line for each method, task and reason with runs that are not done."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run in content["runs"]:
        if run["state"] != "done":
            key = (run["task"], run["method"], run["state"], str(run.get("why") or ""))
            found.setdefault(key, []).append(f"{rate(run['learning_rate'])} seed {run['seed']}")
    return [f"{method} on {task}, {state}{': ' + why if why else ''} ({', '.join(which)})"
            for (task, method, state, why), which in found.items()]  # fmt: skip


def comparison_table(content: dict[str, Any]) -> Table:
    """Make a rich Table for the terminal: each method at its chosen rate, and its loss at equal Spec.

    Raises:
        CofituneError: rich is not installed, or the comparison is malformed.
    """
    box, escape, Table = rich_parts()
    content = checked("comparison", content)
    table = Table(title=escape(content["title"]), caption=FOOTNOTE, title_justify="left", caption_justify="left",
                  box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("Method", overflow="fold", min_width=14)
    for title in ("Rate", "Spec", "Vers", "Vers\nlost", "Instr. lik.\nlost", "Against\nreference", "Time", "Seeds"):
        table.add_column(title, justify="right", no_wrap=True)
    for task in content["tasks"]:
        table.add_row(f"[bold]{escape(task)}[/bold]", end_section=True)
        equal = {row.name: row for row in equal_rows(content, task)}
        for row in chosen_rows(content, task):
            losses, shares = (equal[row.name].losses, equal[row.name].shares) if row.name in equal else ({}, {})
            judged = next((key for key in ("instruction_likelihood", "vers") if key in shares), None)
            against = next(iter(shares[judged].values()), Cell("")) if judged else Cell("")
            outcome = f"[bold]{against.text}[/bold]" if against.best else against.text.replace(" at Spec 0", "\nat ")
            seeds = row.cells[3].small.replace(" missing", "").replace(" failed", "")
            table.add_row(
                escape(row.name), row.rate.replace(", ", "\n"),
                *(row.figures.get(figure, [MISSING])[0] for figure in ("spec", "vers")),
                *(_narrow(losses.get(figure, Cell(MISSING))) for figure in ("vers", "instruction_likelihood")),
                outcome, row.cells[1].small or row.cells[1].text,
                _narrow(Cell(row.cells[3].text, f"no {seeds}" if seeds else "")),
            )  # fmt: skip
    return table


def _narrow(cell: Cell) -> str:
    """Format a cell in two lines, short enough for a terminal of 80 columns."""
    small = cell.small.replace("0.", ".").replace(", ", ",").replace(" at most", "").replace("Spec ", "Spec ≤ ")
    return f"{cell.text}\n[dim]{small.replace('[', chr(92) + '[')}[/dim]" if small else cell.text


FOOTNOTE = (
    "Lost: against the base, at the Spec of the reference at its best rate less 2 %, between the points of a "
    "method's frontier; 95 % intervals over items and seeds. Ahead or behind, by instruction likelihood if it was "
    "measured: the intervals of the two losses lie apart. Rates are chosen on valid, all else is of the test part. "
    "Time: of training, as a share of the reference's."
)
