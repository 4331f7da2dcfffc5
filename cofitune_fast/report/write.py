"""Writer of the page: one HTML file that needs no network and no script."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artefacts.scores import GROUPS, SCORES
from ..files import writable_folder, write_text
from ..json_text import write_json
from .comparison.page import comparison_pictures, comparison_values
from .flips import GROUPS as FLIPPED
from .read import checked_report, is_comparison, plain_json, read_report
from .run.importance import importance_layers
from .run.planes import tradeoff, uni_bars
from .run.sentences import headline
from .run.tables import FOOTNOTE, TITLES, detail_rows, flip_rows, method_rows
from .run.verdict import searched_on_report_split
from .search.cost import search_cost
from .search.frontier import search_frontier
from .search.plane import search_plane
from .search.rows import search_view
from .search.sentences import search_headline
from .search.tree import search_tree
from .style.canvas import inline_svg, require_matplotlib, save_png, style
from .style.numbers import finite
from .style.page import environment_facts, page_template, readable_date, style_variables
from .style.palette import method_styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = {  # name of the PNG: (drawing, description for readers who cannot see it)
    "tradeoff": (tradeoff, "Speciality against versatility of every method, with error bars"),
    "uni_bars": (uni_bars, "Uni of every method, split into speciality and versatility"),
    "search_tree": (search_tree, "The tree of searched regions with the Uni of each"),
    "search_frontier": (search_frontier, "What each searched region promises against what its training costs"),
    "search_plane": (search_plane, "Speciality against versatility of every searched region, with the Pareto front"),
    "search_cost": (search_cost, "The cost of every searched region, rung by rung"),
    "importance": (importance_layers, "Importance of FFN units and attention heads by layer"),
}


def write_report(report: dict[str, Any] | str | Path, folder: str | Path) -> dict[str, Any]:
    """Write report.html and its pictures from a report, given as a dictionary or as the path that `read_report` takes.

    From the content of a comparison.json it writes comparison.html instead. A picture without data is left out. Every
    file is complete or absent.

    Returns:
        {"html": Path, "json": Path, "png": [Path, …]}. The JSON is a copy of the report (NaN as null), unless the
            report already lies in `folder`. That of a search alone, without methods, is called search.json.

    Raises:
        CofituneError: the report is malformed, the folder cannot be written, or matplotlib or jinja2 is missing.
    """
    source = None if isinstance(report, dict) else Path(report)
    raw = read_report(source) if source else checked_report(report)
    comparison = is_comparison(raw)
    require_matplotlib()
    folder = writable_folder(folder)
    name = "comparison" if comparison else "search" if _search_alone(raw) else "report"
    target = folder / f"{name}.json"
    if source is None or target.resolve() not in (source.resolve(), (source / target.name).resolve()):
        write_json(target, plain_json(raw))
    drawings: dict[str, str] = {}
    written: list[Path] = []
    with style():
        for name, (draw, description) in (comparison_pictures(raw) if comparison else PICTURES).items():
            figure: Figure | None = draw(raw)
            if figure is not None:
                written.append(save_png(figure, folder / f"{name}.png"))
                drawings[name] = inline_svg(figure, name, html.escape(description))
            else:
                (folder / f"{name}.png").unlink(missing_ok=True)  # left by an earlier report
    page = folder / ("comparison.html" if comparison else "report.html")
    write_text(page, (render_comparison if comparison else render)(raw, drawings))
    return {"html": page, "json": target, "png": written}


def render(report: dict[str, Any], drawings: dict[str, str]) -> str:
    """Render the page of a checked report; `drawings` are finished `<svg>` elements by picture name."""
    styles = method_styles([method["name"] for method in report["methods"]])
    return _rendered(
        "run/page.html.j2",
        report,
        headline=search_headline(report["search"]) if _search_alone(report) else headline(report),
        drawings=dict.fromkeys(PICTURES, "") | drawings,
        titles=TITLES,
        groups=GROUPS,
        scores=SCORES,
        rows=method_rows(report),
        colors={name: look.color for name, look in styles.items()},
        footnote=FOOTNOTE,
        details=detail_rows(report),
        flips=flip_rows(report),
        flipped=FLIPPED,
        failed=[check for check in report["checks"] if not check["passed"]],
        search=search_view(report),
        same_split=bool(report["search"]) and searched_on_report_split(report),
    )


def render_comparison(content: dict[str, Any], drawings: dict[str, str]) -> str:
    """Render the page of a checked comparison; `drawings` as for `render`."""
    return _rendered("comparison/page.html.j2", content, drawings=drawings, **comparison_values(content))


def _rendered(name: str, report: dict[str, Any], **values: Any) -> str:
    return page_template(name).render(
        report=report, **style_variables(), created=readable_date(report["created"]), facts=_facts(report), **values
    )


def _search_alone(report: dict[str, Any]) -> bool:
    return bool(report["search"]) and not report["methods"]


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """List base, splits and environment as (name, text) pairs; byte counts are made readable."""
    base = report["base"]
    facts = [
        ("base model", base["model"]),
        ("base fingerprint", base["fingerprint"]),
        ("base dtype", base["dtype"]),
        ("base parameters", f"{base['parameters']:,.0f}" if finite(base["parameters"]) else ""),
    ]
    facts += [(f"split for {use}", split) for use, split in report["split"].items()]
    return [(name, text) for name, text in [*facts, *environment_facts(report["environment"])] if text]
