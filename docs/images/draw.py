"""Draw the pictures of README and docs from the stored results: python docs/images/draw.py

headline.png, forgetting_e2e.png and lost_e2e.png come from benchmarks/results/forgetting_e2e_main.json (and
forgetting_e2e_time.json), tradeoff.png from the demo's table in docs/results.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cofitune_fast.artefacts import checked
from cofitune_fast.report.comparison.losses import losses
from cofitune_fast.report.comparison.planes import plane
from cofitune_fast.report.comparison.rows import verdict_of
from cofitune_fast.report.run.planes import tradeoff
from cofitune_fast.report.style.canvas import new_figure, save_png, style
from cofitune_fast.report.style.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
TASK, MEASURE = "e2e", "instruction_likelihood"
NAMES = {"lora": "LoRA", "full-sft": "full SFT", "anchor-broad": "cofitune_fast"}
OURS = "anchor-broad"  # ffn@40%-75%, what `cofitune train` takes


def stored_comparison(name: str) -> dict[str, Any]:
    """The comparison that a study's summary holds."""
    results = json.loads((RESULTS / name).read_text(encoding="utf-8"))["results"]
    return checked("comparison", next(entry for entry in results if "runs" in entry))


def headline(content: dict[str, Any], times: list[dict[str, Any]]) -> Figure:
    """What is forgotten at equal speciality, and the time of training: our method in colour, the others grey."""
    base = content["base_scores"][TASK]["test"]["instruction"]
    losses_of = {row["method"]: row["loss"] for row in verdict_of(content, TASK, MEASURE)["rows"] if row["reaches"]}
    shares = {row["method"]: row["of_full_sft"] for row in times}
    figure = new_figure(8.2, 2.3)
    panels = [
        ([100 * losses_of[name]["value"] / base for name in NAMES],
         [[100 * losses_of[name][end] / base for end in ("low", "high")] for name in NAMES],
         (-2.5, 43), "forgotten at equal speciality", "% of the base's likelihood of good answers to instructions"),
        ([100 * shares[name] for name in NAMES], None, (0, 118), "training time", "% of full SFT's"),
    ]
    for place, (values, intervals, limits, title, unit) in enumerate(panels):
        axes = figure.add_axes(((0.19, 0.63)[place], 0.27, (0.4, 0.35)[place], 0.58))
        for row, (name, value) in enumerate(zip(NAMES, values, strict=True)):
            ours = name == OURS
            color = LIGHT["blue" if ours else "base"]
            axes.barh(row, value, 0.62, color=color, alpha=1.0 if ours else 0.45)
            end = value
            if intervals:
                low, end = intervals[row]
                axes.errorbar(value, row, xerr=[[value - low], [end - value]], fmt="none", ecolor=LIGHT["ink"],
                              elinewidth=1.0, capsize=3)
            axes.annotate(f"{value:.1f} %" if intervals else f"{value:.0f} %", (end, row), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=9.5 if ours else 8.5, color=color,
                          fontweight="bold" if ours else "normal")
        axes.set_xlim(*limits)
        axes.set_ylim(len(NAMES) - 0.45, -0.55)
        axes.set_yticks(range(len(NAMES)), NAMES.values() if not place else [""] * len(NAMES))
        axes.tick_params(axis="y", length=0, labelsize=9)
        for label, name in zip(axes.get_yticklabels(), NAMES, strict=True):
            label.set_color(LIGHT["blue" if name == OURS else "muted"])
            label.set_fontweight("bold" if name == OURS else "normal")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=LIGHT["faint"], lw=0.7)
        axes.axvline(0, color=LIGHT["line"], lw=0.9)
        axes.set_title(title, fontsize=10, fontweight="bold", loc="left", color=LIGHT["ink"])
        axes.set_xlabel(unit, fontsize=8)
    return figure


LONG = {"full-sft": "full SFT", "lora": "LoRA", "region": "ffn@50%-75%, no anchor", "anchor": "ffn@50%-75% + anchor",
        "anchor-wide": "ffn@25%-75% + anchor", "anchor-broad": "ffn@40%-75% + anchor"}


def renamed(content: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The comparison of the methods in `names`, which say what each is; ours, the default, comes last."""
    methods = {method["name"]: method for method in content["methods"]}

    def entries(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "method": names[row["method"]]} for row in rows if row["method"] in names]

    return content | {
        "methods": [methods[name] | {"name": new} for name, new in names.items()], "curves": entries(content["curves"]),
        "verdicts": [verdict | {"rows": entries(verdict["rows"])} for verdict in content["verdicts"]],
    }


def up_to_the_best_rate(content: dict[str, Any]) -> dict[str, Any]:
    """Without the rates beyond a method's frontier, which lie far below and would press the rest together."""
    curves = []
    for curve in content["curves"]:
        kept = [index for index in range(len(curve["points"])) if index in curve["frontier"][MEASURE]]
        frontier = [None if index is None else kept.index(index) for index in curve["frontier"][MEASURE]]
        curves.append(curve | {"points": [curve["points"][index] for index in kept], "frontier": {MEASURE: frontier}})
    return content | {"curves": curves}


def demo_report(page: Path) -> dict[str, Any]:
    """The demo's report, as far as the table in docs/results.md has it."""
    methods = []
    for line in page.read_text(encoding="utf-8").splitlines():
        name, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
        if len(cells) == 9 and name.split(" (")[0] in ("base", "full SFT", "CoFiTune coarse", "CoFiTune fine"):
            spec, vers = (tuple(map(float, cell.split(" ± "))) for cell in cells[:2])
            methods.append({"name": name.split(" (")[0], "spec": spec[0], "spec_se": spec[1], "vers": vers[0],
                            "vers_se": vers[1]})
    return {"methods": methods, "search": {}, "split": {"report": "test"}}


def main() -> None:
    content = stored_comparison("forgetting_e2e_main.json")
    times = json.loads((RESULTS / "forgetting_e2e_time.json").read_text(encoding="utf-8"))["results"]
    few = {name: LONG[name] for name in ("full-sft", "lora", "region", OURS)}
    with style():
        for name, figure in {
            "headline": headline(content, times),
            "forgetting_e2e": plane(up_to_the_best_rate(renamed(content, few)), TASK, MEASURE),
            "lost_e2e": losses(renamed(content, LONG), TASK),
            "tradeoff": tradeoff(demo_report(HERE.parent / "results.md")),
        }.items():
            print(save_png(figure, HERE / f"{name}.png"))


if __name__ == "__main__":
    main()
