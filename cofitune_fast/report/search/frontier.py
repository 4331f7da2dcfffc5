"""Picture of what each searched region promises against what its training costs, with the frontier of the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..style.canvas import new_figure
from ..style.labels import Labels
from ..style.numbers import finite, percent, shorten
from ..style.palette import LIGHT
from ..style.plane import LABEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, dict[str, Any]]  # share of full SFT's time, figure, node


def search_frontier(report: dict[str, Any]) -> Figure | None:
    """Draw the nodes' figures after the first rung, which all have, against the time of their whole training."""
    search = report["search"]
    found = points(search["nodes"]) if search else []
    if len(found) < 2:
        return None
    first = found[0][2]["rungs"][0]
    early = finite(first["signal"])
    figure = new_figure(6.2, 3.4)
    axes = figure.add_axes((0.12, 0.15, 0.86, 0.82))
    best = frontier(found)
    low, high = (end([value for _, value, _ in found]) for end in (min, max))
    axes.set_xlim(0, 1.18 * max(time for time, _, _ in found))
    axes.set_ylim(low - 0.12 * (high - low) - 1e-6, high + 0.16 * (high - low) + 1e-6)
    labels = Labels(figure, axes)
    for time, value, node in found:
        chosen = node["id"] == search["chosen"]
        color = LIGHT["accent" if chosen else "ink" if (time, value, node) in best else "muted"]
        axes.plot(time, value, "o", ms=7 if chosen else 5, color=color, mec=LIGHT["surface"], mew=0.6, zorder=4)
        places = [(x, y, ha, va) for x, ha in ((6, "left"), (-6, "right")) for y, va in ((-3, "top"), (3, "bottom"))]
        labels.write(shorten(node["label"], LABEL), (time, value), places, optional=False, fontsize=7, color=color)
    line = {"where": "post", "color": LIGHT["green"], "lw": 1.3, "zorder": 3, "gid": "frontier"}
    axes.step([time for time, _, _ in best], [value for _, value, _ in best], **line)
    axes.set_xlabel("time of the whole training, as a share of full SFT's, by counted operations", fontsize=8)
    rung = percent(first["fraction"])
    axes.set_ylabel(f"signal at {rung}, nats a token" if early else f"Uni at {rung}", fontsize=8)
    return figure


def points(nodes: Sequence[dict[str, Any]]) -> list[Point]:
    """Return the nodes that have a predicted time and a first rung like the first node's, by rising time."""
    there = [node for node in nodes if node["need"] and finite(node["need"]["time"]) and node["rungs"]]
    found = []
    for node in there:
        rung, reference = node["rungs"][0], there[0]["rungs"][0]
        key = "signal" if finite(reference["signal"]) else "uni"
        if rung["fraction"] == reference["fraction"] and finite(rung[key]):
            found.append((node["need"]["time"], rung[key], node))
    return sorted(found, key=lambda point: point[:2])


def frontier(found: Sequence[Point]) -> list[Point]:
    """Return the points that no cheaper one equals or beats, from cheap to dear."""
    best: list[Point] = []
    for point in found:
        if not best or point[1] > best[-1][1]:
            best = [one for one in best if one[0] < point[0]] + [point]
    return best
