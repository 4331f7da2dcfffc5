"""Names beside the points of a plane, placed where they can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .numbers import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


def error_bar(entry: dict[str, Any], key: str) -> float | None:
    """Return the standard error of a score, or None where it is missing."""
    return entry[f"{key}_se"] if finite(entry[f"{key}_se"]) else None


class Labels:
    """Texts on a plane, each at the first of its candidate places where it covers no point and no other text."""

    NEAR = ((8, 7, "left", "bottom"), (8, -7, "left", "top"), (-8, 7, "right", "bottom"), (-8, -7, "right", "top"),
            (0, 12, "center", "bottom"), (0, -12, "center", "top"))  # fmt: skip

    def __init__(self, figure: Figure, axes: Axes) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.axes, self.renderer, self.point = axes, FigureCanvasAgg(figure).get_renderer(), figure.dpi / 72
        self.markers: list[Bbox] = []
        self.bars: list[Bbox] = []
        self.texts: list[Bbox] = []

    def keep_free(self, entry: dict[str, Any], width: float = 1.0) -> None:
        """Keep text off this entry's marker and, if possible, off its bars of `width` standard errors."""
        from matplotlib.transforms import Bbox

        x, y = self.axes.transData.transform((entry["spec"], entry["vers"]))
        reach = 5 * self.point
        self.markers.append(Bbox([[x - reach, y - reach], [x + reach, y + reach]]))
        x, y = entry["spec"], entry["vers"]
        for dx, dy in ((width * (error_bar(entry, "spec") or 0), 0), (0, width * (error_bar(entry, "vers") or 0))):
            ends = self.axes.transData.transform([(x - dx, y - dy), (x + dx, y + dy)])
            self.bars.append(Bbox(ends).padded(self.point))

    def keep_free_line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Keep later text off this horizontal or vertical line, in data coordinates, if possible."""
        from matplotlib.transforms import Bbox

        self.bars.append(Bbox(self.axes.transData.transform([start, end])).padded(self.point))

    def name_point(
        self, entry: dict[str, Any], name: str, color: str, *, optional: bool = False, fontsize: float = 8.5,
        bold: bool = True,
    ) -> None:  # fmt: skip
        reach = (1, 1.7) if optional else (1, 1.7, 2.6, 3.6)
        places = [(dx * r, dy * r, ha, va) for r in reach for dx, dy, ha, va in self.NEAR]
        look = {"fontsize": fontsize, "color": color, "fontweight": "bold" if bold else "normal", "zorder": 5}
        self.write(name, (entry["spec"], entry["vers"]), places, optional=optional, **look)

    def write(
        self, text: str, at: tuple[float, float], places: list[tuple[float, float, str, str]], *,
        optional: bool = False, **look: Any,
    ) -> None:  # fmt: skip
        """Write `text` at the least crowded of `places` (dx, dy in points, ha, va); optional text only where it is
        free.
        """
        frame = self.axes.get_window_extent(self.renderer).padded(1)
        best = None
        for dx, dy, ha, va in places:
            artist = self.axes.annotate(text, at, xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, **look)
            box = artist.get_window_extent(self.renderer)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            cost = (
                8 * outside
                + 4 * sum(map(box.overlaps, self.markers))
                + 3 * sum(map(box.overlaps, self.texts))
                + sum(map(box.overlaps, self.bars))
            )
            if best is None or cost < best[0]:
                if best:
                    best[1].remove()
                best = (cost, artist, box)
            else:
                artist.remove()
            if best[0] == 0:
                break
        if best and optional and best[0]:
            best[1].remove()
        elif best:
            self.texts.append(best[2])
