"""Picture of importance per layer: the spread of the FFN units' scores and a map of the attention heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..style.canvas import new_figure
from ..style.numbers import finite
from ..style.palette import LIGHT, STEPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"ffn.neuron": "FFN neurons", "ffn.output": "FFN outputs"}
COLORS = {"ffn.neuron": "blue", "ffn.output": "vermillion"}


def importance_layers(report: dict[str, Any]) -> Figure | None:
    importance = report["importance"]
    layers = sorted(importance["layers"], key=lambda layer: layer["layer"]) if importance else []
    units = [unit for unit in NAMES if any(layer.get(unit) for layer in layers)]
    heads = [layer for layer in layers if layer.get("attn.head")]
    panels = bool(units) + bool(heads)
    if not panels:
        return None
    figure = new_figure(9.2 if panels == 2 else 6.2, 3.1)
    width = (0.435 if panels == 2 else 0.87, 0.36 if panels == 2 else 0.78)
    if units:
        _spread(figure.add_axes((0.06 if panels == 2 else 0.09, 0.15, width[0], 0.74)), layers, units)
    if heads:
        left = 0.56 if panels == 2 else 0.09
        _heads(figure, figure.add_axes((left, 0.15, width[1], 0.74)), heads)
    return figure


def _spread(axes: Axes, layers: list[dict[str, Any]], units: list[str]) -> None:
    for unit in units:
        rows = [(layer["layer"], layer[unit]) for layer in layers if layer.get(unit) and finite(layer[unit]["mean"])]
        color = LIGHT[COLORS[unit]]
        x = [number for number, _ in rows]
        if all(finite(row["p10"]) and finite(row["p90"]) for _, row in rows):
            low, high = ([row[key] for _, row in rows] for key in ("p10", "p90"))
            axes.fill_between(x, low, high, color=color, alpha=0.16, lw=0)
        median = [(number, row["p50"]) for number, row in rows if finite(row["p50"])]
        axes.plot(*zip(*median, strict=True) if median else ([], []), color=color, lw=0.9, ls=(0, (4, 2)))
        dot = "o" if len(x) < 3 else None
        axes.plot(x, [row["mean"] for _, row in rows], color=color, lw=1.8, marker=dot, label=NAMES[unit])
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.grid(axis="y", color=LIGHT["faint"], lw=0.7)
    axes.set_xlabel("layer")
    title = "FFN units, raw |dL/dg|: mean, median (dashed), 10-90 % band"
    axes.set_title(title, fontsize=9, loc="left", color=LIGHT["muted"])
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _heads(figure: Figure, axes: Axes, layers: list[dict[str, Any]]) -> None:
    import numpy as np
    from matplotlib.colors import BoundaryNorm, ListedColormap

    rows = max(len(layer["attn.head"]) for layer in layers)
    values = np.full((rows, len(layers)), np.nan)
    for column, layer in enumerate(layers):
        values[: len(layer["attn.head"]), column] = layer["attn.head"]
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    high = high if high - low > 1e-12 else low + 1e-6
    bounds = np.linspace(low, high, STEPS + 1)
    colors = ListedColormap([LIGHT[f"step{index}"] for index in range(STEPS)])
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colors, norm=BoundaryNorm(bounds, STEPS))
    ticks = list(range(0, len(layers), max(1, len(layers) // 8)))
    axes.set_xticks([tick + 0.5 for tick in ticks], [str(layers[tick]["layer"]) for tick in ticks])
    ticks = list(range(0, rows, max(1, rows // 8)))
    axes.set_yticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    axes.set_title("Attention heads", fontsize=9, loc="left", color=LIGHT["muted"])
    ends = bounds[[0, STEPS // 2 + 1, STEPS]]
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, ticks=ends, format="%.2f")
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=7)
