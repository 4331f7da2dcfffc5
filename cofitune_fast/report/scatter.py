"""Pictures of the scores: the Spec-Vers plane of the methods, that of the search, and the Uni bars."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .canvas import new_figure
from .labels import Labels, error_bar
from .numbers import finite, score, shorten
from .palette import LIGHT, method_styles
from .schema import BASE
from .verdict import searched_on_report_split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL = 30  # signs of a method's name that fit into a picture
LEVEL_LOOKS = (("^", "step3"), ("o", "step4"), ("s", "step6"), ("D", "muted"))  # of the search's levels


def tradeoff(report: dict[str, Any]) -> Figure | None:
    """Spec to the right, Vers upward; error bars of one standard error; dotted lines of equal Uni."""
    points = _plottable(report["methods"])
    if not points:
        return None
    figure = new_figure(6.2, 4.3)
    axes = figure.add_axes((0.1, 0.125, 0.885, 0.86))
    nodes = _plottable(report["search"]["nodes"]) if searched_on_report_split(report) else []
    _limits(axes, points + nodes)
    _name_axes(axes, report["split"].get("report"))
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
        labels.name_point(point, shorten(point["name"], LABEL), styles[point["name"]].light)
    _base_line(axes, labels, points)
    _iso_uni(axes, labels)
    return figure


def search_plane(report: dict[str, Any]) -> Figure | None:
    """The search's nodes in their own plane, as they are scored on another split than the methods."""
    search = report["search"]
    nodes = _plottable(search["nodes"]) if search else []
    if len(nodes) < 2:
        return None
    figure = new_figure(6.2, 4.1)
    axes = figure.add_axes((0.1, 0.132, 0.885, 0.79))
    _limits(axes, nodes)
    _name_axes(axes, search["split"])
    labels = Labels(figure, axes)
    levels = sorted({node["level"] for node in nodes})
    for rank, level in enumerate(levels):
        group = [node for node in nodes if node["level"] == level]
        marker, color = LEVEL_LOOKS[min(rank, len(LEVEL_LOOKS) - 1)]
        for node in group:
            labels.keep_free(node)
            axes.errorbar(
                node["spec"], node["vers"], xerr=error_bar(node, "spec"), yerr=error_bar(node, "vers"), fmt=marker,
                ms=6, color=LIGHT[color], mec=LIGHT["surface"], mew=0.6, elinewidth=0.6, alpha=0.9, zorder=2,
            )  # fmt: skip
        axes.plot(
            [], [], marker, ms=6, color=LIGHT[color], label=shorten(group[0]["level_name"], 72 // (len(levels) + 1))
        )
    chosen = next((node for node in nodes if node["id"] == search["chosen"]), None)
    if chosen:
        ring = {"color": LIGHT["accent"], "mfc": "none", "mew": 1.8, "zorder": 4, "ls": ""}
        axes.plot(chosen["spec"], chosen["vers"], "o", ms=13, **ring)
        axes.plot([], [], "o", ms=8, label="chosen", **ring)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=8, fontsize=8, frameon=False, handletextpad=0.2,
        columnspacing=1.4,
    )  # fmt: skip
    _iso_uni(axes, labels)
    return figure


def uni_bars(report: dict[str, Any]) -> Figure | None:
    """Spec and Vers stacked to Uni, one bar a method, in the report's order; the whisker is Uni's standard error."""
    rows = _plottable(report["methods"])
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


def _plottable(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if finite(entry["spec"]) and finite(entry["vers"])]


def _limits(axes: Axes, points: list[dict[str, Any]]) -> None:
    """Room for all error bars and labels; never narrower than 0.04, so that noise does not look like an effect."""
    for key, setter in (("spec", axes.set_xlim), ("vers", axes.set_ylim)):
        low = min(point[key] - (error_bar(point, key) or 0) for point in points)
        high = max(point[key] + (error_bar(point, key) or 0) for point in points)
        pad = max(0.13 * (high - low), (0.04 - (high - low)) / 2, 0.004)
        setter(low - pad, high + pad)


def _name_axes(axes: Axes, split: str | None) -> None:
    where = f" ({shorten(str(split), LABEL)} split)" if split else ""
    axes.set_xlabel(f"Spec: speciality{where}")
    axes.set_ylabel(f"Vers: versatility{where}")


def _iso_uni(axes: Axes, labels: Labels) -> None:
    """Some seven lines Vers = Uni − Spec, each named where it leaves the plane, if there is room."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    step = _round_step((right + top - left - bottom) / 7)
    digits = max(0, -math.floor(math.log10(step)))
    for index in range(math.ceil((left + bottom) / step), math.floor((right + top) / step) + 1):
        uni = index * step
        start, end = max(left, uni - top), min(right, uni - bottom)
        axes.plot([start, end], [uni - start, uni - end], color=LIGHT["line"], lw=0.8, ls=(0, (1, 2.5)), zorder=0)
        # A line that leaves at the right is named left of its end, one that leaves at the bottom right of it.
        offset, ha = ((-3, 4), "right") if end >= right else ((4, 4), "left")
        place = [(*offset, ha, "bottom")]
        look = {"fontsize": 6.5, "color": LIGHT["muted"]}
        labels.write(f"Uni {uni:.{digits}f}", (end, uni - end), place, optional=True, **look)


def _base_line(axes: Axes, labels: Labels, points: list[dict[str, Any]]) -> None:
    base = next((point for point in points if point["name"] == BASE), None)
    if base:
        axes.axhline(base["vers"], color=LIGHT["base"], lw=0.9, ls=(0, (5, 3)), zorder=1)
        far = max(
            axes.get_xlim(), key=lambda end: abs(end - base["spec"])
        )  # write where the longer part of the line is
        middle = (base["spec"] + far) / 2
        places = [(dx, dy, "center", "bottom" if dy > 0 else "top") for dx in (0, -60, 60) for dy in (3, -3)]
        labels.write("the base's versatility", (middle, base["vers"]), places, fontsize=7, color=LIGHT["muted"])
        labels.keep_free_line(base["vers"])


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 × 10^k that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
