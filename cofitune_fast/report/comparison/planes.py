"""Pictures of a comparison: the curves of its methods on the plane of speciality and versatility."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..style.canvas import new_figure
from ..style.labels import Labels
from ..style.numbers import shorten
from ..style.palette import GREY, LIGHT, Style, highlighted_styles
from ..style.plane import LABEL
from .rows import curves_of, verdict_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"vers": "Vers: versatility", "instruction_likelihood": "Instruction likelihood"}


def styles_of(content: dict[str, Any]) -> dict[str, Style]:
    return highlighted_styles(content["methods"])


def plane(content: dict[str, Any], task: str, measure: str) -> Figure | None:
    """Draw one curve per method through its frontier, a point per rate, and error bars of the difference to the base.
    """
    curves = {name: [point for point in curve["points"] if {"spec", measure} <= point["test"].keys()]
              for name, curve in curves_of(content, task).items()}  # fmt: skip
    base = _base(content, task, measure)
    if base is None or not any(curves.values()):
        return None
    figure = new_figure(7.6, 4.9)
    names = [shorten(name, LABEL) for name, points in curves.items() if points]
    margin = 0.04 + 0.0108 * max(map(len, names))
    axes = figure.add_axes((0.09, 0.11, 0.9 - margin, 0.875))
    places = [_at(point, measure) for points in curves.values() for point in points]
    _limits(axes, [base, *places], [point for points in curves.values() for point in points], measure)
    split = content["split"].get("report")
    where = f" ({shorten(split, LABEL)} part)" if split else ""
    axes.set_xlabel(f"Spec: speciality in {shorten(task, LABEL)}{where}")
    axes.set_ylabel(f"{NAMES[measure]}{where}")
    labels, styles = Labels(figure, axes), styles_of(content)
    for name, points in sorted(curves.items(), key=lambda pair: styles[pair[0]].color != GREY):
        _curve(axes, points, curves_of(content, task)[name], base, measure, styles[name])
    for x, y in [base, *places]:
        labels.keep_free(_entry(x, y))
    ends = {name: max(_at(point, measure) for point in points) for name, points in curves.items() if points}
    _name_ends(axes, ends, styles)
    axes.plot(*base, "s", ms=8, color=LIGHT["base"], mec=LIGHT["surface"], zorder=4, gid="base")
    axes.axhline(base[1], color=LIGHT["base"], lw=0.9, ls=(0, (5, 3)), zorder=1)
    labels.keep_free_line((axes.get_xlim()[0], base[1]), (axes.get_xlim()[1], base[1]))
    labels.name_point(_entry(*base), "base", LIGHT["base"])
    _target(axes, labels, verdict_of(content, task, measure))
    return figure


def _base(content: dict[str, Any], task: str, measure: str) -> tuple[float, float] | None:
    """Compute the base's position from any point: its figures less their differences to the base."""
    for curve in curves_of(content, task).values():
        for point in curve["points"]:
            if {"spec", measure} <= point["minus_base"].keys():
                spec, other = (point["test"][key]["value"] - point["minus_base"][key]["value"]
                               for key in ("spec", measure))  # fmt: skip
                return spec, other
    return None


def _at(point: dict[str, Any], measure: str) -> tuple[float, float]:
    return point["test"]["spec"]["value"], point["test"][measure]["value"]


def _bars(point: dict[str, Any], key: str) -> list[list[float]]:
    """Return the interval of the difference to the base as matplotlib takes it: distances below and above."""
    interval = point["minus_base"].get(key) or point["test"][key]
    return [[max(0.0, interval["value"] - interval["low"])], [max(0.0, interval["high"] - interval["value"])]]


def _limits(axes: Axes, places: list[tuple[float, float]], points: list[dict[str, Any]], measure: str) -> None:
    """Set axis limits that hold all points, and the error bars of points with all seeds.

    Error bars from two of three seeds can be very wide, so they may be cut off.
    """
    whole = [point for point in points if not point["missing"]]
    for index, (key, setter) in enumerate((("spec", axes.set_xlim), (measure, axes.set_ylim))):
        ends = [place[index] for place in places]
        span = max(ends) - min(ends)
        for point in whole:
            below, above = (min(bar[0], span / 2) for bar in _bars(point, key))
            ends += [_at(point, measure)[index] - below, _at(point, measure)[index] + above]
        low, high = min(ends), max(ends)
        pad = max(0.08 * (high - low), 0.004)
        setter(low - pad, high + pad)


