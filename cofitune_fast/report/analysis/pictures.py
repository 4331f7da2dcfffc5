"""Pictures of an analysis: change per layer and role, the logit lens, attention against FFN."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..style.canvas import new_figure
from ..style.numbers import shorten
from ..style.palette import LIGHT, STEPS, method_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.2
MODULES = {"attention": ("attention", "blue"), "ffn": ("FFN", "vermillion")}


def change_map(analysis: dict[str, Any]) -> Figure:
    """Draw one map per fine-tuned model, roles by layers, all on one scale; an unchanged cell stays empty."""
    import numpy as np
    from matplotlib.colors import BoundaryNorm, ListedColormap

    models, roles = analysis["models"][1:], analysis["roles"]
    top = max(value or 0 for model in models for row in model["change"]["relative"].values() for value in row)
    bounds = np.linspace(0, top or 1, STEPS + 1)
    colors, norm = ListedColormap([LIGHT[f"step{step}"] for step in range(STEPS)]), BoundaryNorm(bounds, STEPS)
    each = 0.62 + 0.2 * len(roles)
    figure = new_figure(WIDTH, each * len(models) + 0.35)
    height = figure.get_figheight()
    for index, model in enumerate(models):
        bottom = height - each * (index + 1) + 0.3
        axes = figure.add_axes((0.085, bottom / height, 0.8, (each - 0.62) / height))
        values = np.array([[value or 0 for value in model["change"]["relative"][role]] for role in reversed(roles)])
        still = np.ma.masked_equal(values, 0)
        mesh = axes.pcolormesh(still, cmap=colors, norm=norm, edgecolors=LIGHT["surface"], lw=0.6)
        axes.set_yticks([row + 0.5 for row in range(len(roles))], list(reversed(roles)))
        ticks = range(0, analysis["layers"], max(1, analysis["layers"] // 10))
        axes.set_xticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
        _title(axes, shorten(model["name"], 70))
    axes.set_xlabel("layer")
    scale = figure.add_axes((0.91, bottom / height, 0.013, (each - 0.62) / height))
    bar = figure.colorbar(mesh, cax=scale, ticks=bounds[[0, -1]])
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels(["0", f"{100 * top:.2g} %"])
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=7)
    return figure


def lens_curves(analysis: dict[str, Any]) -> Figure:
    """Draw NLL, its difference to the base, KL to the last layer, and the share of readable tokens; a line per model.

    The curves start at the first layer, because the values at the embedding would compress the scale.
    """
    figure = new_figure(WIDTH, 6.0)
    styles = method_styles([model["name"] for model in analysis["models"]])
    base = analysis["models"][0]["lens"]["nll"]
    tokens = analysis["data"]["tokens"] or 1
    panels = (
        ("NLL of the right token, nats", lambda model: model["lens"]["nll"]),
        ("NLL less the base's at the same layer, nats",
         lambda model: [new - old for new, old in zip(model["lens"]["nll"], base, strict=True)]),
        ("KL from the last layer's distribution, nats", lambda model: model["lens"]["kl"]),
        ("right from this layer on, share of tokens",
         lambda model: [total / tokens for total in accumulate(model["readable"]["all"]["counts"])]),
    )
    for place, (title, curve) in enumerate(panels):
        axes = figure.add_axes((0.06 + 0.49 * (place % 2), 0.57 - 0.5 * (place // 2), 0.44, 0.37))
        for model in analysis["models"]:
            style = styles[model["name"]]
            axes.plot(range(analysis["layers"]), curve(model)[1:], color=style.light, lw=1.6, marker=style.marker, ms=3,
                      label=shorten(model["name"], 32))
        _title(axes, title)
        if place != 1:
            axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        axes.grid(axis="y", color=LIGHT["faint"], lw=0.7)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if place > 1:
            axes.set_xlabel("after layer")
        if not place:
            axes.legend(frameon=False, fontsize=8)
    return figure


def module_bars(analysis: dict[str, Any]) -> Figure:
    """Draw the direct contributions of attention and FFN per layer: those of the base, then each model's difference."""
    base, *others = analysis["models"]
    figure = new_figure(WIDTH, 0.35 + 1.75 * (1 + len(others)))
    height = figure.get_figheight()
    differences: list[float] = [0.0]
    for index, model in enumerate((base, *others)):
        axes = figure.add_axes((0.07, (height - 1.75 * (index + 1) + 0.12) / height, 0.91, 1.25 / height))
        for side, (key, (name, color)) in enumerate(MODULES.items()):
            values = model["direct"][key]
            if index:
                values = [new - old for new, old in zip(values, base["direct"][key], strict=True)]
                differences += values
            places = [layer + 0.4 * side - 0.2 for layer in range(analysis["layers"])]
            axes.bar(places, values, width=0.4, color=LIGHT[color], label=name, lw=0)
        axes.axhline(0, color=LIGHT["line"], lw=0.8)
        axes.margins(x=0.01)
        axes.grid(axis="y", color=LIGHT["faint"], lw=0.7)
        ticks = range(0, analysis["layers"], max(1, analysis["layers"] // 10))
        axes.set_xticks(list(ticks))
        _title(axes, f"{shorten(model['name'], 60)}, less base" if index else "base: lead of the right token, logits")
        if not index:
            axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    axes.set_xlabel("layer")
    low, high = min(differences), max(differences)
    margin = 0.08 * (high - low or 1)
    for axes in figure.axes[1:]:  # one scale, so that models can be compared
        axes.set_ylim(low - margin, high + margin)
    return figure


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left", color=LIGHT["muted"])
