"""Pictures of the methods' scores: their Spec-Vers plane and the Uni bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...artefacts.run import BASE
from ..style.canvas import new_figure
from ..style.labels import Labels, error_bar
from ..style.numbers import score, shorten
from ..style.palette import GREY, LIGHT, method_styles
from ..style.plane import LABEL, iso_uni, limits, name_axes, plottable
from .verdict import searched_on_report_split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure



def tradeoff(report: dict[str, Any]) -> Figure | None:
    """Draw the methods with Spec to the right and Vers upward.

    Error bars are one standard error. Dotted lines connect points of equal Uni.
    """
    points = plottable(report["methods"])
    if not points:
        return None
    figure = new_figure(6.2, 4.3)
    axes = figure.add_axes((0.1, 0.125, 0.885, 0.86))
    nodes = plottable(report["search"]["nodes"]) if searched_on_report_split(report) else []
    limits(axes, points + nodes)
    name_axes(axes, report["split"].get("report"))
    if nodes:
        x, y = ([node[key] for node in nodes] for key in ("spec", "vers"))
        axes.scatter(x, y, s=9, color=LIGHT["muted"], alpha=0.45, lw=0)
    styles = method_styles([method["name"] for method in report["methods"]])
    for point in points:
        look = styles[point["name"]]
        axes.errorbar(
            point["spec"], point["vers"], xerr=error_bar(point, "spec"), yerr=error_bar(point, "vers"), fmt=look.marker,
            ms=8, color=look.light, mec=LIGHT["surface"], mew=1.0, elinewidth=1.1, capsize=2.5, zorder=3,
        )  # fmt: skip
    labels = Labels(figure, axes)
    for point in points:
        labels.keep_free(point)
    for point in points:
        look = styles[point["name"]]
        labels.name_point(point, shorten(point["name"], LABEL), look.light, bold=look.color != GREY)
    _base_line(axes, labels, points)
    iso_uni(axes, labels)
    return figure


def uni_bars(report: dict[str, Any]) -> Figure | None:
    """Draw Spec and Vers stacked to Uni, one bar per method in the report's order; the whisker is Uni's standard error.
    """
    rows = plottable(report["methods"])
    if not rows:
        return None
    styles = method_styles([method["name"] for method in report["methods"]])
    figure = new_figure(6.2, 0.75 + 0.42 * len(rows))
    height = figure.get_figheight()
    names = [shorten(row["name"], LABEL) for row in rows]
    left = min(0.42, 0.035 + 0.0128 * max(map(len, names)))
    axes = figure.add_axes((left, 0.42 / height, 0.87 - left, 1 - 0.72 / height))
    for position, row in enumerate(rows):
        color = styles[row["name"]].light
        axes.barh(position, row["spec"], 0.62, color=color)
        axes.barh(position, row["vers"], 0.62, left=row["spec"], color=color, alpha=0.35)
        for start, width, ink in ((0.0, row["spec"], "ink6"), (row["spec"], row["vers"], "ink")):
            if width > 0.12 * _longest(rows):
                where = {"ha": "center", "va": "center"}
                axes.text(start + width / 2, position, score(width), fontsize=7.5, color=LIGHT[ink], **where)
        total = row["spec"] + row["vers"]
        if (error := error_bar(row, "uni")) is not None:
            axes.errorbar(total, position, xerr=error, fmt="none", color=LIGHT["ink"], elinewidth=1.0, capsize=2.5)
        axes.annotate(
            f"{total:.3f}", (total + (error or 0), position), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=8.5, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=LIGHT["ink"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.04 * _longest(rows))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LIGHT["faint"], lw=0.7)
    axes.set_xlabel("full colour: Spec  ·  light: Vers  ·  whole bar: Uni", fontsize=8)
    return figure


def _longest(rows: list[dict[str, Any]]) -> float:
    return max(row["spec"] + row["vers"] + (error_bar(row, "uni") or 0) for row in rows) or 1.0


def _base_line(axes: Axes, labels: Labels, points: list[dict[str, Any]]) -> None:
    base = next((point for point in points if point["name"] == BASE), None)
    if base:
        axes.axhline(base["vers"], color=LIGHT["base"], lw=0.9, ls=(0, (5, 3)), zorder=1)
        far = max(
            axes.get_xlim(), key=lambda end: abs(end - base["spec"])
        )  # place the label on the longer part of the line
        middle = (base["spec"] + far) / 2
        places = [(dx, dy, "center", "bottom" if dy > 0 else "top") for dx in (0, -60, 60) for dy in (3, -3)]
        labels.write("the base's versatility", (middle, base["vers"]), places, fontsize=7, color=LIGHT["muted"])
        labels.keep_free_line(*((x, base["vers"]) for x in axes.get_xlim()))