def _curve(
    axes: Axes, points: list[dict[str, Any]], curve: dict[str, Any], base: tuple[float, float], measure: str,
    look: Style,
) -> None:
    grey = look.color == GREY
    corners = curve["frontier"].get(measure, [])
    places = sorted(base if index is None else _at(curve["points"][index], measure) for index in corners)
    # Corners are chosen on valid. On test one may be below another in both scores; the line leaves it out.
    line = [(x, y) for x, y in places if (x, y) == base or not any(u > x and v > y for u, v in places)]
    axes.plot(*zip(*line, strict=True), color=look.light, lw=1.0 if grey else 2.4, alpha=0.8 if grey else 1.0,
              zorder=2, gid=f"curve {curve['method']}")
    for point in points:
        x, y = _at(point, measure)
        filled = curve["points"].index(point) in corners
        axes.errorbar(x, y, xerr=_bars(point, "spec"), yerr=_bars(point, measure), fmt="none", ecolor=look.light,
                      elinewidth=0.6 if grey else 1.0, alpha=0.35 if grey else 0.55, zorder=2)
        axes.plot(x, y, look.marker, ms=5.5 if grey else 8, color=look.light, mew=0.9, zorder=3 if grey else 4,
                  mfc=look.light if filled else LIGHT["surface"], gid=f"point {curve['method']}",
                  mec=look.light if grey or not filled else LIGHT["surface"])


def _name_ends(axes: Axes, ends: dict[str, tuple[float, float]], styles: dict[str, Style]) -> None:
    """Write each name once in the right margin, at the height of its curve's end, moved apart where names would touch.
    """
    bottom, top = axes.get_ylim()
    height = axes.figure.get_figheight() * axes.get_position().height
    gap = 0.165 / height  # of the axes' height: a line of text
    order = sorted(ends, key=lambda name: ends[name][1])
    heights = spread([(ends[name][1] - bottom) / (top - bottom) for name in order], gap)
    for name, at in zip(order, heights, strict=True):
        grey = styles[name].color == GREY
        axes.annotate(
            shorten(name, LABEL), ends[name], xytext=(1.03, at), textcoords="axes fraction", va="center",
            fontsize=8 if grey else 9.5, fontweight="normal" if grey else "bold", color=styles[name].light,
            annotation_clip=False, gid=f"name {name}",
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": styles[name].light, "alpha": 0.6, "shrinkA": 1,
                        "shrinkB": 5},
        )  # fmt: skip


def spread(heights: list[float], gap: float) -> list[float]:
    """Move rising heights as little as possible to lie `gap` apart, within [0, 1] where there is room.

    Neighbours that touch form a block around their mean (the pool-adjacent-violators algorithm).
    """
    blocks: list[tuple[float, int]] = []  # (mean of height - gap * place, size) of each block
    for place, height in enumerate(heights):
        blocks.append((height - gap * place, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, many), (other, more) = blocks[-2:]
            blocks[-2:] = [((one * many + other * more) / (many + more), many + more)]
    flat = [mean for mean, size in blocks for _ in range(size)]
    most = 1 - gap * (len(heights) - 1)
    return [max(min(start, most), 0.0) + gap * place for place, start in enumerate(flat)]


def _target(axes: Axes, labels: Labels, verdict: dict[str, Any] | None) -> None:
    if verdict and verdict["target"]:
        x = verdict["target"]["value"]
        axes.axvline(x, color=LIGHT["muted"], lw=0.9, ls=(0, (1, 2)), zorder=1, gid="target")
        bottom, top = axes.get_ylim()
        at = (x, bottom + 0.015 * (top - bottom))
        labels.write("Spec compared at", at, [(-4, 0, "right", "bottom"), (4, 0, "left", "bottom")], fontsize=7,
                     color=LIGHT["muted"])


def _entry(x: float, y: float) -> dict[str, float | None]:
    return {"spec": x, "vers": y, "spec_se": None, "vers_se": None}
