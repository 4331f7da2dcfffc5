"""Picture of a search's cost: each region in the order of training, and the total."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..style.canvas import new_figure
from ..style.numbers import duration, finite, shorten
from ..style.palette import LIGHT, STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL = 30  # characters of a region's name that fit
REST = "the base's scores"


def search_cost(report: dict[str, Any]) -> Figure | None:
    """Draw one bar per node, its rungs one after another, in full fine-tunings where known, else in seconds."""
    search = report["search"]
    nodes = search["nodes"] if search else []
    unit = next((key for key in ("full_sft", "seconds") if nodes and all(finite(node[key]) for node in nodes)), None)
    if unit is None:
        return None
    total = search["cost"][unit] if finite(search["cost"][unit]) else sum(node[unit] for node in nodes)
    rest = total - sum(node[unit] for node in nodes)
    rows = [(shorten(node["label"], LABEL), parts(node, unit), node) for node in nodes]
    if rest > 0.002 * total:
        rows.insert(0, (REST, [(1.0, rest)], None))
    colors = _rung_colors(nodes)
    top = 0.51 if len(colors) > 1 else 0.30  # inches above the bars, for the total and the legend
    figure = new_figure(6.2, top + 0.51 + 0.24 * len(rows))
    height = figure.get_figheight()
    left = min(0.40, 0.035 + 0.0125 * max(len(name) for name, _, _ in rows))
    axes = figure.add_axes((left, 0.48 / height, 0.90 - left, 1 - (top + 0.48) / height))
    for position, (_, pieces, node) in enumerate(rows):
        start = 0.0
        for end, value in pieces:
            color = LIGHT["line"] if node is None else LIGHT[colors[end]]
            axes.barh(position, value, 0.68, left=start, color=color, ec=LIGHT["surface"], lw=0.6)
            start += value
        chosen = node is not None and node["id"] == search["chosen"]
        ink = "accent" if chosen else "muted" if node is None or node["dropped"] else "ink"
        note = "  chosen" if chosen else "  dropped" if node and node["dropped"] else ""
        axes.annotate(
            _amount(start, unit) + note, (start, position), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=7, color=LIGHT[ink], annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.tick_params(axis="y", length=0, labelsize=7.5, labelcolor=LIGHT["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(sum(value for _, value in pieces) for _, pieces, _ in rows) or 1.0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LIGHT["faint"], lw=0.7)
    axes.set_xlabel("full fine-tunings, by counted operations" if unit == "full_sft" else "seconds", fontsize=8)
    if len(colors) > 1:
        for end, color in sorted(colors.items()):
            axes.bar(0, 0, color=LIGHT[color], label=f"up to {end:.0%}".replace("%", " %"))
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=6, fontsize=7.5, frameon=False, handlelength=1.0,
            columnspacing=1.2, handletextpad=0.4,
        )  # fmt: skip
    figure.text(left, 1 - 0.16 / height, _total(search, unit, total), fontsize=8.5, fontweight="bold", va="center")
    return figure


def parts(node: dict[str, Any], unit: str) -> list[tuple[float, float]]:
    """List (end of the rung as a fraction of the training, its cost); one entry where the rungs are not known."""
    rungs = [(rung["fraction"], rung[unit]) for rung in node["rungs"]]
    return rungs if rungs and all(finite(cost) for _, cost in rungs) else [(node["fraction"], node[unit])]


def _rung_colors(nodes: list[dict[str, Any]]) -> dict[float, str]:
    ends = sorted({end for node in nodes for end, _ in parts(node, "seconds")})
    first, last = 2, STEPS - 1
    gaps = max(len(ends) - 1, 1)
    return {end: f"step{last - round((last - first) * (len(ends) - 1 - rank) / gaps)}" for rank, end in enumerate(ends)}


def _amount(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit == "full_sft" else duration(value)


def _total(search: dict[str, Any], unit: str, total: float) -> str:
    seconds = search["seconds"] if finite(search["seconds"]) else search["cost"]["seconds"]
    clock = duration(seconds) if finite(seconds) else ""
    whole = [f"{total:.2f} full fine-tunings", clock] if unit == "full_sft" else [duration(total)]
    return "The whole search: " + ", ".join(filter(None, whole))
