"""Picture of the search as a tree: levels from left to right, colour by Uni, the chosen path on top.

Dropped nodes are pale. A bar at the bottom of a box shows how much of its training the node received.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..differences import share
from ..style.canvas import blank_axes, new_figure
from ..style.numbers import finite, percent, score, shorten
from ..style.palette import LIGHT, step_of
from .sentences import signal_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOX_WIDTH, BOX_HEIGHT = 1.95, 0.60  # inches
COLUMN_GAP, ROW_GAP, GROUP_GAP = 0.55, 0.12, 0.26
MARGIN, HEADER = 0.12, 0.42
LABEL = 27  # characters that fit into a box


def search_tree(report: dict[str, Any]) -> Figure | None:
    search = report["search"]
    if not search or not search["nodes"]:
        return None
    nodes = search["nodes"]
    places, columns = layout(nodes)
    roots = [node for node in nodes if node["parent"] is None]
    origin = 0.34 if len(roots) > 1 else 0.0  # a common point from which several first candidates fan out
    width = 2 * MARGIN + origin + columns * BOX_WIDTH + (columns - 1) * COLUMN_GAP
    height = HEADER + max(y for _, y in places.values()) + BOX_HEIGHT / 2 + MARGIN
    figure = new_figure(max(width, 3.4), height)
    axes = blank_axes(figure)
    corners = {
        key: (MARGIN + origin + column * (BOX_WIDTH + COLUMN_GAP), HEADER + y) for key, (column, y) in places.items()
    }
    path = chosen_path(search)
    for column, level in enumerate(sorted({node["level"] for node in nodes})):
        name = next(node["level_name"] for node in nodes if node["level"] == level)
        x = MARGIN + origin + column * (BOX_WIDTH + COLUMN_GAP)
        axes.text(x, 0.2, shorten(name, LABEL + 3), fontsize=8.5, fontweight="bold", color=LIGHT["muted"], va="center")
    start = (MARGIN + 0.05, sum(corners[node["id"]][1] for node in roots) / len(roots))
    for node in sorted(nodes, key=lambda node: node["id"] in path):
        x, y = corners[node["id"]]
        if node["parent"] is not None:
            px, py = corners[node["parent"]]
            _edge(axes, (px + BOX_WIDTH, py), (x, y), node["id"] in path)
        elif origin:
            _edge(axes, start, (x, y), node["id"] in path)
    if origin:
        axes.plot(*start, "o", ms=6, color=LIGHT["accent"] if path else LIGHT["muted"], zorder=3)
    scores = [node["uni"] for node in nodes if finite(node["uni"]) and not node["dropped"]]
    for node in nodes:
        edge = 2.4 if node["id"] == search["chosen"] else 1.7 if node["id"] in path else 0.0
        trained = share(node["trained_parameters"], report["base"]["parameters"])
        _box(axes, node, corners[node["id"]], scores, trained, edge)
    return figure


def layout(nodes: list[dict[str, Any]]) -> tuple[dict[Any, tuple[int, float]], int]:
    """Return (id -> (column, y of the centre in inches, from 0.3 on), number of columns).

    Each column is a stack in the order of the parents. Siblings are placed as near to their parent's height as the
    groups above allow.
    """
    levels = sorted({node["level"] for node in nodes})
    places: dict[Any, tuple[int, float]] = {}
    for column, level in enumerate(levels):
        groups: dict[Any, list[dict[str, Any]]] = {}
        for node in (node for node in nodes if node["level"] == level):
            groups.setdefault(node["parent"], []).append(node)
        stacks = sorted(groups.items(), key=lambda item: places[item[0]][1] if item[0] in places else -1.0)
        bottom = -float("inf")
        for parent, members in stacks:
            pitch = BOX_HEIGHT + ROW_GAP
            half = (len(members) - 1) * pitch / 2
            middle = places[parent][1] if parent in places else half + BOX_HEIGHT / 2
            first = max(middle - half, bottom)
            for index, node in enumerate(members):
                places[node["id"]] = (column, first + index * pitch)
            bottom = first + len(members) * pitch + GROUP_GAP
    top = min(y for _, y in places.values()) - BOX_HEIGHT / 2
    return {key: (column, y - top) for key, (column, y) in places.items()}, len(levels)


def chosen_path(search: dict[str, Any]) -> set[Any]:
    """Return the ids of the chosen node and its ancestors."""
    parents = {node["id"]: node["parent"] for node in search["nodes"]}
    path, node = set(), search["chosen"]
    while node is not None:
        path.add(node)
        node = parents[node]
    return path


def _edge(axes: Axes, start: tuple[float, float], end: tuple[float, float], strong: bool) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2
    curve = Path([(x0, y0), (middle, y0), (middle, y1), (x1, y1)], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    color, width = (LIGHT["accent"], 2.2) if strong else (LIGHT["line"], 1.0)
    axes.add_patch(PathPatch(curve, fc="none", ec=color, lw=width, zorder=2 if strong else 1))


def _box(
    axes: Axes, node: dict[str, Any], corner: tuple[float, float], scores: list[float], trained: float, accent: float
) -> None:
    """Draw one node; `accent` is the width of its edge in points on the chosen path, 0 off it."""
    from matplotlib.patches import FancyBboxPatch

    x, y = corner
    known, dropped = finite(node["uni"]), bool(node["dropped"])
    colored = known and not dropped
    step = step_of(node["uni"], min(scores), max(scores)) if colored else 0
    fill, ink = (LIGHT[f"step{step}"], LIGHT[f"ink{step}"]) if colored else (LIGHT["surface"], LIGHT["muted"])
    edge, line = (LIGHT["accent"], accent) if accent else (LIGHT["line"], 0.8)
    axes.add_patch(FancyBboxPatch(
        (x, y - BOX_HEIGHT / 2), BOX_WIDTH, BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.07", fc=fill, ec=edge,
        lw=line, ls="-" if colored else (0, (3, 2)), zorder=4, gid="dropped" if dropped else None,
    ))  # fmt: skip
    left, right = x + 0.10, x + BOX_WIDTH - 0.10
    text = {"color": ink, "va": "center", "zorder": 5}
    axes.text(left, y - 0.18, shorten(node["label"], LABEL), fontsize=8, fontweight="bold", **text)
    second = node["region"] if node["region"] and node["region"] != node["label"] else ""
    axes.text(left, y - 0.01, shorten(second, LABEL + 3), fontsize=7, **text)
    error = f" ± {node['uni_se']:.3f}" if known and finite(node["uni_se"]) else ""
    figure = f"Uni {score(node['uni'])}{error}" if known else signal_text(node) or "no score"
    axes.text(left, y + 0.155, figure, fontsize=8, **text)
    corner_text = f"out at {percent(node['fraction'])}" if dropped else percent(trained) if finite(trained) else ""
    axes.text(right, y + 0.155, corner_text, fontsize=7, ha="right", **text)
    if node["rungs"]:
        level = y + BOX_HEIGHT / 2 - 0.045
        axes.plot([left, right], [level] * 2, lw=2, color=ink, alpha=0.2, zorder=5, solid_capstyle="butt")
        reached = left + node["fraction"] * (right - left)
        axes.plot([left, reached], [level] * 2, lw=2, color=ink, zorder=6, solid_capstyle="butt", gid="rung")
