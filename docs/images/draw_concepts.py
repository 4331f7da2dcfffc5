"""Draw the pictures of docs/concepts.md: python docs/images/draw_concepts.py"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cofitune_fast.report.style.canvas import blank_axes, new_figure, save_png, style
from cofitune_fast.report.style.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
LAYERS, ROLES = 30, ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")
FIRST, LAST = 12, 21  # ffn@40%-75% of 30 layers


def region() -> Figure:
    """Every cell of a model of 30 layers; those of ffn@40%-75% are coloured."""
    from matplotlib.patches import Rectangle

    figure = new_figure(8.2, 3.1)
    axes = figure.add_axes((0.09, 0.3, 0.9, 0.66))
    for layer in range(LAYERS):
        for row, role in enumerate(ROLES):
            trained = role.startswith("ffn") and FIRST <= layer <= LAST
            axes.add_patch(Rectangle((layer - 0.42, row - 0.38), 0.84, 0.76, lw=0,
                                     color=LIGHT["blue" if trained else "line" if layer >= FIRST else "faint"]))
    axes.set_xlim(-0.6, LAYERS - 0.4)
    axes.set_ylim(len(ROLES) - 0.5, -0.6)
    axes.set_yticks(range(len(ROLES)), ROLES)
    axes.set_xticks([0, 6, 12, 18, 24, 29])
    axes.set_xlabel("layer", labelpad=1)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    parts = ((0, FIRST - 1, "muted", "run once, without a graph;\ntheir output is cached"),
             (FIRST, LAST, "blue", "the region is trained;\nthe rest of these layers is frozen"),
             (LAST + 1, LAYERS - 1, "muted", "frozen;\nthe gradient passes through"))
    for low, high, color, words in parts:
        axes.annotate("", (low - 0.4, 1), (high + 0.4, 1), xycoords=("data", "axes fraction"), annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": LIGHT[color], "lw": 2, "shrinkA": 0, "shrinkB": 0})
        axes.annotate(words, ((low + high) / 2, -0.24), xycoords=("data", "axes fraction"), ha="center", va="top",
                      fontsize=8.5, color=LIGHT[color], fontweight="bold" if color == "blue" else "normal")
    return figure


def anchor() -> Figure:
    """From the base's texts, written once, to the two terms of the loss."""
    figure = new_figure(8.2, 2.7)
    axes = blank_axes(figure)
    _box(axes, (0.15, 0.2), (1.5, 0.75), "the base", "writes once", "base")
    _box(axes, (2.15, 0.2), (2.15, 0.75), "192 short texts", "with the 64 likeliest next tokens", "blue")
    _box(axes, (0.15, 1.6), (1.5, 0.75), "your rows", "8 in a batch", "base")
    _box(axes, (2.15, 1.6), (2.15, 0.75), "one batch", "8 rows of yours, 2 texts", "ink")
    _box(axes, (4.75, 1.6), (1.45, 0.75), "the model", "trains the region", "ink")
    _box(axes, (6.6, 1.1), (1.5, 0.62), "task loss", "on your answers", "base")
    _box(axes, (6.6, 1.9), (1.5, 0.62), "+ KL to the base", "on its own texts", "blue")
    _arrow(axes, (1.65, 0.575), (2.15, 0.575))
    _arrow(axes, (3.22, 0.95), (3.22, 1.6), "2 with each batch")
    _arrow(axes, (1.65, 1.975), (2.15, 1.975))
    _arrow(axes, (4.3, 1.975), (4.75, 1.975))
    _arrow(axes, (6.2, 1.85), (6.6, 1.5))
    _arrow(axes, (6.2, 2.05), (6.6, 2.2))
    axes.text(4.55, 0.575, "a file of 5 MB, made once per base;\nfrom then on the base is not needed", va="center",
              fontsize=8, color=LIGHT["muted"])
    return figure


def _box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], title: str, words: str, color: str
) -> None:
    from matplotlib.patches import FancyBboxPatch

    (x, y), (width, height) = corner, size
    axes.add_patch(FancyBboxPatch((x + 0.05, y + 0.05), width - 0.1, height - 0.1, boxstyle="round,pad=0.05", lw=1.3,
                                  ec=LIGHT[color], fc=LIGHT["surface"]))
    middle = y + height / 2
    axes.text(x + width / 2, middle - 0.1, title, ha="center", va="center", fontweight="bold", color=LIGHT[color],
              fontsize=9.5)
    axes.text(x + width / 2, middle + 0.13, words, ha="center", va="center", fontsize=7.5, color=LIGHT["muted"])


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], words: str = "") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": LIGHT["muted"], "lw": 1.1, "shrinkA": 2,
                                              "shrinkB": 2})
    if words:
        axes.text(end[0] + 0.1, (start[1] + end[1]) / 2, words, fontsize=7.5, va="center", color=LIGHT["muted"])


if __name__ == "__main__":
    with style():
        for name, draw in {"region": region, "anchor": anchor}.items():
            print(save_png(draw(), HERE / f"{name}.png"))
