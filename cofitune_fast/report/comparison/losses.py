"""Pictures of a comparison: each method's loss at equal speciality, alone and against its training time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..style.canvas import new_figure
from ..style.labels import Labels
from ..style.numbers import score, shorten
from ..style.palette import GREY, LIGHT
from ..style.plane import LABEL
from .planes import styles_of
from .rows import MEASURES, curves_of, verdict_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {"vers": "Vers lost", "instruction_likelihood": "Instruction likelihood lost",
          "drift": "KL to the base, nats per token"}


def losses(content: dict[str, Any], task: str) -> Figure | None:
    """Draw a dot with its interval for each method and measure, at the Spec of the reference; left is better."""
    verdicts = {key: verdict for key in MEASURES if (verdict := verdict_of(content, task, key))}
    if not verdicts:
        return None
    names = [row["method"] for row in next(iter(verdicts.values()))["rows"]]
    figure = new_figure(8.6, 1.0 + 0.34 * len(names))
    height = figure.get_figheight()
    left = min(0.3, 0.03 + 0.0094 * max(len(shorten(name, LABEL)) for name in names))
    width = (0.985 - left) / len(verdicts)
    styles = styles_of(content)
    for place, (key, verdict) in enumerate(verdicts.items()):
        axes = figure.add_axes((left + place * width, 0.58 / height, width - 0.025, 1 - 0.68 / height))
        _panel(axes, verdict["rows"], styles)
        axes.set_xlabel(f"{PANELS[key]}\nat Spec {score(verdict['target']['value'])}", fontsize=8)
        if place:
            axes.set_yticks([])
            continue
        axes.set_yticks(range(len(names)), [shorten(name, LABEL) for name in names])
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(styles[name].light)
            label.set_fontweight("normal" if styles[name].color == GREY else "bold")
    return figure


def _panel(axes: Axes, rows: list[dict[str, Any]], styles: dict[str, Any]) -> None:
    reached = [row for row in rows if row["reaches"]]
    ends = [0.0, *(row["loss"]["value"] for row in reached)]
    span = (max(ends) - min(ends)) or 0.01
    # An interval from two seeds can be very wide, so it is cut off at the panel's edge.
    ends += [max(row["loss"]["low"], min(ends) - 0.6 * span) for row in reached]
    ends += [min(row["loss"]["high"], max(ends) + 0.6 * span) for row in reached]
    pad = 0.06 * ((max(ends) - min(ends)) or span)
    axes.set_xlim(min(ends) - pad, max(ends) + pad)
    axes.axvline(0, color=LIGHT["base"], lw=0.9, ls=(0, (5, 3)), zorder=1)
    for place, row in enumerate(rows):
        look = styles[row["method"]]
        if not row["reaches"]:
            axes.annotate(f"Spec {score(row['highest_spec']['value'])} at most", (0.5, place), ha="center", va="center",
                          xycoords=("axes fraction", "data"), fontsize=7, color=LIGHT["muted"])
            continue
        loss = row["loss"]
        bars = [[max(0.0, loss["value"] - loss["low"])], [max(0.0, loss["high"] - loss["value"])]]
        single = row["seeds"] < 2
        size, width = (6, 1.0) if look.color == GREY else (8, 2.0)
        axes.errorbar(loss["value"], place, xerr=bars, fmt=look.marker, ms=size, color=look.light, capsize=2.5,
                      elinewidth=width, mec=look.light, mfc=LIGHT["surface"] if single else look.light,
                      gid=f"loss {row['method']}")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    axes.locator_params(axis="x", nbins=5)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LIGHT["faint"], lw=0.7)


def cost(content: dict[str, Any], task: str) -> Figure | None:
    """Draw training time, as a share of the reference's, against the loss at equal speciality; lower left is better."""
    key = next((key for key in ("instruction_likelihood", "vers") if verdict_of(content, task, key)), None)
    if key is None:
        return None
    verdict, curves = verdict_of(content, task, key), curves_of(content, task)
    places = {}
    for row in verdict["rows"]:
        chosen = curves[row["method"]]["chosen"]["uni"]
        if row["reaches"] and chosen and chosen["time_of_reference"] is not None:
            places[row["method"]] = (100 * chosen["time_of_reference"], row["loss"])
    if not places:
        return None
    figure = new_figure(5.4, 3.9)
    axes = figure.add_axes((0.145, 0.125, 0.84, 0.855))
    styles = styles_of(content)
    axes.axhline(0, color=LIGHT["base"], lw=0.9, ls=(0, (5, 3)), zorder=1)
    values = [loss["value"] for _, loss in places.values()]
    span = max(max(values), 0) - min(*values, 0) or 0.01
    axes.set_xlim(0, 1.25 * max(time for time, _ in places.values()))
    axes.set_ylim(min(*values, 0) - 0.25 * span, max(max(values), 0) + 0.3 * span)
    labels = Labels(figure, axes)
    labels.keep_free_line(*((x, 0) for x in axes.get_xlim()))
    for name, (time, loss) in places.items():
        bars = [[max(0.0, loss["value"] - loss["low"])], [max(0.0, loss["high"] - loss["value"])]]
        size, width = (6, 1.0) if styles[name].color == GREY else (8.5, 1.8)
        axes.errorbar(time, loss["value"], yerr=bars, fmt=styles[name].marker, ms=size, color=styles[name].light,
                      elinewidth=width, capsize=2.5, mec=LIGHT["surface"], zorder=3)
        labels.keep_free({"spec": time, "vers": loss["value"], "spec_se": None,
                          "vers_se": (loss["high"] - loss["low"]) / 2})
    for name, (time, loss) in places.items():
        at = {"spec": time, "vers": loss["value"], "spec_se": None, "vers_se": None}
        grey = styles[name].color == GREY
        labels.name_point(at, shorten(name, LABEL), styles[name].light, fontsize=8 if grey else 9.5, bold=not grey)
    axes.set_xlabel(f"training time, % of {shorten(str(verdict['reference']), LABEL)}'s")
    axes.set_ylabel(f"{PANELS[key]} at Spec {score(verdict['target']['value'])}", fontsize=8)
    return figure
