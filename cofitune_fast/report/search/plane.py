"""Picture of the searched regions on the plane of speciality and versatility, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..style.canvas import new_figure
from ..style.labels import Labels, error_bar
from ..style.numbers import shorten
from ..style.palette import LIGHT
from ..style.plane import LABEL, iso_uni, limits, name_axes, plottable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL_LOOKS = (("^", "step3"), ("o", "step4"), ("s", "step6"), ("D", "muted"))  # marker and colour of each level
NINETY_FIVE = 1.96  # standard errors to each side of a 95 % interval of a mean


def search_plane(report: dict[str, Any]) -> Figure | None:
    """Draw the search's nodes on a plane of their own, because they are scored on another split than the methods.

    Bars are 95 % intervals of each score alone. Dropped nodes are hollow and without bars, at the scores of their last
    rung. The front is that of the other nodes and the base.
    """
    search = report["search"]
    nodes = plottable(search["nodes"]) if search else []
    if len(nodes) < 2:
        return None
    base = plottable([search["base"] | {"id": None, "label": "base"}] if search["base"] else [])
    front = pareto_front([*base, *(node for node in nodes if not node["dropped"])])
    figure = new_figure(6.2, 4.5)
    axes = figure.add_axes((0.1, 0.12, 0.885, 0.765))
    drawn = [*base, *(node | {"spec_se": 0.0, "vers_se": 0.0} if node["dropped"] else node for node in nodes)]
    limits(axes, drawn, NINETY_FIVE)
    name_axes(axes, search["split"])
    labels = Labels(figure, axes)
    for point in drawn:
        labels.keep_free(point, NINETY_FIVE)
    _draw_levels(axes, nodes)
    for point in base:
        _point(axes, point, "*", LIGHT["base"], size=10)
        axes.plot([], [], "*", ms=8, color=LIGHT["base"], label="base")
    _draw_front(axes, labels, front)
    chosen = next((node for node in nodes if node["id"] == search["chosen"]), None)
    if chosen:
        ring = {"color": LIGHT["accent"], "mfc": "none", "mew": 1.8, "zorder": 5, "ls": ""}
        axes.plot(chosen["spec"], chosen["vers"], "o", ms=13, **ring)
        axes.plot([], [], "o", ms=8, label="chosen", **ring)
        labels.name_point(chosen, shorten(chosen["label"], LABEL), LIGHT["accent"])
    for point in front:
        if point is not chosen:
            labels.name_point(point, shorten(point["label"], LABEL), LIGHT["muted"], optional=True, fontsize=7)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=4, fontsize=7.5, frameon=False, handletextpad=0.4,
        columnspacing=1.6, handlelength=1.4,
    )  # fmt: skip
    iso_uni(axes, labels)
    return figure


def pareto_front(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the Pareto-optimal points, from low to high Spec: no other point is better in one score and no worse in
    the other.
    """
    front: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (-point["spec"], -point["vers"])):
        last = front[-1] if front else None
        equal = last is not None and (last["spec"], last["vers"]) == (point["spec"], point["vers"])
        if last is None or equal or point["vers"] > last["vers"]:
            front.append(point)
    return front[::-1]


def _draw_levels(axes: Axes, nodes: list[dict[str, Any]]) -> None:
    levels = sorted({node["level"] for node in nodes})
    for rank, level in enumerate(levels):
        group = [node for node in nodes if node["level"] == level]
        marker, color = LEVEL_LOOKS[min(rank, len(LEVEL_LOOKS) - 1)]
        for node in group:
            if node["dropped"]:
                axes.plot(node["spec"], node["vers"], marker, ms=5, mfc="none", mec=LIGHT[color], alpha=0.6, zorder=2)
            else:
                _point(axes, node, marker, LIGHT[color], size=6)
        name = shorten(group[0]["level_name"], 24)
        axes.plot([], [], marker, ms=6, color=LIGHT[color], ls="", label=name)
    if any(node["dropped"] for node in nodes):
        axes.plot([], [], "o", ms=5, mfc="none", mec=LIGHT["muted"], alpha=0.6, ls="", label="dropped")


def _point(axes: Axes, point: dict[str, Any], marker: str, color: str, size: float) -> None:
    x, y = ((error_bar(point, key) or 0) * NINETY_FIVE for key in ("spec", "vers"))
    look = {"elinewidth": 0.6, "alpha": 0.45, "zorder": 2}
    axes.errorbar(point["spec"], point["vers"], xerr=x or None, yerr=y or None, fmt="none", ecolor=color, **look)
    axes.plot(point["spec"], point["vers"], marker, ms=size, color=color, mec=LIGHT["surface"], mew=0.6, zorder=4)


def _draw_front(axes: Axes, labels: Labels, front: list[dict[str, Any]]) -> None:
    """Draw the boundary of the area that the front dominates, a staircase from the left of the plane to its bottom."""
    if len(front) < 2:
        return
    x = [axes.get_xlim()[0], *(point["spec"] for point in front), front[-1]["spec"]]
    y = [front[0]["vers"], *(point["vers"] for point in front), axes.get_ylim()[0]]
    axes.step(x, y, where="pre", color=LIGHT["green"], lw=1.3, zorder=3, gid="pareto", label="Pareto front")
    for before, after in itertools.pairwise(front):
        labels.keep_free_line((before["spec"], after["vers"]), (after["spec"], after["vers"]))
        labels.keep_free_line((before["spec"], before["vers"]), (before["spec"], after["vers"]))
    labels.keep_free_line((x[-1], y[-2]), (x[-1], y[-1]))
