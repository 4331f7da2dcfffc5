"""Writer of analysis.html and its pictures; the page is one file without network and script."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from ...artefacts import read_artefact
from ...files import writable_folder, write_text
from ..style.canvas import inline_svg, require_matplotlib, save_png, style
from ..style.page import environment_facts, page_template, readable_date, style_variables
from ..style.palette import method_styles
from .pictures import change_map, lens_curves, module_bars
from .sentences import rows, sentences

PICTURES = {  # name: (drawing, description for readers who cannot see it)
    "change": (change_map, "Relative change of the weights by layer and role, one map per model"),
    "lens": (lens_curves, "What each layer's state says about the right token, one curve per model"),
    "modules": (module_bars, "Direct contributions of attention and FFN to the right token by layer"),
}


def write_analysis_page(analysis: str | Path, folder: str | Path) -> dict[str, Any]:
    """Write analysis.html and its pictures into `folder` from an analysis.json or the folder that holds it.

    Every file is complete or absent.

    Returns:
        {"html": Path, "json": Path, "png": [Path, ...], "sentences": [str, ...]}.

    Raises:
        CofituneError: the analysis is malformed, the folder cannot be written, or matplotlib or jinja2 is missing.
    """
    source = Path(analysis)
    source = source / "analysis.json" if source.is_dir() else source
    content = read_artefact("analysis", source)
    require_matplotlib()
    folder = writable_folder(folder)
    drawings, written = {}, []
    with style():
        for name, (draw, description) in PICTURES.items():
            figure = draw(content)
            written.append(save_png(figure, folder / f"analysis_{name}.png"))
            drawings[name] = inline_svg(figure, name, html.escape(description))
    page, spoken = folder / "analysis.html", sentences(content)
    base, data = content["base"], content["data"]
    facts = [("base model", base["model"]), ("base fingerprint", base["fingerprint"]), ("base dtype", base["dtype"]),
             ("data", str(data["file"])), *((f"model {model['name']}", str(model.get("path") or ""))
                                             for model in content["models"][1:])]
    looks = method_styles([model["name"] for model in content["models"]])
    write_text(page, page_template("analysis/page.html.j2").render(
        analysis=content, **style_variables(), created=readable_date(content["created"]), drawings=drawings,
        sentences=spoken, rows=rows(content), colors={name: look.color for name, look in looks.items()},
        facts=[*((name, text) for name, text in facts if text), *environment_facts(content["environment"])],
    ))  # fmt: skip
    return {"html": page, "json": source, "png": written, "sentences": spoken}
