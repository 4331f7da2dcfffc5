"""Colours of page and pictures, each with a light and a dark value, and the fixed style of each method.

Pictures are drawn in the light colours. In the page's SVG each colour is then replaced by its CSS variable, so that the
dark scheme applies to pictures too. So every light value must be unique. The method colours follow the hues of Okabe
and Ito (2008), which remain distinct for all common kinds of colour blindness, darkened until they can be read as text
on white. Each method also has its own marker, for prints in grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COLORS: dict[str, tuple[str, str]] = {  # name: (light, dark)
    "surface": ("#ffffff", "#171b21"),
    "ink": ("#1b2430", "#e7ebf0"),
    "muted": ("#5c6876", "#9aa6b4"),
    "line": ("#c9d0d8", "#3d4754"),
    "faint": ("#e6eaee", "#2a313a"),
    "accent": ("#c2410c", "#ff9d57"),
    # methods
    "base": ("#6e7781", "#aab4c0"),
    "vermillion": ("#cc5500", "#ff8b3d"),
    "sky": ("#2f8fca", "#a5dbff"),
    "blue": ("#00528a", "#3f9fe6"),
    "green": ("#008a65", "#2cc99a"),
    "pink": ("#b8578c", "#f0a5cf"),
    "amber": ("#a87400", "#f6c244"),
    "purple": ("#5d3a9b", "#b49bea"),
    "brown": ("#8a5a3c", "#cf9f80"),
    "olive": ("#77781a", "#cfd05a"),
    # a scale from low to high, and the text colour on each step
    "step0": ("#eef3f8", "#1f2730"),
    "step1": ("#d6e4f0", "#22384a"),
    "step2": ("#b5d0e6", "#245069"),
    "step3": ("#84b1d3", "#2a6a8d"),
    "step4": ("#3d7cab", "#3c8ab5"),
    "step5": ("#25629a", "#62abd4"),
    "step6": ("#0c4470", "#a3d6f2"),
    "ink0": ("#16202b", "#e6eaf1"),
    "ink1": ("#16202c", "#e6eaf2"),
    "ink2": ("#16202d", "#eef2f6"),
    "ink3": ("#16202e", "#fafcfe"),
    "ink4": ("#fffffb", "#0b1117"),
    "ink5": ("#fffffc", "#0b1118"),
    "ink6": ("#fffffd", "#0b1119"),
}
LIGHT = {name: light for name, (light, _) in COLORS.items()}
STEPS = 7

KNOWN = {"base": "base", "full SFT": "muted", "CoFiTune coarse": "sky", "CoFiTune fine": "blue", "LoRA": "green",
         "Wise-FT": "pink", "V-SoftMask": "purple", "L1": "amber", "L2": "brown"}  # fmt: skip
CYCLE = ("green", "pink", "amber", "purple", "olive", "brown", "sky", "vermillion", "blue")
OURS, GREY = ("blue", "sky", "purple", "brown"), "muted"
MARKERS = {"base": "s", "full SFT": "D", "CoFiTune coarse": "o", "CoFiTune fine": "o"}
MARKER_CYCLE = ("^", "v", "P", "X", "<", ">", "p", "h", "d", "*")


@dataclass(frozen=True)
class Style:
    color: str  # a name in COLORS
    marker: str  # matplotlib's letter

    @property
    def light(self) -> str:
        return LIGHT[self.color]


def method_styles(names: list[str]) -> dict[str, Style]:
    """Return the style of each method, the same in every picture and table; unknown names get the remaining colours."""
    taken = {KNOWN[name] for name in names if name in KNOWN}
    free = [color for color in CYCLE if color not in taken] or list(CYCLE)
    styles: dict[str, Style] = {}
    others = markers = 0
    for name in names:
        if name in KNOWN:
            color = KNOWN[name]
        else:
            color, others = free[others % len(free)], others + 1
        if name in MARKERS:
            marker = MARKERS[name]
        else:
            marker, markers = MARKER_CYCLE[markers % len(MARKER_CYCLE)], markers + 1
        styles[name] = Style(color, marker)
    return styles


def highlighted_styles(methods: list[dict[str, Any]]) -> dict[str, Style]:
    """Return coloured styles for our methods and grey ones for all others, which differ by marker and label.

    Args:
        methods: {name, recipe} entries of a comparison. The last of ours is the boldest.
    """
    ours = [method["name"] for method in methods if is_ours(method)]
    styles = {}
    for place, name in enumerate(method["name"] for method in methods):
        color = OURS[(len(ours) - 1 - ours.index(name)) % len(OURS)] if name in ours else GREY
        styles[name] = Style(color, "o" if name in ours[-1:] else MARKER_CYCLE[place % len(MARKER_CYCLE)])
    return styles


def is_ours(method: dict[str, Any]) -> bool:
    """True if a method trains a region with an anchor, or is called CoFiTune."""
    recipe = method.get("recipe") or {}
    region = recipe.get("region") or "full"
    return method["name"].lower().startswith("cofitune") or bool(region != "full" and recipe.get("anchor"))


def css_variables() -> tuple[str, str]:
    """Return the (light, dark) declarations for `:root`."""
    return tuple("".join(f"--{name}:{pair[scheme]};" for name, pair in COLORS.items()) for scheme in (0, 1))


def step_of(value: float, low: float, high: float) -> int:
    """Return the step of the colour scale for a value between low and high; the middle one if all values are equal."""
    if high - low < 1e-12:
        return STEPS // 2
    return min(STEPS - 1, max(0, int((value - low) / (high - low) * STEPS)))
