"""Drawing shared by the Spec-Vers planes of methods and of searched regions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .labels import Labels, error_bar
from .numbers import finite, shorten
from .palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL = 30  # characters of a method's name that fit into a picture


def plottable(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if finite(entry["spec"]) and finite(entry["vers"])]


def limits(axes: Axes, points: list[dict[str, Any]], width: float = 1.0) -> None:
    """Set axis limits with room for labels and all error bars, `width` standard errors to each side.

    Each axis spans at least 0.04, so that noise does not look like an effect.
    """
    for key, setter in (("spec", axes.set_xlim), ("vers", axes.set_ylim)):
        low = min(point[key] - width * (error_bar(point, key) or 0) for point in points)
        high = max(point[key] + width * (error_bar(point, key) or 0) for point in points)
        pad = max(0.13 * (high - low), (0.04 - (high - low)) / 2, 0.004)
        setter(low - pad, high + pad)


def name_axes(axes: Axes, split: str | None) -> None:
    where = f" ({shorten(str(split), LABEL)} split)" if split else ""
    axes.set_xlabel(f"Spec: speciality{where}")
    axes.set_ylabel(f"Vers: versatility{where}")


def iso_uni(axes: Axes, labels: Labels) -> None:
    """Draw about seven lines of equal Uni, each labelled where it leaves the plane if there is room."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    step = _round_step((right + top - left - bottom) / 7)
    digits = max(0, -math.floor(math.log10(step)))
    for index in range(math.ceil((left + bottom) / step), math.floor((right + top) / step) + 1):
        uni = index * step
        start, end = max(left, uni - top), min(right, uni - bottom)
        axes.plot([start, end], [uni - start, uni - end], color=LIGHT["line"], lw=0.8, ls=(0, (1, 2.5)), zorder=0)
        # Label left of the end where the line leaves at the right, and right of it where it leaves at the bottom.
        offset, ha = ((-3, 4), "right") if end >= right else ((4, 4), "left")
        place = [(*offset, ha, "bottom")]
        look = {"fontsize": 6.5, "color": LIGHT["muted"]}
        labels.write(f"Uni {uni:.{digits}f}", (end, uni - end), place, optional=True, **look)


def _round_step(rough: float) -> float:
    """Return the smallest number 1, 2 or 5 × 10^k that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
